"""What a newcomer needs from files is read outside the thread that runs frames."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engine.errors import ModelError
from engine.runtime.backend import Opening
from engine.runtime.personaplex import PersonaPlexBackend
from engine.runtime.scheduler import Scheduler
from engine.runtime.seat import Ended, Ready
from tests.runtime.playing import MINE
from tests.runtime.rig import NotingBackend, NotingDirector, Rig

ENOUGH_SECONDS = 60  # for an event that comes at once: only a failure waits so long


class SlowReader(NotingBackend):
    """Reads a voice until a test lets it go on."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.may_read, self.readers = threading.Event(), []

    def prepare(self, opening: Opening) -> None:
        self.readers.append(threading.current_thread().name)
        assert self.may_read.wait(ENOUGH_SECONDS)
        if opening.voice == "broken":
            raise ModelError("this voice is broken")


def test_frames_go_on_while_a_newcomers_voice_is_read_in_another_thread():
    backend, outputs = SlowReader(2), []
    rig = Rig(backend=backend)
    backend.may_read.set()
    neighbour = rig.join()
    backend.may_read.clear()
    rig.scheduler._loader = ThreadPoolExecutor(1, "voices")

    newcomer = rig.scheduler.join(Opening("V"), NotingDirector(), outputs.extend)
    rig.play({neighbour: 0.0}, 1.0)
    assert len(rig.frames(neighbour)) >= 11
    assert not newcomer.is_open
    assert rig.turn() is None  # nobody is kept awake by a voice that is being read
    backend.may_read.set()
    newcomer.prepared.result(ENOUGH_SECONDS)
    rig.advance(1)
    assert outputs == [Ready()]
    assert backend.readers[-1].startswith("voices")


def test_the_scheduler_wakes_up_when_a_voice_is_read():
    backend, ready = SlowReader(1), threading.Event()
    scheduler = Scheduler(backend)
    scheduler.start()
    scheduler.join(Opening("V"), NotingDirector(), lambda outputs: ready.set())
    backend.may_read.set()
    assert ready.wait(ENOUGH_SECONDS)
    scheduler.stop()


def test_a_voice_that_cannot_be_read_ends_its_own_conversation_only():
    backend = SlowReader(2)
    backend.may_read.set()
    rig = Rig(backend=backend)
    neighbour, outputs = rig.join(), []
    rig.scheduler.join(Opening("broken"), NotingDirector(), outputs.extend)
    rig.hear(neighbour)
    rig.advance(1)
    [ended] = outputs
    assert isinstance(ended, Ended)
    assert str(ended.error).endswith("this voice is broken")
    assert len(rig.frames(neighbour)) == 1


def test_who_left_before_its_turn_came_is_not_read():
    backend = SlowReader(1)
    backend.may_read.set()
    rig = Rig(backend=backend)
    seat = rig.join(ready=False)
    rig.scheduler.leave(seat, "left")
    rig.scheduler._read_files(seat)
    assert len(backend.readers) == 1  # when it joined


@pytest.mark.parametrize("voice", ["TINYF0", "TINYM0"])
def test_a_prepared_voice_is_opened_without_a_look_at_its_file(tiny, voice, monkeypatch):
    backend = PersonaPlexBackend(tiny, slots=1)
    opening = Opening(voice, MINE.text_ids)
    backend.prepare(opening)

    def refuse(*args):
        raise AssertionError("a file is read in the frames' thread")

    monkeypatch.setattr(tiny.voices, "path", refuse)
    monkeypatch.setattr(tiny.voices, "audio", refuse)
    assert sum(1 for _ in backend.open(0, opening)) > 0
    assert sum(1 for _ in backend.open(0, opening)) == 0  # it is kept
    assert np.isfinite(backend.context_used(0))
