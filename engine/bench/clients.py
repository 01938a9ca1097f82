"""Clients that talk at the pace of speech, and whether this process keeps that pace itself."""

import asyncio
import contextlib
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, LATE_SECONDS, SAMPLE_RATE
from engine.errors import EngineError
from engine.wire.client import Client
from engine.wire.protocol import Kind

CHUNKS = 4  # a user frame is sent in pieces of 20 ms, as browsers send
CHUNK_SAMPLES = FRAME_SAMPLES // CHUNKS
CHUNK_SECONDS = FRAME_SECONDS / CHUNKS
LAST_ANSWER_SECONDS = 0.5  # waited for it after the last user frame
LAG_PERIOD_SECONDS = 0.01


@dataclass
class PacedTalk:
    latencies: list[float] = field(default_factory=list)  # seconds, per frame
    sent_at: list[float] = field(default_factory=list)
    heard_at: list[float] = field(default_factory=list)  # each piece of agent audio
    late_by_server: int = 0  # frames so far, by the server's clock
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # or over before it was
    began: bool = False  # the server said: start talking
    error: str = ""  # the last 0x05
    over: bool = False  # the server hung up

    @property
    def late(self) -> int:
        """Answers that took longer than 120 ms or never came."""
        return len(self.late_at)

    @property
    def late_at(self) -> list[float]:
        """When the user frames of late answers were sent, by `time.monotonic`."""
        answers = itertools.zip_longest(self.sent_at, self.latencies, fillvalue=math.inf)
        return [at for at, latency in answers if latency > LATE_SECONDS]


async def converse(url: str, seconds: float, delay: float, pcm: np.ndarray) -> PacedTalk:
    """Talk at the pace of speech from `delay` on, for `seconds` or until the server hangs up."""
    talk = PacedTalk()
    await asyncio.sleep(delay)
    async with Client(url) as client, beside(hear(client, talk)):
        await talk.ready.wait()
        await speak(client, talk, pcm, seconds)
        await asyncio.sleep(LAST_ANSWER_SECONDS)
    return talk


async def speak(client: Client, talk: PacedTalk, pcm: np.ndarray, seconds: float) -> None:
    """Send whole user frames, in pieces of 20 ms, for `seconds` or until the server hangs up."""
    start = time.monotonic()
    for n in range(int(seconds / FRAME_SECONDS) * CHUNKS):
        await asyncio.sleep(max(0.0, start + (n + 1) * CHUNK_SECONDS - time.monotonic()))
        if talk.over:
            return
        at = n * CHUNK_SAMPLES % (len(pcm) - CHUNK_SAMPLES)
        await client.send_audio(pcm[at : at + CHUNK_SAMPLES])
        if n % CHUNKS == CHUNKS - 1:
            talk.sent_at.append(time.monotonic())


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task]:
    """Do work that never ends by itself while the block runs. Raises what broke the work."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def hear(client: Client, talk: PacedTalk) -> None:
    """Note in `talk` what comes; the n-th agent frame answers the n-th user frame."""
    samples = 0.0
    async for message in client.messages():
        if message.kind is Kind.HANDSHAKE:
            talk.began = True
            talk.ready.set()
        elif message.kind is Kind.ERROR:
            talk.error = message.text
        elif message.data.get("type") == "stats":
            talk.late_by_server = message.data["late_frames"]
        elif message.pcm is not None:
            talk.heard_at.append(message.at)
            samples += len(message.pcm)
            frame = int(samples / FRAME_SAMPLES + 0.5) - 1
            if len(talk.latencies) <= frame < len(talk.sent_at):
                talk.latencies.append(message.at - talk.sent_at[frame])
    talk.over = True
    talk.ready.set()


def voice(seconds: float = 20.0) -> np.ndarray:
    """A sound like speech: noise in syllables of a quarter second, float32 [n]."""
    rng = np.random.default_rng(0)
    n = int(seconds * SAMPLE_RATE)
    envelope = np.clip(np.sin(np.arange(n) * 2 * np.pi * 2 / SAMPLE_RATE), 0, 1)
    pauses = np.sin(np.arange(n) * 2 * np.pi * 0.15 / SAMPLE_RATE) > -0.3
    return (rng.standard_normal(n) * 0.1 * envelope * pauses).astype(np.float32)


@contextlib.asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """Measure every 10 ms of the block how late this event loop wakes up, in seconds."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_PERIOD_SECONDS)
            lags.append(time.monotonic() - before - LAG_PERIOD_SECONDS)

    async with beside(watch()):
        yield lags


# -- crowd -----------------------------------------------------------------------------------------
#
# People who come and go: each joins, talks for a while, leaves in one of several ways, returns.
# All of it is drawn from a seed, so that two soaks put the same load on a server.

SHORTEST_SECONDS, LONGEST_SECONDS = 3.0, 400.0  # of a talk; the longest outlast the context
LONGEST_SHARE = 0.25  # of the whole time that one talk takes at most
AWAY_SECONDS = 2.0  # between two talks, at most
QUIET_SECONDS = 5.0  # for which a person stays after the last audio, at most
PIECE_SECONDS = 2.0  # of speech between two things a person may do
SAY_SHARE, CANCEL_SHARE = 0.3, 0.1  # of these pieces
LEAVES = {"politely": 0.6, "hung up": 0.25, "fell silent": 0.15}  # how often each
TEXTS = (
    "The train to the coast leaves from the platform behind you.",
    "One moment, please.",
    "I have written that down, and you will get a copy of it by the end of the day.",
)


@dataclass
class Tally:
    counts: Counter[str] = field(default_factory=Counter)  # frames of user audio, says, leaves, …
    errors: list[str] = field(default_factory=list)  # of conversations the server ended
    waits: list[float] = field(default_factory=list)  # seconds for a handshake, with a slot free


class Person:
    def __init__(self, url: str, seed: int, tally: Tally) -> None:
        self._url, self._tally = url, tally
        self._rng = random.Random(seed)
        self._pcm = voice()

    async def live(self, until: float) -> None:
        """Come and go until then (`time.monotonic`)."""
        longest = min(LONGEST_SECONDS, LONGEST_SHARE * (until - time.monotonic()))
        longest = max(SHORTEST_SECONDS, longest)
        while (left := until - time.monotonic()) > SHORTEST_SECONDS:
            await asyncio.sleep(min(left, self._rng.uniform(0, AWAY_SECONDS)))
            # as many short talks as long ones, on a scale of ratios
            length = self._rng.uniform(math.log(SHORTEST_SECONDS), math.log(longest))
            ends = min(until, time.monotonic() + math.exp(length))
            (how,) = self._rng.choices(list(LEAVES), list(LEAVES.values()))
            talk = PacedTalk()
            try:
                hung_up = await self._talk(talk, ends, how)
            except EngineError as error:  # nobody answers at all
                self._tally.errors.append(str(error))
                continue
            if not talk.began and talk.error.startswith("busy: "):
                self._tally.counts["refused"] += 1
                continue
            self._tally.counts += Counter(conversations=1, frames=len(talk.sent_at))
            if hung_up:
                self._tally.errors.append(talk.error or "the server hung up without a word")
            else:
                self._tally.counts[how] += 1

    async def _talk(self, talk: PacedTalk, ends: float, how: str) -> bool:
        """One conversation; whether the server ended it."""
        asked = time.monotonic()
        async with Client(self._url) as client, beside(hear(client, talk)):
            await talk.ready.wait()
            if talk.began:  # it got a slot, so one was free
                self._tally.waits.append(time.monotonic() - asked)
            while not talk.over and (left := ends - time.monotonic()) > FRAME_SECONDS:
                await self._act(client)
                await speak(client, talk, self._pcm, min(PIECE_SECONDS, left))
            if how == "fell silent" and not talk.over:
                await asyncio.sleep(self._rng.uniform(0, QUIET_SECONDS))
            hung_up = talk.over
            if how == "hung up":
                await client.vanish()
        return hung_up

    async def _act(self, client: Client) -> None:
        drawn = self._rng.random()
        if drawn < SAY_SHARE:
            self._tally.counts["says"] += 1
            await client.say(self._rng.choice(TEXTS))
        elif drawn < SAY_SHARE + CANCEL_SHARE:
            await client.send_metadata(type="cancel")
