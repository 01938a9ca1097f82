"""Slots that change hands at any point of a turn: whatever others do meanwhile, nobody is mixed up.

The scheduler's thread is interrupted at every look at its backend, its clock, its directors and at
who has left, and other people's calls are made right there, as other threads could.
"""

import contextlib
import random
from collections.abc import Callable, Generator

import numpy as np
import pytest

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, GREEDY, PAD
from engine.errors import BusyError, ModelError, RefusedError
from engine.runtime import scheduler as scheduling
from engine.runtime.backend import Heard, HeardRow, Opening, Spoken
from engine.runtime.metrics import Metrics
from engine.runtime.personaplex import PersonaPlexBackend
from engine.runtime.scheduler import Scheduler
from engine.runtime.seat import Frame, Output, Seat
from tests.runtime.playing import MINE, audio
from tests.runtime.rig import Inline, NotingBackend, NotingDirector, Rig

SLOTS = 3
TURNS = 1500
INTERRUPTED = 0.05  # of all looks
SILENCE = np.zeros(FRAME_SAMPLES, np.float32)


class Crowd:
    """People who come, go, restart, change settings and speak whenever `interrupt` is called."""

    def __init__(self, seed: int) -> None:
        self.random, self.now, self.busy = random.Random(seed), 1000.0, False
        self.metrics, self.backend = Metrics(), CheckingBackend(self)
        self.scheduler = Scheduler(self.backend, self.metrics, clock=self.clock, loader=Inline())
        self.seats: list[Seat] = []
        self.voices: dict[Seat, set[int]] = {}  # who may be heard on a seat: one name a start
        self.names = self.frames = self.refused = 0

    def clock(self) -> float:
        self.interrupt()
        return self.now

    def interrupt(self) -> None:
        """At times, a burst of what other threads may do here."""
        locked = self.scheduler._wake._is_owned() or any(s._lock.locked() for s in self.seats)
        if self.busy or locked or self.random.random() > INTERRUPTED:
            return
        self.busy = True
        for _ in range(self.random.randrange(1, 6)):
            self.act()
        self.busy = False

    def act(self) -> None:
        act = self.random.choices([self.join, self.leave, self.restart, self.talk], [7, 5, 2, 6])[0]
        if act == self.join or not self.seats:
            return self.join()
        act(self.random.choice(self.seats))

    def opening(self, heard: set[int]) -> tuple[Opening, "CheckedDirector"]:
        self.names += 1
        heard.add(self.names)
        return Opening(str(self.names), transcribe=True), CheckedDirector(self, self.names)

    def join(self) -> None:
        heard: set[int] = set()
        try:
            seat = self.scheduler.join(*self.opening(heard), lambda out: self.hear(out, heard))
        except BusyError:
            self.refused += 1
            return
        self.seats.append(seat)
        self.voices[seat] = heard

    def hear(self, outputs: list[Output], heard: set[int]) -> None:
        self.interrupt()
        for output in outputs:
            if isinstance(output, Frame):
                assert int(output.pcm[0]) in heard, "a frame of somebody else"
                self.frames += 1

    def leave(self, seat: Seat) -> None:
        if self.random.random() < 0.9:  # else it leaves again later
            self.seats.remove(seat)
        self.scheduler.leave(seat, "left")

    def restart(self, seat: Seat) -> None:
        self.scheduler.restart(seat, *self.opening(self.voices[seat]))

    def talk(self, seat: Seat) -> None:
        what = self.random.randrange(3)
        if what == 0:
            self.scheduler.tune(seat, GREEDY)
        elif what == 1:
            seat.push_audio(SILENCE, self.now)
        else:
            with contextlib.suppress(RefusedError):  # 64 are waiting already
                seat.post("say")

    def turn(self) -> None:
        for seat in [seat for seat in self.seats if self.random.random() < 0.7]:
            seat.push_audio(SILENCE, self.now)
        self.scheduler.turn()
        self.now += self.random.choice([0.0, 0.01, FRAME_SECONDS])


class CheckingBackend(NotingBackend):
    """Holds every call against who owns the slot: opened once, closed once, used in between."""

    transcribes = transcribing = True

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(SLOTS)
        self.crowd = crowd
        self.owner: list[int | None] = [None] * SLOTS
        self.ready: set[int] = set()  # slots whose prompts are in
        self.spare_of: int | None = None  # for whom the one spare memory is filled

    def open(self, slot: int, opening: Opening) -> Generator[None]:
        assert self.owner[slot] is None, "opened before it was closed"
        self.owner[slot] = name = int(opening.voice)
        for _ in range(self.crowd.random.randrange(4)):
            self.crowd.interrupt()
            yield
            assert self.owner[slot] == name, "a prompt went on after its slot was closed"
        if self.crowd.random.random() < 0.1:
            raise ModelError("this voice is broken")
        self.ready.add(slot)

    def tune(self, slot: int, sampling) -> None:
        assert slot in self.ready
        self.crowd.interrupt()

    def listen(self, pcm: np.ndarray, active: np.ndarray) -> Heard:
        self.active = {int(slot): self.owner[slot] for slot in np.flatnonzero(active)}
        assert self.ready >= self.active.keys(), "a tick of a slot that is not open"
        self.crowd.interrupt()
        return Heard(text=np.full(SLOTS, 100))

    def speak(self, text: np.ndarray, hush: np.ndarray) -> Spoken:
        self.crowd.interrupt()
        pcm = np.zeros((SLOTS, FRAME_SAMPLES), np.float32)
        for slot, name in self.active.items():
            assert self.owner[slot] == name, "it changed hands in the midst of a tick"
            pcm[slot] = name
        return Spoken(pcm)

    def flush(self, slots: list[int]) -> dict[int, HeardRow]:
        self.crowd.interrupt()
        return {slot: HeardRow(stt_text=self.owner[slot]) for slot in slots}

    def renew(self, slot: int) -> Generator[None] | None:
        assert slot in self.ready
        due = self.spare_of is None and self.crowd.random.random() < 0.2
        return self._filling(self.owner[slot], slot) if due else None

    def _filling(self, name: int, slot: int) -> Generator[None]:
        self.spare_of = name
        try:
            for _ in range(3):
                self.crowd.interrupt()
                yield
                assert self.owner[slot] == name, "renewed for somebody else"
        finally:
            self.spare_of = None

    def close(self, slot: int) -> None:
        assert self.owner[slot] is not None, "closed twice"
        assert self.spare_of != self.owner[slot], "closed in the midst of its renewal"
        self.owner[slot] = None
        self.ready.discard(slot)
        self.crowd.interrupt()


class CheckedDirector(NotingDirector):
    """Knows its own conversation's flushes; fails at times."""

    def __init__(self, crowd: Crowd, name: int) -> None:
        super().__init__()
        self.crowd, self.name = crowd, name

    @property
    def flushing(self) -> bool:
        return self.crowd.random.random() < 0.3

    def flush(self, heard: HeardRow) -> list[str]:
        assert heard.stt_text == self.name, "somebody else's words"
        return ["flushed"]

    def step(self, sampled: int, heard: HeardRow, peak_in: float, peak_out: float):
        self.crowd.interrupt()
        if self.crowd.random.random() < 0.02:
            raise RuntimeError("step failed")
        return PAD, False

    def events(self) -> list[str]:
        return []


@pytest.fixture
def looked_at(monkeypatch):
    """Every look at whether a seat has been left is a place to be interrupted, too."""

    class Watched(Seat):
        crowd: Crowd
        gone = False

        @property
        def left(self) -> bool:
            gone = self.gone
            self.crowd.interrupt()
            return gone

        @left.setter
        def left(self, gone: bool) -> None:
            self.gone = gone

    monkeypatch.setattr(scheduling, "Seat", Watched)
    return Watched


@pytest.mark.parametrize("seed", range(3))
def test_whoever_comes_and_goes_at_whatever_moment_every_slot_is_one_persons(seed, looked_at):
    looked_at.crowd = crowd = Crowd(seed)
    for _ in range(TURNS):
        crowd.turn()
    crowd.busy = True  # nobody else comes
    assert crowd.names > TURNS / 2
    assert crowd.frames > TURNS / 10
    for seat in crowd.seats:
        crowd.scheduler.leave(seat, "left")
    crowd.scheduler.turn()
    assert crowd.backend.owner == [None] * SLOTS
    assert crowd.backend.spare_of is None
    assert crowd.scheduler.free == SLOTS
    assert "personaplex_conversations 0.0" in crowd.metrics.text().decode()


# -- with the model --------------------------------------------------------------------------------


class OwnWords(NotingDirector):
    """The model says what it likes; in its third step something else happens, too."""

    def __init__(self, happens: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.happens = happens

    def step(self, sampled: int, heard: HeardRow, peak_in: float, peak_out: float):
        super().step(sampled, heard, peak_in, peak_out)
        if len(self.steps) == 3:
            self.happens()
        return sampled, False


class Caller:
    """Somebody with ten frames to say, and what they heard."""

    def __init__(self, rig: Rig, happens: Callable[[], None] = lambda: None) -> None:
        self.rig, self.outputs = rig, []
        self.seat = rig.scheduler.join(MINE, OwnWords(happens), self.outputs.extend)

    def talk(self) -> np.ndarray:
        """What is heard until the last frame or the end [T, 1920]."""
        self.rig.advance(1)
        for pcm in audio(1, 10):
            self.seat.push_audio(pcm, self.rig.now)
            self.rig.advance(FRAME_SECONDS)
        return np.stack([output.pcm for output in self.outputs if isinstance(output, Frame)])


def test_who_takes_over_a_slot_in_the_midst_of_a_tick_hears_what_a_fresh_slot_says(thin):
    fresh = Caller(Rig(backend=PersonaPlexBackend(thin, slots=1))).talk()
    rig, successors = Rig(backend=PersonaPlexBackend(thin, slots=1)), []

    def change_places() -> None:
        rig.scheduler.leave(leaver.seat, "left")
        successors.append(Caller(rig))

    leaver = Caller(rig, change_places)
    assert len(leaver.talk()) == 1  # the bootstrap and a frame; the third step's is nobody's
    np.testing.assert_array_equal(successors[0].talk(), fresh)
