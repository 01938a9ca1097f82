"""The user's words through scheduler, session and socket, on the tiny checkpoints."""

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pytest

from engine.config import FRAME_SAMPLES, PAD, ServerConfig
from engine.runtime.backend import Heard, HeardRow, Opening
from engine.runtime.choose import load_backend
from engine.wire.client import read_wav
from engine.wire.protocol import Kind
from tests.model.listening import STT_TINY
from tests.runtime.conftest import TINY
from tests.runtime.rig import NotingBackend, NotingDirector, Rig
from tests.wire.peer import talking

# -- the scheduler ---------------------------------------------------------------------------------


class Hearing(NotingBackend):
    """A backend with a recogniser that takes notes of its flushes."""

    transcribes = transcribing = True

    def flush(self, slots: list[int]) -> dict[int, HeardRow]:
        self.log.append(("flush", *slots))
        return {slot: HeardRow(stt_text=PAD) for slot in slots}


class Flushing(NotingDirector):
    """Wants some steps after its n-th frame."""

    def __init__(self, after: int, steps: int) -> None:
        super().__init__()
        self.after, self.left = after, steps

    @property
    def flushing(self) -> bool:
        return len(self.steps) > self.after and self.left > 0

    def flush(self, heard: HeardRow) -> list[str]:
        self.left -= 1
        return [] if self.left else ["turn"]


def hearing_rig(*directors: NotingDirector) -> tuple[Rig, list]:
    rig = Rig(backend=Hearing(len(directors)))
    seats = []
    for director in directors:
        seats.append(rig.join(director, ready=False))
        seats[-1].opening = Opening("V", transcribe=True)
    rig.advance(0)
    return rig, seats


def flushes(rig: Rig) -> list[tuple]:
    return [entry for entry in rig.backend.log if entry[0] == "flush"]


def test_the_steps_of_a_flush_run_in_idle_time_and_tell_the_turn_at_once():
    rig, (seat, other) = hearing_rig(Flushing(2, 3), Flushing(99, 0))
    rig.hear(seat, 1)
    rig.hear(other, 1)
    rig.advance(0)
    assert flushes(rig) == []
    rig.hear(seat, 1)
    rig.advance(0)
    assert flushes(rig) == [("flush", 0)] * 3
    assert rig.notices(seat) == ["turn"]


def test_a_frame_that_is_ready_goes_before_a_flush():
    rig, (seat, other) = hearing_rig(Flushing(1, 2), Flushing(99, 0))
    rig.hear(seat, 1)
    rig.turn()
    rig.hear(other, 1)
    ticks = rig.ticks
    rig.turn()
    assert rig.ticks == ticks + 1
    assert flushes(rig) == []


def test_a_recogniser_that_is_switched_off_is_not_flushed():
    rig, (seat,) = hearing_rig(Flushing(1, 2))
    rig.backend.transcribing = False
    rig.hear(seat, 1)
    rig.advance(0.1)
    assert flushes(rig) == []


# -- over the socket -------------------------------------------------------------------------------


class Spoken:
    """A backend whose recogniser hears what a test wants, in every slot: the real one is random."""

    def __init__(self, backend, tokens: list[int], done_after: int) -> None:
        self._backend, self._tokens, self._done_after = backend, tokens, done_after
        self._frames: dict[int, itertools.count] = {}

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def open(self, slot: int, opening: Opening):
        self._frames[slot] = itertools.count()
        return self._backend.open(slot, opening)

    def listen(self, pcm: np.ndarray, active: np.ndarray) -> Heard:
        heard = self._backend.listen(pcm, active)
        for slot in np.flatnonzero(active):
            frame = next(self._frames[slot])
            if heard.stt_text is not None and heard.stt_text[slot] >= 0:
                heard.stt_text[slot] = self._tokens[frame] if frame < len(self._tokens) else PAD
                heard.pause[slot] = 0.95 if frame >= self._done_after else 0.02
        return heard

    def flush(self, slots: list[int]) -> dict[int, HeardRow]:
        return {
            slot: HeardRow(stt_text=PAD, pause=row.pause)
            for slot, row in self._backend.flush(slots).items()
        }


def load(_progress):
    config = ServerConfig(model=str(TINY), transcribe=str(STT_TINY), slots=3, device="cpu")
    return load_backend(config, lambda phase, percent: None)


def load_spoken(progress):
    backend = load(progress)
    pieces = backend.transcription.tokenizer
    ids = {pieces.piece(token): token for token in range(len(pieces))}
    tokens = [PAD] * 14 + [0, ids["▁river"], PAD, 0, ids["▁garden"], ids["▁a"]]
    return Spoken(backend, tokens, done_after=22)


USER = (read_wav(str(Path(TINY) / "input_user.wav")) * 32767).astype("<i2").tobytes()


async def call(url: str, frames: int, **query) -> list[dict]:
    """All `user_text` events of a conversation of so many frames."""
    async with talking(url, seed=1, **query) as peer:
        for at in range(frames):
            start = at * FRAME_SAMPLES * 2
            await peer.send(Kind.AUDIO, USER[start : start + FRAME_SAMPLES * 2])
        async with asyncio.timeout(60):
            while len(peer.pcm) < frames * FRAME_SAMPLES:
                await peer.next()
        await peer.is_alive()
        ready = [event for event in peer.events if event["type"] == "ready"]
        return ready + [event for event in peer.events if event["type"] == "user_text"]


@pytest.fixture(scope="module")
def spoken_server(serve, never_overloaded):
    return serve(load=load_spoken)


async def test_words_come_as_they_are_spoken_and_the_turn_as_a_whole(spoken_server):
    ready, *texts = await call(spoken_server.url, 34, events=1)
    assert ready["transcript"] is True
    assert [(e["text"], e["final"]) for e in texts] == [
        ("river", False),
        ("river garden", False),
        ("river garden a", False),
        ("river garden a", True),
    ]
    assert all(0 <= event["start"] <= event["end"] <= 40 * 0.08 for event in texts)
    assert texts[0]["start"] == pytest.approx((15 - 6) * 0.08)
    assert texts[-1]["t"] <= 32 * 0.08  # the burst leaves no idle time: seven real frames


async def test_no_words_are_sent_to_a_client_that_did_not_ask(spoken_server):
    assert await call(spoken_server.url, 24) == []


async def test_a_conversation_can_do_without(spoken_server):
    [ready] = await call(spoken_server.url, 24, events=1, transcribe=0)
    assert ready["transcript"] is False


async def test_the_tiny_recognisers_random_words_reach_the_client(serve, never_overloaded):
    ready, *texts = await call(serve(load=load).url, 30, events=1)
    assert ready["transcript"] is True
    assert texts
    assert all(event["text"] for event in texts)


async def test_the_embedded_voice_says_that_there_is_no_transcript(server):
    [ready] = await call(server.url, 5, events=1)
    assert ready["transcript"] is False
