"""Renewal as calls meet it: between ticks, over sockets, and who has it at all."""

import asyncio

import numpy as np
import pytest

from engine.cli import main
from engine.commands import offline, trace
from engine.config import FRAME_SAMPLES, LATE_SECONDS, ServerConfig
from engine.errors import ModelError
from engine.runtime.backend import Opening, Spoken
from engine.runtime.choose import load_backend
from engine.runtime.load import TickTable
from engine.runtime.renewal import SWAP_COLUMNS, RenewalQueue
from engine.runtime.seat import Ready, Renewed
from engine.wire.client import Client
from engine.wire.protocol import Kind
from tests.runtime.conftest import make_thin
from tests.runtime.rig import NotingBackend, NotingDirector, Rig
from tests.runtime.test_renewal import FRAMES
from tests.runtime.test_renewal_queue import CAPACITY, KEPT, PROMPT, RENEWED
from tests.serving import ApiServer

# -- between ticks, on a fake clock ----------------------------------------------------------------


def test_a_renewal_makes_nobody_late_and_is_told_to_its_client_alone(caplog):
    caplog.set_level("INFO")
    rig = Rig(slots=2, tick=0.05, piece=0.025)
    seats = [rig.join() for _ in range(2)]
    rig.play({seats[0]: 0.0, seats[1]: 0.03}, 1.0)
    rig.backend.make_due(0, pieces=20)
    rig.play({seats[0]: 0.0, seats[1]: 0.03}, 4.0)
    assert Renewed(7) in rig.outputs[seats[0]]
    assert Renewed(7) not in rig.outputs[seats[1]]
    assert b"personaplex_renewals_total 1.0" in rig.metrics.text()
    assert [r.getMessage() for r in caplog.records if "renewed" in r.getMessage()] == [
        "slot 0 renewed: it remembers the last 7 frames"
    ]
    assert max(max(rig.delays[seat]) for seat in seats) <= LATE_SECONDS


def test_two_that_are_due_at_once_are_renewed_one_after_the_other():
    rig = Rig(slots=2)
    seats = [rig.join() for _ in range(2)]
    for slot in (0, 1):
        rig.backend.make_due(slot)
    rig.backend.log.clear()
    rig.advance(0)
    order = [slot for what, slot in rig.backend.log if what == "renewing"]
    assert order == [0, 0, 0, 1, 1, 1]
    assert all(Renewed(7) in rig.outputs[seat] for seat in seats)


class FillingBackend(NotingBackend):
    """Counts the columns in every ring; a renewal has the pieces of the real one."""

    def __init__(self, ticks: TickTable, pushed: int) -> None:
        slots = max(ticks.seconds)
        super().__init__(slots=slots)
        self.ticks, self.piece = ticks, max(ticks.pieces)
        self.queue = RenewalQueue(CAPACITY, ticks.piece_when_full(), slots, CAPACITY)
        [self.kept] = {self.queue.enter(slot, PROMPT, KEPT) for slot in range(slots)}
        self.pushed = dict.fromkeys(range(slots), pushed)
        self.peaks: dict[int, list[int]] = {slot: [] for slot in range(slots)}  # at each renewal
        self.busy = False

    def speak(self, text: np.ndarray, hush: np.ndarray) -> Spoken:
        for slot in np.flatnonzero(self.masks[-1]).tolist():
            self.pushed[slot] += 1
        return super().speak(text, hush)

    def limit_piece(self, columns: int) -> None:
        self.piece = columns

    def renew(self, slot: int):
        due = not self.busy and self.queue.next(self.pushed) == slot
        return self._prefilled(slot) if due else None

    def _prefilled(self, slot: int):
        self.busy, done, before = True, 0, self.pushed[slot]
        while (left := PROMPT + self.kept + self.pushed[slot] - before - done) > SWAP_COLUMNS:
            self.works(self.ticks.pieces[self.piece])
            done += min(self.piece, left)
            yield
        self.works(self.ticks.pieces[self.piece])
        self.peaks[slot].append(self.pushed[slot])
        self.pushed[slot], self.busy = done + left, False
        return self.kept + self.peaks[slot][-1] - before


@pytest.mark.parametrize(
    ("pieces", "tick", "pushed", "rounds"),
    # 64 columns take at most what four times 16 take
    [({16: 0.014, 64: 0.056}, 0.044, 1600, 2), ({16: 0.005, 64: 0.007}, 0.016, 2600, 1)],
    ids=["int8 as projected for an A10G", "bf16 as on an H200"],  # docs/performance.md
)
def test_sixteen_that_fill_up_together_keep_their_prompts(pieces, tick, pushed, rounds):
    backend = FillingBackend(TickTable({16: tick}, pieces), pushed)
    assert backend.kept == KEPT
    rig = Rig(tick=tick, backend=backend)
    seats = [rig.join() for _ in range(16)]
    talking = {seat: 0.005 * number for number, seat in enumerate(seats)}
    while min(len(peaks) for peaks in backend.peaks.values()) < rounds:
        rig.play(talking, 4.0)
    for peaks in backend.peaks.values():
        assert max(peaks) < CAPACITY  # not a column of a prompt was overwritten
        for later in peaks[1:]:
            assert later - RENEWED > 1000  # frames from one to the next: 80 s and more
    assert max(max(rig.delays[seat]) for seat in seats) <= LATE_SECONDS


def test_eighty_that_fill_up_together_keep_their_prompts_and_1000_frames():
    slots, rounds, tick = 80, 6, 0.0421  # all of them would take a minute; the pace is the same
    # One H100 in int8, rings full: the tick of h100-tick-3.json, pieces as in docs/performance.md.
    backend = FillingBackend(TickTable({slots: tick}, {16: 0.0076, 64: 0.0091}), 1200)
    assert backend.kept == KEPT
    rig = Rig(tick=tick, backend=backend)
    seats = [rig.join() for _ in range(slots)]
    begin = next(
        n for n in range(CAPACITY) if backend.queue.next(dict.fromkeys(range(slots), n)) is not None
    )
    backend.pushed = dict.fromkeys(range(slots), begin)
    talking = {seat: 0.08 * number / slots for number, seat in enumerate(seats)}
    frames = rounds * backend.queue.lasts(PROMPT + backend.kept)
    rig.play(talking, 0.08 * frames)
    done = sum(map(len, backend.peaks.values()))
    assert done >= rounds - 1
    # The last of them is over before its ring is full, at the pace that was seen.
    assert begin + slots / done * frames < CAPACITY
    assert max(max(rig.delays[seat]) for seat in seats) <= LATE_SECONDS


def mid_renewal() -> Rig:
    rig = Rig(slots=2)
    seat = rig.join()
    rig.backend.make_due(0)
    rig.backend.log.clear()
    rig.turn()
    assert rig.backend.log == [("renewing", 0)]
    assert seat.live
    return rig


def test_who_leaves_in_the_midst_of_a_renewal_ends_it_before_the_slot_is_closed():
    rig = mid_renewal()
    [seat] = rig.outputs
    rig.scheduler.leave(seat, "left")
    rig.turn()
    assert rig.backend.log == [("renewing", 0), ("renewal over", 0), ("close", 0)]
    other = rig.join()
    rig.backend.make_due(other.slot)
    rig.advance(0)
    assert list(rig.outputs[other]) == [Ready(), Renewed(7)]


def test_who_restarts_in_the_midst_of_a_renewal_is_not_renewed_with_its_old_words():
    rig = mid_renewal()
    [seat] = rig.outputs
    rig.scheduler.restart(seat, Opening("V"), NotingDirector())
    rig.advance(1)
    assert rig.backend.log[:3] == [("renewing", 0), ("renewal over", 0), ("close", 0)]
    assert list(rig.outputs[seat]) == [Ready(), Ready()]


def test_a_renewal_that_fails_ends_nobodys_call(caplog):
    rig = Rig(slots=2)
    seats = [rig.join() for _ in range(2)]

    def fails():
        yield
        raise MemoryError("no room for a renewal")

    rig.backend.renewals[0] = fails()
    for _ in range(3):
        for seat in seats:
            rig.hear(seat)
        rig.advance(0.08)
    assert [len(rig.frames(seat)) for seat in seats] == [3, 3]
    assert "a renewal failed" in caplog.text
    rig.backend.make_due(1)  # the spare is free for the other
    rig.advance(0.1)
    assert Renewed(7) in rig.outputs[seats[1]]


# -- over a real socket ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_calls(tmp_path_factory, never_overloaded):
    """A server with the tiny model and a context of 90 frames."""
    folder = make_thin(tmp_path_factory.mktemp("roomy"), context=90)
    config = ServerConfig(model=str(folder), device="cpu", slots=1, renewal_frames=FRAMES)
    backend = load_backend(config, lambda phase, percent: None)
    with ApiServer(load=lambda progress: backend) as server:
        yield server


async def events_of_a_long_call(url: str, frames: int) -> list[dict]:
    """All events of a call in which this number of frames is sent and heard."""
    events, heard = [], 0
    async with asyncio.timeout(60), Client(url, text_prompt="Hi", events=1) as client:
        async for message in client.messages():
            if message.kind is Kind.HANDSHAKE:
                for _ in range(frames):
                    await client.send_audio(np.zeros(FRAME_SAMPLES, np.float32))
            elif message.kind is Kind.METADATA:
                events.append(message.data)
            elif message.kind is Kind.AUDIO:
                heard += len(message.pcm)
            if heard >= frames * FRAME_SAMPLES:
                return events
            assert message.kind is not Kind.ERROR, message.text
    raise AssertionError(f"closed with {client.close_code}")


def test_a_client_sees_its_context_fill_and_is_told_of_the_renewal(long_calls):
    events = asyncio.run(events_of_a_long_call(long_calls.url, 56))
    renewed = [event for event in events if event["type"] == "renewed"]
    assert renewed
    assert FRAMES <= renewed[0]["frames"] < FRAMES + 10  # those that came meanwhile too
    at = renewed[0]["t"]
    used = [(event["t"], event["context_used"]) for event in events if event["type"] == "stats"]
    before = [share for t, share in used if t < at]
    after = [share for t, share in used if t > at]
    assert before == sorted(before)
    assert after[0] < before[-1] < 1


# -- who has it ------------------------------------------------------------------------------------


def test_serve_and_demo_have_it_by_default():
    assert ServerConfig().renewal_frames == 1000
    assert ServerConfig.from_environment({"PERSONAPLEX_RENEWAL_FRAMES": "0"}).renewal_frames == 0


@pytest.mark.parametrize(
    "words",
    [
        ["trace", "--input", "x.wav", "--out", "o.safetensors"],
        ["offline", "--input-wav", "x.wav", "--output-wav", "o.wav", "--output-text", "o.json"],
    ],
)
def test_trace_and_offline_never_have_it(words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # what they write to is looked at first
    asked = []

    def load(config, *rest):
        asked.append(config.renewal_frames)
        raise ModelError("enough")

    monkeypatch.setattr(offline, "load_backend", load)  # both load by the same function
    for module in (trace, offline):
        monkeypatch.setattr(module, "read_wav", lambda path: np.zeros(FRAME_SAMPLES, np.float32))
    main([*words, "--model", "embedded"])
    assert asked == [0]
