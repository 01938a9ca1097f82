"""One slow moment of the machine delays nobody who joins later, however it came and wherever.

On a clock that a test turns by hand. What counts is how long a newcomer waits while the backend
does nothing: work takes its time, a memory of slow work must not.
"""

import contextlib
import random
from collections.abc import Mapping

import numpy as np
import pytest

from engine.config import FRAME_SECONDS, LATE_SECONDS
from engine.errors import BusyError
from engine.runtime.load import PATIENCE_SECONDS, Overload, Slack, TickTable
from engine.runtime.seat import Ready, Seat
from tests.runtime.rig import NotingBackend, Rig

CASES = 40  # of each property
IDLE_SECONDS = 0.3  # for which a newcomer may wait while the backend does nothing
SLOTS = 16


class UnsteadyBackend(NotingBackend):
    """Opening a slot is work too. The works with these numbers take that much longer."""

    def __init__(self, pieces: int, slow: Mapping[int, float]) -> None:
        super().__init__(SLOTS, pieces)
        self.slow, self.done, self.busy = slow, 0, 0.0

    def open(self, slot, opening):
        self.works(self.piece_seconds)
        yield from super().open(slot, opening)

    def attach(self, rig: Rig) -> None:
        def work(seconds: float) -> None:
            seconds += self.slow.get(self.done, 0.0)
            self.done += 1
            self.busy += seconds
            rig.now += seconds

        self.works = work


def idle_waits(
    rig: Rig, newcomers: list[Seat], talking: dict[Seat, float], seconds: float = 20.0
) -> list[float]:
    """For how long each waited for its handshake while the backend did nothing."""
    joined, busy, waits = rig.now, rig.backend.busy, {}

    def look() -> None:
        for seat in newcomers:
            if Ready() in rig.outputs[seat]:
                waits.setdefault(seat, rig.now - joined - (rig.backend.busy - busy))

    while len(waits) < len(newcomers) and rig.now < joined + seconds:
        rig.play(talking, FRAME_SECONDS, meanwhile=look)
        look()
    return [waits.get(seat, float("inf")) for seat in newcomers]


def join_late(seed: int, slow: Mapping[int, float], rest: float = 0.0) -> tuple[list[float], int]:
    """Some come and go and talk, then eight join at once: their waits, and the works before."""
    rnd = random.Random(seed)
    tick, piece = rnd.uniform(0.003, 0.03), rnd.uniform(0.001, 0.03)
    backend = UnsteadyBackend(rnd.randrange(5), slow)
    backend.ticks = TickTable({SLOTS: tick}, {64: piece}) if rnd.random() < 0.5 else None
    rig = Rig(tick=tick, piece=piece, backend=backend)
    backend.attach(rig)
    talking: dict[Seat, float] = {}
    for _ in range(rnd.randrange(1, 6)):
        with contextlib.suppress(BusyError):  # where all of it is slow
            seat = rig.join()
            if rnd.random() < 0.3:
                rig.scheduler.leave(seat, "left")
            elif rnd.random() < 0.6:
                talking[seat] = rnd.random() * FRAME_SECONDS
        rig.play(talking, FRAME_SECONDS * rnd.randrange(6))
    if rest:
        talking = {}
        rig.advance(rest)
        backend.slow = {}
    before = backend.done
    newcomers = [rig.join(ready=False) for _ in range(8)]
    return idle_waits(rig, newcomers, talking), before


def make_slow(seed: int, works: int, most: int) -> dict[int, float]:
    """Up to so many slow moments among the first works; two in ten seconds is no overload."""
    rnd = random.Random(-seed)
    return {rnd.randrange(works): rnd.uniform(0.1, 5.0) for _ in range(most)}


@pytest.mark.parametrize("seed", range(CASES))
def test_one_slow_moment_anywhere_delays_no_later_join(seed):
    usual, works = join_late(seed, {})
    waits, _ = join_late(seed, make_slow(seed, works, 1))
    assert max(waits) <= max(usual) + IDLE_SECONDS


@pytest.mark.parametrize("seed", range(CASES))
def test_several_slow_moments_delay_later_joins_by_less_than_a_second(seed):
    usual, works = join_late(seed, {})
    waits, _ = join_late(seed, make_slow(seed, works, 2) | make_slow(-seed, works, 1))
    assert max(waits) <= max(usual) + 1.0


@pytest.mark.parametrize("seed", range(10))
def test_what_was_slow_minutes_ago_is_forgotten(seed):
    _, works = join_late(seed, {}, rest=300.0)
    slow = dict.fromkeys(range(works), 0.5)  # all of it
    waits, _ = join_late(seed, slow, rest=300.0)
    assert max(waits) <= IDLE_SECONDS


@pytest.mark.parametrize("seed", range(10))
def test_sixteen_who_join_an_idle_server_at_once_are_in_within_a_second_of_work(seed):
    rnd = random.Random(seed)
    slow = {rnd.randrange(40): rnd.uniform(0.1, 5.0)} if seed else {}
    backend = UnsteadyBackend(rnd.randrange(4), slow)
    rig = Rig(tick=rnd.uniform(0.003, 0.05), piece=rnd.uniform(0.001, 0.04), backend=backend)
    backend.attach(rig)
    newcomers = [rig.join(ready=False) for _ in range(SLOTS)]
    assert max(idle_waits(rig, newcomers, {})) <= 1.0


@pytest.mark.parametrize("slow", [1, 2])
@pytest.mark.parametrize("ticks", [3, 9, 10, 15, 20, 100])
def test_one_or_two_slow_ticks_close_no_door(ticks, slow):
    now = 0.0
    overload = Overload(lambda: now)
    for number in range(ticks):
        now += FRAME_SECONDS
        overload.add_tick(3.0 if number >= ticks - slow else 0.02)
    assert overload.admits(1)


def test_where_nothing_ticks_any_more_there_is_no_overload():
    now = 0.0
    overload = Overload(lambda: now)
    for _ in range(50):
        now += FRAME_SECONDS
        overload.add_tick(0.079)
    assert not overload.admits(1)
    now += 1.2
    assert overload.admits(1)


# -- where there is truly no slack -----------------------------------------------------------------


def rig_without_slack(newcomers: int) -> tuple[Rig, dict[Seat, float], list[Seat]]:
    """A piece is known to take longer than ever fits beside the one who talks."""
    backend = UnsteadyBackend(0, {})
    backend.ticks = TickTable({SLOTS: 0.01}, {64: 0.2})
    rig = Rig(tick=0.01, piece=0.2, backend=backend)
    backend.attach(rig)
    talking = {rig.join(): 0.0}
    rig.play(talking, 1.0)
    return rig, talking, [rig.join(ready=False) for _ in range(newcomers)]


def test_what_is_known_to_be_too_long_waits_for_the_whole_patience():
    rig, talking, [newcomer] = rig_without_slack(1)
    rig.play(talking, PATIENCE_SECONDS - 0.1)
    assert not newcomer.is_open
    assert max(rig.delays[next(iter(talking))]) <= LATE_SECONDS


def test_patience_is_shared_by_all_who_wait():
    rig, talking, newcomers = rig_without_slack(8)
    assert max(idle_waits(rig, newcomers, talking)) <= PATIENCE_SECONDS + 1.0


def test_a_measurement_that_is_confirmed_again_and_again_is_doubted_less_and_less_often():
    slack, rig, now, tries = Slack(), Rig(), 0.0, []
    seat = rig.join(ready=False)
    while now < 60:
        if slack.allows(now, now, seat, "piece"):
            tries.append(now)
            slack.note("piece", 0.3, now)
        now += 0.02
    pauses = np.diff(tries)
    assert pauses[0] < IDLE_SECONDS
    assert max(pauses) == pytest.approx(PATIENCE_SECONDS, abs=0.1)
    assert len(tries) < 20
