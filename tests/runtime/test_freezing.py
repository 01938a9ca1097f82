"""A seat whose line has dropped: time stands still for it, and for nobody else."""

import numpy as np
import pytest

from engine.config import FRAME_SECONDS
from engine.runtime.load import Relief, next_due
from engine.runtime.metrics import Dropped
from tests.runtime.rig import NotingDirector, Rig, ticks_within

GAP = 20.0  # seconds


@pytest.fixture
def rig():
    return Rig()


def test_a_frozen_seat_takes_no_frame_and_gets_none_of_silence(rig):
    seat = rig.join(NotingDirector(wants_frames=True))
    rig.hear(seat, 2)
    rig.scheduler.freeze(seat)
    assert ticks_within(rig, GAP) == 0
    rig.scheduler.thaw(seat)
    assert ticks_within(rig, 1.0) > 0


def test_what_waited_in_it_is_heard_after_it_and_nothing_is_late(rig):
    seat = rig.join()
    rig.hear(seat, 2)
    rig.scheduler.freeze(seat)
    rig.advance(GAP)
    rig.scheduler.thaw(seat)
    rig.advance(1.0)
    assert len(rig.frames(seat)) == 2
    assert max(rig.delays[seat]) <= 2 * FRAME_SECONDS
    assert rig.dropped(*Dropped) == 0


def frames_of(rig, gap, talks):
    """A text that is said, with the user's frames before and after a gap; when each frame came."""
    seat, came = rig.join(NotingDirector(wants_frames=True)), []
    for part in range(2):
        start = rig.now
        rig.play({seat: 0.04} if talks else {}, 1.0)
        came += [frame.ready_at - start for frame in rig.frames(seat)[len(came) :]]
        if gap and not part:
            rig.scheduler.freeze(seat)
            rig.advance(gap)
            rig.scheduler.thaw(seat)
    return came, [float(frame.pcm[0]) for frame in rig.frames(seat)], seat.director.steps


@pytest.mark.parametrize("talks", [True, False])
def test_a_gap_changes_neither_what_is_fed_nor_when(talks):
    came, pcm, steps = frames_of(Rig(), GAP, talks)
    want, whole, undisturbed = frames_of(Rig(), 0.0, talks)
    assert (pcm, steps) == (whole, undisturbed)
    np.testing.assert_allclose(came, want, atol=1e-6)


def test_commands_reach_the_director_of_a_frozen_seat(rig):
    seat = rig.join()
    rig.scheduler.freeze(seat)
    seat.post("an answer")
    rig.advance(0.1)
    assert seat.director.taken == ["an answer"]
    assert rig.notices(seat) == ["took an answer"]


def test_a_frozen_seat_keeps_no_newcomer_waiting(rig):
    """A silent client's frame may come at any moment; a frozen one's does not."""
    seat = rig.join()
    assert next_due([seat], rig.now) is not None
    rig.scheduler.freeze(seat)
    assert next_due([seat], rig.now) is None


def test_prompts_of_a_restart_go_in_while_the_seat_is_frozen():
    rig = Rig(pieces=3)
    seat = rig.join()
    rig.scheduler.restart(seat, seat.opening, NotingDirector())
    rig.scheduler.freeze(seat)
    rig.advance(1.0)
    assert seat.live
    rig.hear(seat)
    assert ticks_within(rig, 1.0) == 0


def test_a_frozen_seat_is_free_for_who_asks_but_not_for_who_joins_yet(rig):
    first, second = rig.join(), rig.join()
    assert (rig.scheduler.free, rig.scheduler.admits_instead()) == (0, True)
    rig.scheduler.freeze(first)
    assert rig.scheduler.free == 1
    rig.scheduler.thaw(first)
    assert rig.scheduler.free == 0
    assert second.frozen_at is None


def test_overload_ends_nobody_who_is_frozen(rig, monkeypatch):
    talker, ghost = rig.join(), rig.join()
    rig.scheduler.freeze(ghost)
    monkeypatch.setattr(rig.scheduler.overload, "step", lambda transcribing: Relief.END_NEWEST)
    rig.hear(talker)
    rig.advance(0.2)
    assert not ghost.left
    assert not talker.left
