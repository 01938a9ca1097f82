"""Capacity, admission, overload and slack, on a fake clock."""

import pytest

from engine.errors import BusyError
from engine.runtime.load import Overload, Relief, Slack, TickTable, time_ticks
from engine.runtime.seat import Ended, Renewed
from engine.weights.sizing import RESERVE_BYTES, WORK_BYTES, slots_by_memory
from tests.runtime.rig import Rig

GB = 10**9
A10G = {1: 0.026, 2: 0.028, 4: 0.033, 8: 0.043, 16: 0.061}  # int8, seconds
A10G_BF16 = {1: 0.047, 2: 0.052, 4: 0.060}


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """Takes so long for a tick or a piece, more for the first of each, and hiccups when told to."""

    def __init__(self, ticks: dict[int, float], piece: float = 0.015, first: float = 0.0) -> None:
        self.buckets, self.first = tuple(ticks), first
        self.seconds: dict[int | str, float] = {**ticks, "piece": piece}
        self.hiccups: dict[int, float] = {}  # number of a run, from 0 -> seconds on top
        self.runs: list[int | str] = []
        self.taken = 0.0

    def run(self, what: int | str) -> float:
        compiling = 0.0 if what in self.runs else self.first
        seconds = self.seconds[what] + compiling + self.hiccups.get(len(self.runs), 0.0)
        self.runs.append(what)
        self.taken += seconds
        return seconds

    def timed(self) -> TickTable:
        return time_ticks(self.buckets, self.run, (64,), lambda columns: self.run("piece"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(overload: Overload, clock: Clock, seconds: float, tick: float) -> None:
    """Ticks of this length, one every 80 ms."""
    for _ in range(int(seconds / 0.08)):
        clock.now += 0.08
        overload.add_tick(tick)


def test_slots_are_what_fits_beside_the_reserve():
    room = RESERVE_BYTES + WORK_BYTES
    assert slots_by_memory(room + int(4.9 * GB), GB) == 4
    assert slots_by_memory(room + 80 * GB, GB) == 79  # and a spare for renewals
    assert slots_by_memory(room + 99 * GB, GB) == 96  # the largest bucket
    assert slots_by_memory(room // 2, GB) == 0


def test_the_spec_states_four_eight_and_sixteen_for_an_a10g():
    whole, codec, gib = 23_028 << 20, int(0.36 * (1 << 30)), 1 << 30
    for weights, slot, slots in ((14.32, 1.49, 4), (14.32, 0.77, 8), (7.45, 1.49, 8)):
        free = whole - codec - int(weights * gib)
        assert slots_by_memory(free, int(slot * gib)) == slots
    free = whole - codec - int(7.45 * gib)
    assert slots_by_memory(free, int(0.77 * gib)) == 16


def test_what_a_first_tick_and_a_first_piece_compile_does_not_count():
    table = Machine(A10G, first=3.0).timed()
    assert (table.seconds, table.pieces) == (A10G, {64: 0.015})


def test_a_tenth_of_the_ticks_may_be_slower_than_what_counts_and_no_more():
    fast, slow, warm_ups = 0.01, 0.05, [0.0] * 2
    ticks = {1: [*warm_ups, *[fast] * 17, *[slow] * 3], 2: [*warm_ups, *[fast] * 18, *[slow] * 2]}
    pieces, ticks = iter(ticks[2]), {size: iter(taken) for size, taken in ticks.items()}
    table = time_ticks((1, 2), lambda slots: next(ticks[slots]), (64,), lambda _: next(pieces))
    assert (table.seconds, table.pieces) == ({1: slow, 2: fast}, {64: fast})


def test_a_hiccup_of_more_than_a_second_cuts_no_slots():
    for start in range(22 * 6):
        machine = Machine(A10G)
        machine.hiccups = dict.fromkeys(range(start, start + 12), 0.1)
        assert machine.timed().seconds == A10G


def test_timing_takes_less_than_six_seconds_of_an_a10gs_projected_ticks():
    for machine in (Machine(A10G), Machine(A10G_BF16, piece=0.1)):
        machine.timed()
        assert machine.taken < 6


def test_a_bucket_never_takes_longer_than_a_larger_one():
    table = TickTable({1: 0.03, 2: 0.075, 4: 0.035, 8: 0.06})
    assert [table.tick(slots) for slots in (1, 2, 3, 4, 5)] == [0.03, 0.035, 0.035, 0.035, 0.06]
    assert table.tick(9) == float("inf")


def test_slots_in_time_are_those_of_the_largest_bucket_within_the_limit():
    assert TickTable({1: 0.02, 4: 0.06, 8: 0.061}).slots_in_time() == 4
    assert TickTable({1: 0.09}).slots_in_time() == 0


@pytest.mark.parametrize(
    "seconds",
    [
        {1: 0.03, 2: 0.075, 4: 0.035},
        {1: 0.03, 2: 0.04, 4: 0.08, 8: 0.06, 12: 0.09},
        {1: 0.09, 2: 0.03, 4: 0.071},
        {4: 0.03, 8: 0.09},
    ],
)
def test_admission_lets_in_exactly_the_slots_in_time(clock, seconds):
    table = TickTable(seconds)
    overload, live = Overload(clock, table), 0
    while overload.admits(live):
        live += 1
    assert live == table.slots_in_time()


def test_admission_asks_for_the_tick_with_one_more(clock):
    overload = Overload(clock, TickTable({1: 0.03, 2: 0.05, 4: 0.09}))
    assert overload.admits(1)
    assert not overload.admits(2)


def test_slow_ticks_close_admission_until_ten_good_seconds_have_passed(clock):
    overload = Overload(clock, TickTable({8: 0.05}))
    run(overload, clock, 2, tick=0.072)
    assert not overload.admits(3)
    run(overload, clock, 12, tick=0.05)
    assert overload.admits(3)


def test_four_slow_ticks_in_a_hundred_close_nothing_and_six_do(clock):
    for slow, admits in ((4, True), (6, False)):
        overload = Overload(clock, TickTable({8: 0.05}))
        for number in range(100):
            clock.now += 0.08
            overload.add_tick(0.09 if number % 100 < slow else 0.05)
        assert overload.admits(3) == admits


def test_overload_pauses_the_recogniser_first_and_then_ends_the_newest(clock):
    overload, asked = Overload(clock), []
    for _ in range(4):
        for _ in range(62):  # 5 s
            clock.now += 0.081
            overload.add_tick(0.079)
            asked.append((round(clock.now - 100, 1), overload.step(transcribing=True)))
    asked = [(at, step) for at, step in asked if step is not Relief.NOTHING]
    assert [step for _, step in asked[:2]] == [Relief.PAUSE_RECOGNISER, Relief.END_NEWEST]
    assert 5 <= asked[0][0] < 6
    assert asked[1][0] - asked[0][0] >= 5


def test_without_a_recogniser_the_newest_is_ended_at_once(clock):
    overload = Overload(clock)
    run(overload, clock, 1, 0.079)
    assert overload.step(transcribing=False) is Relief.NOTHING
    run(overload, clock, 5.2, 0.079)
    assert overload.step(transcribing=False) is Relief.END_NEWEST


def test_a_single_slow_tick_says_nothing_of_the_machine(clock):
    overload = Overload(clock)
    run(overload, clock, 0.1, 0.5)
    assert overload.admits(1)
    assert overload.step(True) is Relief.NOTHING
    assert not overload.shedding


@pytest.mark.parametrize("tick", [0.5, 1.2, 3.0])
def test_ticks_so_long_that_few_fit_into_ten_seconds_are_overload_all_the_same(clock, tick):
    overload, steps = Overload(clock), set()
    for _ in range(int(16 / tick)):
        clock.now += tick
        overload.add_tick(tick)
        steps.add(overload.step(transcribing=False))
    assert not overload.admits(1)
    assert Relief.END_NEWEST in steps


def test_a_short_peak_is_no_overload(clock):
    overload = Overload(clock)
    run(overload, clock, 1, 0.079)
    assert overload.step(True) is Relief.NOTHING
    assert overload.shedding
    run(overload, clock, 12, 0.04)
    assert overload.step(True) is Relief.NOTHING
    assert not overload.shedding


def test_a_piece_of_a_prompt_runs_only_where_nobody_gets_late_by_it():
    slack = Slack()
    slack.note("piece", 0.030, 1.0)
    slack.note("tick", 0.060, 1.0)
    rig = Rig()
    one = rig.join(ready=False)
    assert slack.allows(1.0, None, one, "piece", 0)
    assert slack.allows(1.0, 1.0, one, "piece", 0)
    assert slack.allows(
        1.019, 1.0, one, "piece", 0
    )  # 30 + 60 ms, and 10 around them, are over in 120
    assert not slack.allows(1.021, 1.0, one, "piece", 0)


def test_a_piece_has_as_many_columns_as_make_nobody_late():
    slack, seat = Slack({16: 0.014, 64: 0.056}), Rig().join(ready=False)
    assert slack.fit_piece(1.0, None, seat) == 64  # nobody talks
    for tick, columns in ((0.050, 64), (0.055, 16), (0.097, None)):
        slack = Slack({16: 0.014, 64: 0.056})
        slack.note("tick", tick, 1.0)
        assert slack.fit_piece(1.0, 1.0, seat) == columns
    slack = Slack({16: 0.014, 64: 0.056})
    slack.note("piece", 0.120, 1.0, 64)  # slower than it was at the start: the small ones go on
    assert slack.fit_piece(1.0, 1.0, seat) == 16
    assert slack.fit_piece(12.0, 12.0, seat) == 64  # it is forgotten


@pytest.mark.parametrize(("tick", "columns"), [(0.026, 64), (0.028, 16), (0.059, 16)])
def test_where_all_slots_are_taken_a_piece_fits_between_two_ticks(tick, columns):
    assert TickTable({8: 0.02, 16: tick}, {16: 0.014, 64: 0.056}).piece_when_full() == columns
    assert TickTable({16: tick, 32: 0.09}, {16: 0.014, 64: 0.056}).piece_when_full() == columns


def test_work_that_never_fits_is_done_after_five_seconds_for_all_who_wait():
    slack, rig = Slack({0: 0.2}), Rig(slots=3)
    one, other, leaver = (rig.join(ready=False) for _ in range(3))
    for now in (10.0, 12.0, 15.0):
        assert not any(slack.allows(now, now, seat, "piece", 0) for seat in (one, other, leaver))
    slack.forget(leaver)
    assert slack.allows(15.1, 15.1, one, "piece", 0)
    assert not slack.allows(
        15.2, 15.2, one, "piece", 0
    )  # one piece; the next after five seconds more
    assert slack.allows(15.3, 15.3, other, "piece", 0)
    assert not slack.allows(15.4, 15.4, leaver, "piece", 0)  # who sits there now waits anew
    for seat in (one, leaver):
        slack.forget(seat)
    assert not slack.allows(30.0, 30.0, other, "piece", 0)  # nor does an old refusal count


def test_a_renewal_runs_between_ticks_and_is_told_to_the_client():
    rig, done = Rig(), []
    seat = rig.join()

    def work():
        for piece in range(3):
            done.append(piece)
            yield
        return 7

    rig.backend.renewals[seat.slot] = work()
    rig.hear(seat, 1)
    rig.advance(0.2)
    assert done == [0, 1, 2]
    assert Renewed(7) in rig.outputs[seat]


def test_lasting_overload_ends_the_newest_conversation_but_never_the_last():
    rig = Rig(slots=2)
    first, second = rig.join(), rig.join()
    speak, rig.backend.speak = rig.backend.speak, None

    def slow(text, hush):
        rig.now += 0.085
        return speak(text, hush)

    rig.backend.speak = slow
    for _ in range(300):
        for seat in (first, second):
            if not seat.left:
                rig.hear(seat, 1)
        rig.turn()
        rig.now += 0.001
    assert second.left
    assert not first.left
    assert isinstance(rig.outputs[second][-1], Ended)
    with pytest.raises(BusyError, match="retry"):
        rig.join()


def test_what_stays_when_quiet_frames_are_dropped_keeps_its_order():
    rig = Rig(slots=1)
    seat = rig.join()
    for level in (0.1, 0.001, 0.2, 0.3, 0.002, 0.4):
        rig.hear(seat, level=level)
    assert seat.drop_quiet(3) == 2
    rig.advance(1.0)
    heard = [round(float(row[0]), 3) for row in rig.backend.heard[1:]]
    assert heard == [0.1, 0.2, 0.3, 0.4]


def test_a_pause_of_the_recogniser_that_was_enough_ends_nobody(clock):
    overload, asked = Overload(clock), []
    for _ in range(250):  # 20 s, of which the recogniser costs the first six too much
        clock.now += 0.08
        overload.add_tick(0.06 if Relief.PAUSE_RECOGNISER in asked else 0.079)
        asked.append(overload.step(transcribing=True))
    assert set(asked) == {Relief.NOTHING, Relief.PAUSE_RECOGNISER}
