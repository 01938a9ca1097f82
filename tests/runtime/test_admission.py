"""Who is let in, by the table that was timed at the start, is in time and makes nobody late.

The scheduler on a fake clock, ticks as long as their bucket's, clients at random moments.
"""

import random

import numpy as np
import pytest

from engine.config import FRAME_SECONDS, LATE_SECONDS
from engine.errors import BusyError
from engine.runtime.backend import Opening
from engine.runtime.load import TickTable
from engine.runtime.seat import Ended, Ready, Seat
from tests.runtime.rig import NotingBackend, Rig

Ticks = dict[int, float]  # slots of a bucket -> seconds of its tick
SLOW_AT_EIGHT = {1: 0.03, 2: 0.04, 4: 0.06, 8: 0.085, 16: 0.13}
CASES = 40  # of the random ones; a review ran 400


class TimedBackend(NotingBackend):
    """A tick takes as long as the smallest bucket that covers its slots."""

    def __init__(self, slots: int, ticks: Ticks, piece: float = 0.015) -> None:
        super().__init__(slots)
        self.ticks = TickTable(ticks, {64: piece})

    def speak(self, text: np.ndarray, hush: np.ndarray):
        self.tick_seconds = self.ticks.tick(int(np.flatnonzero(self.masks[-1]).max()) + 1)
        return super().speak(text, hush)


def admitted(rig: Rig, rnd: random.Random) -> dict[Seat, float]:
    """Clients join, each at a moment of its own, until one is refused: seat -> its phase."""
    talking: dict[Seat, float] = {}
    while True:
        try:
            talking[rig.join()] = rnd.random() * FRAME_SECONDS
        except BusyError:
            return talking
        rig.play(talking, 0.4)


def worst(rig: Rig) -> float:
    return max(max(delays) for delays in rig.delays.values() if delays)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ticks", "slots"),
    [
        ({1: 0.026, 2: 0.028, 4: 0.033, 8: 0.043, 16: 0.0599}, 16),
        ({1: 0.03, 2: 0.04, 4: 0.05, 8: 0.0699}, 4),
        (SLOW_AT_EIGHT, 4),
    ],
)
def test_nobody_who_was_let_in_is_ever_late(ticks, slots, seed):
    rnd, rig = random.Random(seed), Rig(backend=TimedBackend(max(ticks), ticks))
    talking = admitted(rig, rnd)
    assert len(talking) == slots
    rig.play({seat: rnd.random() * FRAME_SECONDS for seat in talking}, 20)
    assert worst(rig) <= LATE_SECONDS


def test_one_more_than_the_table_allows_would_be_late():
    rig = Rig(backend=TimedBackend(8, {1: 0.03, 2: 0.04, 4: 0.05, 8: 0.0699}))
    rig.scheduler.overload._table = None
    talking = {rig.join(): 0.011 * number for number in range(8)}
    rig.play(talking, 20)
    assert worst(rig) > LATE_SECONDS


def of_newcomers(seed: int, pieces: int) -> tuple[float, bool]:
    """The longest wait of those who talk while others join with so many pieces; who got in."""
    rnd = random.Random(seed)
    slots, most = rnd.choice([2, 3, 4, 8]), rnd.uniform(0.01, 0.055)
    least, piece = rnd.uniform(0.2, 1) * most, rnd.uniform(0.005, 0.09)
    ticks = {size: least + (most - least) * part for size, part in ((1, 0), (4, 0.5), (8, 1))}
    rig = Rig(backend=TimedBackend(slots, ticks, piece), piece=piece)
    talking = {rig.join(): rnd.random() * FRAME_SECONDS for _ in range(rnd.randrange(1, slots))}
    rig.play(talking, 1.0)
    rig.backend.pieces = pieces
    new = [rig.join(ready=False) for _ in range(slots - len(talking))]
    rig.play(talking, 4.5)  # less than the patience of who waits for slack
    return max(max(rig.delays[seat]) for seat in talking), any(
        Ready() in rig.outputs[s] for s in new
    )


@pytest.mark.parametrize("pieces", [0, 1, 6], ids=["kept prompt", "short", "long"])
def test_newcomers_make_nobody_late_whatever_ticks_and_pieces_take(pieces):
    outcomes = [of_newcomers(seed, pieces) for seed in range(CASES)]
    assert max(delay for delay, _ in outcomes) <= LATE_SECONDS
    assert any(served for _, served in outcomes)


def test_kept_prompts_do_not_make_the_next_new_one_look_short():
    rig = Rig(backend=TimedBackend(4, {4: 0.05}, piece=0.03), piece=0.03)
    for _ in range(20):
        rig.scheduler.leave(rig.join(), "left")
    assert rig.scheduler._slack_work.slack.estimate("piece", rig.now, size=64) == 0.03


def test_a_prompt_that_breaks_the_backend_ends_its_own_conversation_alone():
    rig = Rig(slots=2)
    neighbour, open_slot = rig.join(), rig.backend.open

    def breaks(slot: int, opening: Opening):
        yield
        raise MemoryError("no room for this prompt")

    rig.backend.open = breaks
    broken = rig.join(ready=False)
    rig.advance(0.1)
    [ended] = rig.outputs[broken]
    assert isinstance(ended, Ended)
    assert "no room" not in str(ended.error)  # details stay in the log
    rig.backend.open = open_slot
    rig.hear(neighbour)
    rig.advance(0.1)
    assert rig.frames(neighbour)
    assert rig.join().slot == broken.slot
