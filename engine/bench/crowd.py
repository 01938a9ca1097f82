"""People who come and go: each joins, talks for a while, leaves in one of several ways, returns.

Drawn from a seed, so that two soaks put the same load on a server. What becomes of the server is
`soak`'s affair.
"""

import asyncio
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from engine.bench.paced import Talk, listening, speak, voice
from engine.config import FRAME_SECONDS
from engine.errors import EngineError
from engine.wire.client import Client

SHORTEST_SECONDS, LONGEST_SECONDS = 3.0, 400.0  # of a talk; the longest outlast the context
LONGEST_SHARE = 0.25  # of the whole time that one talk takes at most
AWAY_SECONDS = 2.0  # between two talks, at most
QUIET_SECONDS = 5.0  # for which one who stops sending stays, at most
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
    """What a whole crowd saw."""

    conversations: int = 0
    frames: int = 0  # of user audio
    refused: int = 0  # joins
    says: int = 0
    leaves: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)  # of conversations the server ended

    def note(self, talk: Talk, hung_up: bool, how: str) -> None:
        """A talk is over; hung_up: the server ended it."""
        if talk.refused and talk.error.startswith("busy: "):
            self.refused += 1
            return
        self.conversations += 1
        self.frames += len(talk.sent_at)
        if hung_up:
            self.errors.append(talk.error or "the server hung up without a word")
        else:
            self.leaves[how] += 1


class Person:
    """One of the crowd."""

    def __init__(self, url: str, seed: int, tally: Tally, fmt: str) -> None:
        self._url, self._tally, self._fmt = url, tally, fmt
        self._rng = random.Random(seed)
        self._pcm = voice()

    async def live(self, until: float) -> None:
        """Come and go until then (`time.monotonic`)."""
        longest = min(LONGEST_SECONDS, LONGEST_SHARE * (until - time.monotonic()))
        while (left := until - time.monotonic()) > SHORTEST_SECONDS:
            await asyncio.sleep(min(left, self._rng.uniform(0, AWAY_SECONDS)))
            ends = min(until, time.monotonic() + self._length(longest))
            (how,) = self._rng.choices(list(LEAVES), list(LEAVES.values()))
            talk = Talk()
            try:
                self._tally.note(talk, await self._talk(talk, ends, how), how)
            except EngineError as error:  # nobody answers at all
                self._tally.errors.append(str(error))

    def _length(self, longest: float) -> float:
        """Seconds of a talk: as many short ones as long ones, on a scale of ratios."""
        longest = max(SHORTEST_SECONDS, longest)
        return math.exp(self._rng.uniform(math.log(SHORTEST_SECONDS), math.log(longest)))

    async def _talk(self, talk: Talk, ends: float, how: str) -> bool:
        """One conversation; whether the server ended it."""
        async with Client(self._url, fmt=self._fmt) as client, listening(client, talk):
            await talk.ready.wait()
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
            self._tally.says += 1
            await client.say(self._rng.choice(TEXTS))
        elif drawn < SAY_SHARE + CANCEL_SHARE:
            await client.tell(type="cancel")
