"""A slice of the fuzzer (tests/wire/fuzz.py), beside a neighbour whose words must not change."""

import asyncio
import logging

import pytest

from engine.wire.protocol import Kind
from tests.wire.fuzz import fuzz
from tests.wire.peer import FRAME, eventually, talking


async def talk(server):
    """What a neighbour hears of 60 frames."""
    async with talking(server.url, seed=7) as peer:
        for _ in range(60):
            await peer.send(Kind.AUDIO, FRAME)
            await peer.until(Kind.AUDIO)
    return peer.text, b"".join(peer.of(Kind.AUDIO))


async def test_no_message_is_left_uncounted(monkeypatch):
    sent = []

    async def send(*_given):
        await asyncio.sleep(0)
        sent.append(3)
        return 3

    monkeypatch.setattr("tests.wire.fuzz.fuzz_once", send)
    counts, _ = await fuzz("nowhere", 1, messages=100, connections=10)
    assert counts["messages"] == sum(sent) >= 100


@pytest.mark.parametrize("seed", [1, 2])
async def test_noise_at_every_layer_is_nobodys_fault_and_reaches_no_neighbour(serve, caplog, seed):
    served = serve(slots=12)
    alone = await talk(served)
    beside, (counts, faults) = await asyncio.gather(
        talk(served), fuzz(served.url, seed, messages=600, connections=60)
    )
    assert beside == alone
    assert counts["messages"] >= 600
    assert faults == []
    logged = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert [line for line in logged if "engine/" in line] == []  # no fault of our own code
    await eventually(lambda: served.engine.free == 12)
