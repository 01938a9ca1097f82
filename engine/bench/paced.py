"""Clients that talk at the pace of speech, and whether this process keeps that pace itself."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, LATE_SECONDS, SAMPLE_RATE
from engine.wire.client import Client
from engine.wire.protocol import Kind

CHUNKS = 4  # a user frame is sent in pieces of 20 ms, as browsers send
CHUNK_SAMPLES = FRAME_SAMPLES // CHUNKS
CHUNK_SECONDS = FRAME_SECONDS / CHUNKS
LAST_ANSWER_SECONDS = 0.5  # waited for it after the last user frame
LAG_PERIOD_SECONDS = 0.01


@dataclass
class Talk:
    """What one paced conversation measured."""

    latencies: list[float] = field(default_factory=list)  # seconds, per frame
    stats: dict[str, Any] = field(default_factory=dict)
    sent_at: list[float] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # or over before it was
    began: bool = False  # the server said: start talking
    error: str = ""  # the last 0x05
    over: bool = False  # the server hung up

    @property
    def refused(self) -> bool:
        """Never let in."""
        return self.over and not self.began

    @property
    def broken(self) -> bool:
        """Let in, and ended by the server."""
        return self.over and self.began

    @property
    def late(self) -> int:
        """Answers that took longer than 120 ms or never came."""
        missing = len(self.sent_at) - len(self.latencies)
        return missing + sum(latency > LATE_SECONDS for latency in self.latencies)


async def converse(url: str, seconds: float, delay: float, pcm: np.ndarray, fmt: str) -> Talk:
    """Talk at the pace of speech for `seconds`, starting after `delay`; less if hung up on."""
    talk = Talk()
    await asyncio.sleep(delay)
    async with Client(url, fmt=fmt) as client, listening(client, talk):
        await talk.ready.wait()
        await speak(client, talk, pcm, seconds)
        await asyncio.sleep(LAST_ANSWER_SECONDS)
    return talk


async def speak(client: Client, talk: Talk, pcm: np.ndarray, seconds: float) -> None:
    """Whole user frames for so long, in pieces of 20 ms, until the server hangs up."""
    start = time.monotonic()
    for n in range(int(seconds / FRAME_SECONDS) * CHUNKS):
        await asyncio.sleep(max(0.0, start + (n + 1) * CHUNK_SECONDS - time.monotonic()))
        if talk.over:
            return
        at = n * CHUNK_SAMPLES % (len(pcm) - CHUNK_SAMPLES)
        await client.hear(pcm[at : at + CHUNK_SAMPLES])
        if n % CHUNKS == CHUNKS - 1:
            talk.sent_at.append(time.monotonic())


@contextlib.asynccontextmanager
async def listening(client: Client, talk: Talk) -> AsyncIterator[None]:
    """Note in `talk` what comes from the server meanwhile."""
    hearing = asyncio.create_task(_hear(client, talk))
    try:
        yield
    finally:
        hearing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hearing


async def _hear(client: Client, talk: Talk) -> None:
    """Match the n-th agent frame with the n-th user frame."""
    samples = 0.0
    async for message in client.messages():
        if message.kind is Kind.HANDSHAKE:
            talk.began = True
            talk.ready.set()
        elif message.kind is Kind.ERROR:
            talk.error = message.text
        elif message.kind is Kind.METADATA and message.data["type"] == "stats":
            talk.stats.update(message.data)
        elif message.pcm is not None:
            samples += len(message.pcm)
            frame = int(samples / FRAME_SAMPLES + 0.5) - 1
            if len(talk.latencies) <= frame < len(talk.sent_at):
                talk.latencies.append(message.at - talk.sent_at[frame])
    talk.over = True
    talk.ready.set()


def voice(seconds: float = 20.0) -> np.ndarray:
    """Something like speech: noise in syllables of a quarter second, float32 [n]."""
    rng = np.random.default_rng(0)
    n = int(seconds * SAMPLE_RATE)
    envelope = np.clip(np.sin(np.arange(n) * 2 * np.pi * 2 / SAMPLE_RATE), 0, 1)
    pauses = np.sin(np.arange(n) * 2 * np.pi * 0.15 / SAMPLE_RATE) > -0.3
    return (rng.standard_normal(n) * 0.1 * envelope * pauses).astype(np.float32)


@contextlib.asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """How late this event loop wakes up, in seconds, measured every 10 ms meanwhile."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_PERIOD_SECONDS)
            lags.append(time.monotonic() - before - LAG_PERIOD_SECONDS)

    watching = asyncio.create_task(watch())
    try:
        yield lags
    finally:
        watching.cancel()
