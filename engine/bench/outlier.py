"""One slow moment of a server, and sixteen who join after it: how long each waits for 0x00.

`measure_joins` starts this file as a server of its own, whose built-in voice takes long once.
"""

import asyncio
import sys
import time

from engine.bench.clients import PacedTalk, beside, hear
from engine.bench.process import Server
from engine.cli import main
from engine.runtime.embedded import EmbeddedBackend
from engine.wire.client import Client

PLACES = ("open", "listen", "speak")
MOST_SECONDS = 2.0  # that anybody may wait for the handshake after a slow moment


def measure_joins(place: str, slow_seconds: float, joins: int = 16) -> list[float]:
    """Seconds until the handshake of each who joins at once, after `place` took so long once."""
    command = [sys.executable, "-m", "engine.bench.outlier", place, str(slow_seconds), "serve"]
    with Server(["--model", "embedded", "--slots", str(joins + 1)], command) as server:
        return asyncio.run(_join(server.url, joins))


async def _join(url: str, joins: int) -> list[float]:
    async with Client(url) as first:  # it lives through the slow moment, and stays
        talk = PacedTalk()
        async with beside(hear(first, talk)):
            await talk.ready.wait()
            return await asyncio.gather(*(_wait_for_handshake(url) for _ in range(joins)))


async def _wait_for_handshake(url: str) -> float:
    started, talk = time.monotonic(), PacedTalk()
    async with Client(url) as client, beside(hear(client, talk)):
        await talk.ready.wait()
        return time.monotonic() - started if talk.began else float("inf")


def plant(place: str, seconds: float) -> None:
    """Make the first call of this method of the built-in voice take so much longer."""
    method, calls = getattr(EmbeddedBackend, place), iter([seconds])

    def slow(*args):
        time.sleep(next(calls, 0.0))
        return method(*args)

    setattr(EmbeddedBackend, place, slow)


if __name__ == "__main__":
    plant(sys.argv[1], float(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
