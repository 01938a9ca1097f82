"""The rules of docs/internals.md with ticks and pieces that take time, on a fake clock."""

import numpy as np
import pytest

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, LATE_SECONDS
from engine.errors import BusyError
from engine.runtime.load import Overload, Relief, Slack, TickTable, next_due
from engine.runtime.seat import Ended, Ready
from tests.runtime.rig import NotingDirector, Rig

# -- when a tick starts ----------------------------------------------------------------------------


def test_a_tick_starts_when_the_backend_is_idle_and_takes_all_that_came_meanwhile():
    rig = Rig(slots=3, tick=0.05)
    seats = [rig.join() for _ in range(3)]
    before = rig.ticks
    rig.play(dict(zip(seats, (0.0, 0.01, 0.04), strict=True)), 0.16)
    assert rig.backend.masks[before] == [True, False, False]  # at once: the backend was idle
    assert rig.backend.masks[before + 1] == [False, True, True]  # both came during the tick
    assert rig.delays[seats[0]] == pytest.approx([0.05, 0.07])
    assert rig.delays[seats[1]] == pytest.approx([0.09])


def test_latency_is_at_most_two_ticks_however_the_clients_are_spread():
    rig = Rig(slots=8, tick=0.055)
    seats = [rig.join() for _ in range(8)]
    rig.play({seat: 0.0137 * number for number, seat in enumerate(seats)}, 5)
    assert max(max(rig.delays[seat]) for seat in seats) <= 2 * 0.055 + 1e-6
    assert min(len(rig.delays[seat]) for seat in seats) >= 60


# -- backlogs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tick", [0.0, 0.01, 0.03, 0.05])
def test_a_backlog_gets_at_most_one_extra_tick_in_any_80_ms(tick):
    rig = Rig(slots=1, tick=tick)
    seat = rig.join()
    rig.advance(1.0)
    starts, listen = [], rig.backend.listen
    rig.backend.listen = lambda *args: starts.append(rig.now) or listen(*args)
    rig.hear(seat, 20)
    rig.advance(1.5)
    assert len(starts) == 20
    for one, third in zip(starts, starts[2:], strict=False):
        assert third - one >= FRAME_SECONDS - 1e-5
    fastest = max(9 * FRAME_SECONDS + tick, 19 * tick)  # the second where the backend is too slow
    assert starts[19] - starts[0] == pytest.approx(fastest, abs=0.001)


def test_a_backlog_does_not_get_extra_ticks_while_another_slot_is_late():
    rig = Rig(slots=2, tick=0.03)
    behind, late = rig.join(), rig.join()
    rig.hear(behind, 20)
    rig.hear(late)
    rig.backend.tick_seconds = 0.13  # one slow tick: now both are late
    rig.turn()
    rig.backend.tick_seconds = 0.03
    assert late.is_late(rig.now)
    before = rig.ticks
    rig.turn()
    rig.turn()
    assert rig.ticks - before == 1  # 80 ms have passed: no extra one; then it has to wait
    rig.hear(late)
    rig.turn()
    assert rig.backend.masks[-1] == [True, True]  # in the other's tick it rides along
    assert not late.is_late(rig.now)
    before = rig.ticks
    rig.advance(0.04)
    assert rig.ticks > before


def test_two_backlogs_that_are_both_late_are_worked_off_together():
    rig = Rig(slots=2, tick=0.03)
    seats = [rig.join() for _ in range(2)]
    for seat in seats:
        rig.hear(seat, 12)
    rig.now += 0.5
    rig.advance(1.0)
    assert [len(rig.frames(seat)) for seat in seats] == [12, 12]


# -- late, overload --------------------------------------------------------------------------------


def test_a_frame_is_late_when_it_is_made_more_than_120_ms_after_the_users_was_complete():
    rig = Rig(slots=1, tick=LATE_SECONDS - 0.001)
    seat = rig.join()
    rig.hear(seat)
    rig.turn()
    assert not seat.is_late(rig.now)
    rig.backend.tick_seconds = LATE_SECONDS + 0.001
    rig.hear(seat)
    rig.turn()
    assert seat.is_late(rig.now)


def test_only_in_overload_are_frames_dropped_oldest_quiet_ones_first_and_counted():
    rig = Rig(slots=1)
    seat = rig.join()
    for level in (0.5, 0.001, 0.5, 0.002, 0.003, 0.5):
        rig.hear(seat, level=level)
    rig.turn()
    assert rig.dropped() == 0
    rig.scheduler.overload.shedding = True
    rig.now += FRAME_SECONDS
    rig.turn()
    heard = [round(float(row[0]), 4) for row in rig.backend.heard[1:]]
    assert heard == [0.5, 0.5]  # of the five that waited, the two oldest quiet ones are gone
    assert rig.dropped() == 2
    assert b'personaplex_dropped_user_frames_total{reason="overload"} 2.0' in rig.metrics.text()
    assert len(seat._audio) == 2


def test_a_frame_with_a_loud_end_is_not_quiet():
    rig = Rig(slots=1)
    seat = rig.join()
    for _ in range(5):
        for level in (0.0, 0.0, 0.0, 0.5):  # 20 ms each
            seat.push_audio(np.full(FRAME_SAMPLES // 4, level, np.float32), rig.now)
    assert seat.drop_quiet(3) == 0
    assert len(seat._audio) == 5


def test_loud_frames_are_kept_however_many_wait():
    rig = Rig(slots=1)
    seat = rig.join()
    rig.hear(seat, 9)
    assert seat.drop_quiet(3) == 0


def overloaded(rig: Rig, seats: list, tick: float, seconds: float) -> None:
    """Everybody talks, and every tick takes this long."""
    rig.backend.tick_seconds = tick
    rig.play({seat: 0.0 for seat in seats if not seat.left}, seconds)


def test_a_slow_server_closes_admission_then_ends_the_newest_as_busy_then_recovers():
    rig = Rig(slots=4)
    seats = [rig.join() for _ in range(3)]
    overloaded(rig, seats, tick=0.072, seconds=3)
    with pytest.raises(BusyError, match="retry"):
        rig.join()
    assert not any(seat.left for seat in seats)
    overloaded(rig, seats, tick=0.079, seconds=8)
    assert [seat.left for seat in seats] == [False, False, True]
    [error] = [o.error for o in rig.outputs[seats[2]] if isinstance(o, Ended)]
    assert str(error).startswith("busy: ")
    with pytest.raises(BusyError, match="retry"):  # its slot is free, but the server is too slow
        rig.join()
    overloaded(rig, seats, tick=0.05, seconds=11)
    rig.join()


def test_quiet_frames_are_dropped_in_overload_before_anything_is_given_up():
    rig = Rig(slots=2)
    rig.backend.transcribes = rig.backend.transcribing = True
    seats = [rig.join() for _ in range(2)]
    overloaded(rig, seats, tick=0.075, seconds=3)
    rig.hear(seats[0], 6, level=0.001)
    rig.turn()
    assert rig.dropped() == 0  # too slow for newcomers is not yet overload
    overloaded(rig, seats, tick=0.079, seconds=2)
    rig.hear(seats[0], 6, level=0.001)
    rig.turn()
    assert rig.dropped() > 0
    assert rig.backend.transcribing
    assert not any(seat.left for seat in seats)


def test_the_recogniser_is_paused_before_anybody_is_ended():
    rig = Rig(slots=2)
    rig.backend.transcribes = rig.backend.transcribing = True
    seats = [rig.join() for _ in range(2)]
    overloaded(rig, seats, tick=0.079, seconds=6)
    assert not rig.backend.transcribing
    assert not any(seat.left for seat in seats)
    overloaded(rig, seats, tick=0.06, seconds=5)
    assert not rig.backend.transcribing  # one fast tick is not enough
    overloaded(rig, seats, tick=0.06, seconds=8)
    assert rig.backend.transcribing


def test_a_recogniser_that_is_too_much_rests_longer_each_time():
    now, rests, paused_at = 0.0, [], None
    overload = Overload(lambda: now)
    while len(rests) < 3:
        now += FRAME_SECONDS
        overload.add_tick(0.06 if overload.recogniser_paused else 0.079)
        if overload.step(transcribing=not overload.recogniser_paused) is Relief.PAUSE_RECOGNISER:
            paused_at = now
        elif paused_at is not None and not overload.recogniser_paused:
            rests.append(now - paused_at)
            paused_at = None
    assert rests == pytest.approx([10, 20, 40], abs=0.3)


def test_admission_asks_the_table_for_the_tick_with_one_more():
    rig = Rig(slots=4)
    rig.scheduler.overload = Overload(lambda: rig.now, TickTable({1: 0.02, 2: 0.05, 4: 0.071}))
    rig.join()
    rig.join()
    with pytest.raises(BusyError, match="2 conversations are all this server holds in time"):
        rig.join()


def test_free_are_the_places_that_would_be_given_and_no_other_slots():
    rig = Rig(slots=16)
    rig.scheduler.overload = Overload(lambda: rig.now, TickTable({1: 0.02, 4: 0.05, 16: 0.09}))
    assert rig.scheduler.free == 4
    seats = []
    while free := rig.scheduler.free:
        seats.append(rig.join())
        assert rig.scheduler.free == free - 1
    assert len(seats) == 4
    with pytest.raises(BusyError):
        rig.join()
    rig.scheduler.leave(seats[0], "left")
    assert rig.scheduler.free == 1


def test_a_machine_that_is_too_slow_for_one_has_a_place_for_whoever_tries_alone():
    rig = Rig(slots=2)
    rig.scheduler.overload = Overload(lambda: rig.now, TickTable({1: 0.09, 2: 0.1}))
    assert rig.scheduler.free == 1
    rig.join()
    assert rig.scheduler.free == 0


def test_nothing_is_free_while_the_ticks_are_too_slow_for_newcomers():
    rig = Rig(slots=4)
    seats = [rig.join() for _ in range(2)]
    assert rig.scheduler.free == 2
    overloaded(rig, seats, tick=0.075, seconds=3)
    assert rig.scheduler.free == 0
    overloaded(rig, seats, tick=0.03, seconds=11)
    assert rig.scheduler.free == 2


# -- prompts in the slack --------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [0.0, 0.02, 0.04, 0.06])
def test_a_newcomers_prompt_makes_no_frame_of_a_live_seat_late(phase):
    rig = Rig(slots=2, pieces=12, tick=0.05, piece=0.025)
    talking = rig.join()
    rig.play({talking: phase}, 1.0)
    newcomer = rig.join(ready=False)
    rig.play({talking: phase}, 2.0)
    assert rig.outputs[newcomer][0] == Ready()
    assert len(rig.delays[talking]) >= 31
    assert max(rig.delays[talking]) <= LATE_SECONDS


@pytest.mark.parametrize(("tick", "piece"), [(0.04, 0.045), (0.055, 0.03), (0.015, 0.13)])
def test_nor_do_pieces_that_fit_only_at_some_moments(tick, piece):
    rig = Rig(slots=3, pieces=9, tick=tick, piece=piece)
    rig.scheduler._slack_work.slack = Slack({64: piece})  # as timed at the start
    seats = [rig.join() for _ in range(2)]
    talking = {seats[0]: 0.01, seats[1]: 0.03}
    rig.play(talking, 1.0)
    newcomer = rig.join(ready=False)
    rig.play(talking, 10.0)
    assert rig.outputs[newcomer][0] == Ready()
    assert max(max(rig.delays[seat]) for seat in seats) <= LATE_SECONDS


def test_where_tick_follows_tick_without_a_gap_a_newcomer_is_served_all_the_same():
    rig = Rig(slots=3, pieces=4, tick=0.04, piece=0.065)
    seats = [rig.join() for _ in range(2)]
    newcomer = rig.join(ready=False)
    rig.play({seats[0]: 0.0, seats[1]: 0.04}, 30.0)
    assert rig.outputs[newcomer][0] == Ready()


def test_a_newcomers_first_tick_waits_for_slack_or_rides_along():
    rig = Rig(slots=2, tick=0.069)
    talking = rig.join()
    rig.play({talking: 0.0}, 1.0)
    rig.hear(talking)
    rig.turn()
    newcomer = rig.join(ready=False)
    rig.turn()  # its prompt is empty: only the first tick is missing
    rig.now += 0.005  # the next frame is 6 ms away
    before = rig.ticks
    rig.turn()
    assert rig.ticks == before
    rig.now += 0.006
    rig.hear(talking)
    rig.turn()
    assert rig.backend.masks[-1] == [True, True]
    assert rig.outputs[newcomer][0] == Ready()


def test_a_refused_prompt_is_looked_at_again_though_nobody_wakes_the_scheduler():
    rig = Rig(slots=2, pieces=1, tick=0.05, piece=0.025)
    rig.scheduler._slack_work.slack = Slack({64: 0.1})
    live = rig.join()  # is silent: its next frame may be complete at any moment
    newcomer = rig.join(ready=False)
    assert rig.turn() == pytest.approx(rig.now + 0.02)
    assert not newcomer.is_open
    rig.advance(16)  # nothing happens but the looks that the scheduler asked for
    assert rig.outputs[newcomer][0] == Ready()
    assert rig.turn() is None
    assert not rig.frames(live)


def test_a_prompt_goes_in_at_full_speed_while_nobody_is_live():
    rig = Rig(slots=2, pieces=10, tick=0.05, piece=0.2)
    started = rig.now
    seat = rig.join(ready=False)
    rig.advance(10 * 0.2 + 0.06)
    assert rig.outputs[seat][0] == Ready()
    assert rig.now - started == pytest.approx(2.06)


def test_a_client_that_runs_ahead_of_its_clock_is_expected_when_it_speaks():
    rig = Rig(slots=1)
    seat = rig.join(NotingDirector())
    rig.hear(seat, 5)  # a burst: the last is due in 320 ms
    rig.advance(0.5)
    rig.hear(seat, 1)
    rig.advance(0)
    assert seat.expected_at(rig.now) == pytest.approx(rig.now + FRAME_SECONDS)


# -- who has left in the midst of a turn -----------------------------------------------------------


def test_who_has_left_already_is_not_the_newest_to_be_ended(rig_of_three, monkeypatch):
    rig, (oldest, newest, leaver) = rig_of_three
    monkeypatch.setattr(rig.scheduler.overload, "step", lambda transcribing: Relief.END_NEWEST)
    ended = []
    monkeypatch.setattr(rig.scheduler, "_give_up", lambda seat, error: ended.append(seat))
    rig.scheduler._shed([oldest, newest, leaver])
    assert ended == [newest]
    ended.clear()
    rig.scheduler._shed([oldest, leaver])  # the last one is better slow than gone
    assert ended == []


def test_nobody_waits_for_a_frame_of_who_has_left(rig_of_three):
    rig, (*staying, leaver) = rig_of_three
    rig.hear(leaver)
    assert next_due([leaver], rig.now) is None
    rig.now += FRAME_SECONDS
    rig.hear(staying[0])
    assert next_due([staying[0], leaver], rig.now) == rig.now


@pytest.fixture
def rig_of_three():
    """Three seats; the last one has just been left."""
    rig = Rig(slots=3)
    seats = [rig.join() for _ in range(3)]
    rig.scheduler.leave(seats[-1], "left")
    return rig, seats
