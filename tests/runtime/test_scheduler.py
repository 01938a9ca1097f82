"""The frame clock, slots and boxes, on a clock turned by hand (docs/internals.md, docs/api.md)."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, GREEDY, PAD
from engine.errors import BusyError, InternalError, ModelError, RefusedError
from engine.runtime import scheduler
from engine.runtime.backend import Opening, Spoken
from engine.runtime.metrics import Dropped
from engine.runtime.scheduler import Scheduler, describe_place, read_core_waits, wait_fairly
from engine.runtime.seat import Ended, Frame, Ready
from tests.runtime.rig import NotingBackend, NotingDirector, Rig, ticks_within


@pytest.fixture
def rig():
    return Rig()


# -- admission -------------------------------------------------------------------------------------


def test_a_newcomer_takes_the_lowest_free_slot(rig):
    first, second = rig.join(), rig.join()
    assert (first.slot, second.slot) == (0, 1)
    rig.scheduler.leave(first, "left")
    rig.advance(0)
    assert rig.join().slot == 0


def test_when_all_slots_are_taken_the_newcomer_is_told_when_to_retry(rig):
    rig.join()
    rig.join()
    with pytest.raises(BusyError, match=r"^busy: all 2 .* retry in \d+ s$"):
        rig.join()


def test_a_slot_is_taken_over_at_once_and_closed_before_it_is_opened(rig):
    seats = [rig.join(), rig.join()]
    rig.backend.log.clear()
    rig.scheduler.leave(seats[0], "left")
    assert rig.scheduler.free == 1
    assert rig.join().slot == 0
    assert [entry[:2] for entry in rig.backend.log] == [("close", 0), ("open", 0)]


def test_a_slot_taken_over_during_a_tick_is_opened_after_it(rig):
    leaver, listener = rig.join(), rig.join()
    rig.hear(leaver)
    rig.hear(listener)
    rig.backend.log.clear()
    newcomers = []

    def change_places(_seconds):
        rig.backend.works = lambda _seconds: None
        rig.scheduler.leave(leaver, "left")
        newcomers.append(rig.join(ready=False))

    rig.backend.works = change_places
    rig.turn()
    assert rig.backend.log == []
    assert not rig.frames(leaver)
    assert len(rig.frames(listener)) == 1
    rig.advance(0)
    assert [entry[:2] for entry in rig.backend.log] == [("close", 0), ("open", 0)]
    rig.hear(newcomers[0])
    rig.advance(FRAME_SECONDS)
    assert len(rig.frames(newcomers[0])) == 1


def test_leaving_frees_the_slot_and_closes_it_once(rig):
    seat = rig.join()
    rig.scheduler.leave(seat, "left")
    rig.scheduler.leave(seat, "again")
    rig.advance(1)
    assert rig.scheduler.free == 2
    assert rig.backend.log.count(("close", 0)) == 1


def test_who_leaves_before_its_prompts_began_leaves_nothing_to_close(rig):
    seat = rig.join(ready=False)
    rig.scheduler.leave(seat, "left")
    rig.advance(1)
    assert rig.backend.log == []


def test_who_has_left_hears_nothing_more(rig):
    seat = rig.join()
    rig.hear(seat, 3)
    rig.scheduler.leave(seat, "left")
    rig.advance(1)
    assert not rig.frames(seat)


# -- prompts and bootstrap -------------------------------------------------------------------------


def test_prompts_go_in_one_piece_a_turn_and_only_in_the_slack_of_ticks():
    rig = Rig(pieces=3)
    talking = rig.join()
    newcomer = rig.join(ready=False)
    rig.backend.log.clear()
    rig.turn()
    assert rig.backend.log == [("open", newcomer.slot, 0.7), ("piece", newcomer.slot)]
    rig.hear(talking)
    rig.turn()
    assert rig.backend.log[-1] == ("piece", newcomer.slot)
    assert rig.backend.log.count(("piece", newcomer.slot)) == 1  # the tick came first
    rig.turn()
    assert rig.backend.log.count(("piece", newcomer.slot)) == 2


def test_the_bootstrap_runs_without_audio_and_nobody_hears_its_pcm(rig):
    seat = rig.join()
    assert rig.ticks == 1
    assert list(rig.outputs[seat]) == [Ready()]
    rig.hear(seat)
    rig.advance(0)
    assert [frame.pcm[0] for frame in rig.frames(seat)] == [0.0]


def test_events_leave_with_the_frame_whose_text_they_are(rig):
    seat = rig.join()
    for number in range(3):
        rig.hear(seat)
        rig.advance(FRAME_SECONDS)
        frame = rig.frames(seat)[-1]
        assert frame.pcm[0] == np.float32(number / 1000)
        assert frame.events == [f"text of frame {number}"]


def test_audio_before_the_handshake_is_dropped(rig):
    seat = rig.join(ready=False)
    rig.hear(seat, 5)
    rig.advance(1)
    assert not rig.frames(seat)


def test_a_prompt_that_cannot_be_used_ends_its_own_conversation_only(rig, monkeypatch):
    neighbour = rig.join()

    def refuse(slot, opening):
        raise ModelError("voice 'V' is broken")
        yield

    monkeypatch.setattr(rig.backend, "open", refuse)
    seat = rig.join()
    (ended,) = rig.outputs[seat]
    assert isinstance(ended.error, ModelError)
    assert rig.scheduler.free == 1
    rig.hear(neighbour)
    rig.advance(0)
    assert len(rig.frames(neighbour)) == 1


# -- the clock -------------------------------------------------------------------------------------


def test_a_tick_takes_every_slot_that_is_ready_and_no_other(rig):
    first, second = rig.join(), rig.join()
    rig.hear(first)
    rig.turn()
    assert rig.backend.masks[-1] == [True, False]
    rig.hear(first)
    rig.hear(second)
    rig.turn()
    assert rig.backend.masks[-1] == [True, True]


def test_a_slot_with_less_than_a_frame_does_not_take_part(rig):
    seat = rig.join()
    rig.hear(seat, 0.99)
    assert ticks_within(rig, 1) == 0
    rig.hear(seat, 0.01)  # 19 samples: still one short
    assert ticks_within(rig, 1) == 0
    rig.hear(seat, 0.5)
    assert ticks_within(rig, 1) == 1


def test_frames_are_made_of_the_samples_in_order_however_they_are_cut(rig):
    seat = rig.join()
    ramp = np.arange(4 * FRAME_SAMPLES, dtype=np.float32)
    for part in np.split(ramp, [7, 1900, 1921, 5000, 5001]):
        seat.push_audio(part, rig.now)
    rig.advance(1)
    heard = [row[seat.slot] for row in rig.backend.heard[1:]]
    assert heard == [0.0, 1920.0, 3840.0, 5760.0]


def test_with_nothing_to_do_the_thread_sleeps_until_woken(rig):
    rig.join()
    assert rig.turn() is None


def test_a_steady_client_is_never_held_back(rig):
    seat = rig.join()
    for _ in range(50):
        assert ticks_within(rig, 0, lambda: rig.hear(seat)) == 1
        rig.now += FRAME_SECONDS


def test_a_backlog_is_worked_off_with_one_extra_tick_each_80_ms(rig):
    seat = rig.join()
    rig.hear(seat, 40)
    rig.advance(0)
    before = rig.ticks
    rig.advance(10 * FRAME_SECONDS)
    assert 19 <= rig.ticks - before <= 21
    rig.advance(20 * FRAME_SECONDS)
    assert len(rig.frames(seat)) == 40


def test_a_burst_is_dated_on_the_80_ms_clock_not_on_its_arrival(rig):
    seat = rig.join()
    rig.hear(seat, 4)
    rig.advance(1)
    due = [frame.due_at - 1000.0 for frame in rig.frames(seat)]
    assert due == pytest.approx([0, 0.08, 0.16, 0.24])


def test_what_was_read_late_once_does_not_date_all_that_follows(rig):
    seat, heard_at = rig.join(), []
    for number in range(60):
        late = 0.06 if number == 10 else 0.001 * (number % 3)
        rig.now += late
        heard_at.append(rig.now)
        rig.hear(seat)
        rig.advance(0)
        rig.now += FRAME_SECONDS - late
    due = [frame.due_at for frame in rig.frames(seat)]
    assert due[:11] == pytest.approx(heard_at[:11], abs=0.003)
    assert due[11] == pytest.approx(heard_at[10] + FRAME_SECONDS)  # it may have been a burst
    assert due[30:] == pytest.approx(heard_at[30:], abs=0.003)


def test_who_sends_two_frames_at_once_has_the_second_dated_80_ms_later(rig):
    seat = rig.join()
    for _ in range(40):
        rig.hear(seat, 2)
        rig.advance(2 * FRAME_SECONDS)
    due = [frame.due_at - 1000.0 for frame in rig.frames(seat)]
    assert due == pytest.approx([number * FRAME_SECONDS for number in range(80)])


def test_of_a_backlog_beyond_30_s_the_oldest_is_dropped_and_nobody_is_blamed(rig):
    seat = rig.join()
    for number in range(380):  # the scheduler makes no turn meanwhile
        rig.hear(seat, level=number / 1000)
    assert len(seat._audio) == 375
    assert rig.dropped(Dropped.BEHIND) == 5
    rig.turn()
    assert rig.backend.heard[-1][0] == pytest.approx(0.005)


# -- silent clients --------------------------------------------------------------------------------


def test_a_silent_client_gets_no_frames_while_nothing_is_to_be_said(rig):
    rig.join()
    assert ticks_within(rig, 10) == 0


def test_a_silent_client_is_heard_as_silence_on_the_80_ms_clock_while_wanted(rig):
    director = NotingDirector(wants_frames=True)
    seat = rig.join(director)
    start = rig.ticks
    rig.advance(10 * FRAME_SECONDS)
    assert rig.ticks - start == 10
    assert not np.any([row[seat.slot] for row in rig.backend.heard[1:]])
    director.wants_frames = False
    assert ticks_within(rig, 5) == 0


def test_a_client_that_stops_sending_counts_as_silent_after_240_ms(rig):
    director = NotingDirector(wants_frames=True)
    seat = rig.join(director)
    rig.advance(0)
    rig.hear(seat)
    rig.advance(0)
    assert ticks_within(rig, 0.23) == 0
    assert ticks_within(rig, 0.02) == 1
    assert ticks_within(rig, 10 * FRAME_SECONDS) == 10


def test_audio_that_comes_late_after_a_gap_is_forgiven(rig):
    director = NotingDirector(wants_frames=True)
    seat = rig.join(director)
    for _ in range(5):
        rig.hear(seat)
        rig.advance(FRAME_SECONDS)
    made = len(rig.frames(seat))
    rig.advance(1.0)  # the network stalls; silence is invented meanwhile
    invented = len(rig.frames(seat)) - made
    assert invented > 5
    for _ in range(12):  # and now everything comes at once
        rig.hear(seat, level=0.001)
    rig.advance(0.5)
    assert rig.dropped() == invented
    counted = f'personaplex_dropped_user_frames_total{{reason="late"}} {float(invented)}'
    assert counted in rig.metrics.text().decode()
    assert len(seat._audio) == 0
    assert len(rig.frames(seat)) <= made + 12 + 6


def test_whoever_speaks_is_heard_however_late_and_nobody_runs_ahead_of_real_time(rig):
    seat = rig.join(NotingDirector(wants_frames=True))
    rig.hear(seat)
    rig.advance(FRAME_SECONDS)
    rig.advance(1.0)  # the network stalls; silence is invented meanwhile
    start, made, before = rig.now, len(rig.frames(seat)), rig.ticks
    for number in range(12):  # and now everything comes at once, a sentence
        rig.hear(seat, level=0.1 + number / 100)
    for _ in range(40):  # which goes on for long
        assert len(rig.frames(seat)) - made <= (rig.now - start) / FRAME_SECONDS + 1
        rig.advance(FRAME_SECONDS)
        rig.hear(seat)
    assert rig.dropped() == 0
    sentence = [row[seat.slot] for row in rig.backend.heard[before : before + 12]]
    assert sentence == pytest.approx([0.1 + number / 100 for number in range(12)])
    assert len(seat._audio) > 5  # it is heard with a delay
    for _ in range(20):  # until there is a pause
        rig.advance(FRAME_SECONDS)
        rig.hear(seat, level=0.001)
    assert 0 < rig.dropped() <= 12
    assert len(seat._audio) < 5


def test_noise_after_a_gap_does_not_keep_its_delay_for_ever(rig):
    seat = rig.join(NotingDirector(wants_frames=True))
    rig.hear(seat)
    rig.advance(FRAME_SECONDS)
    rig.advance(1.0)  # the network stalls; silence is invented meanwhile
    rig.hear(seat, 12, level=0.03)
    for _ in range(100):  # 8 s, never quiet
        rig.advance(FRAME_SECONDS)
        rig.hear(seat, level=0.03)
    assert len(seat._audio) <= 1
    assert 5 < rig.dropped() <= 12


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_client_that_was_mute_for_a_while_loses_nothing_afterwards(rig, at_once):
    seat = rig.join(NotingDirector(wants_frames=True))
    rig.hear(seat)
    rig.advance(4.0)  # it sends nothing, and silence is invented
    rig.hear(seat, at_once)
    rig.advance(at_once * FRAME_SECONDS)
    for _ in range(16):  # a second may pass, in which it could still come
        rig.hear(seat, at_once)
        rig.advance(at_once * FRAME_SECONDS)
    dropped = rig.dropped()
    for _ in range(10):
        rig.hear(seat, at_once, level=0.001)
        rig.advance(at_once * FRAME_SECONDS)
    assert rig.dropped() == dropped == 0


def test_without_a_gap_nothing_is_dropped(rig):
    seat = rig.join(NotingDirector(wants_frames=True))
    for _ in range(20):
        rig.hear(seat)
        rig.advance(FRAME_SECONDS)
    rig.hear(seat, 6)
    rig.advance(2)
    assert rig.dropped() == 0


# -- boxes -----------------------------------------------------------------------------------------


def test_commands_reach_the_director_in_order_and_their_events_come_back(rig):
    director = NotingDirector()
    seat = rig.join(director)
    seat.post("a")
    seat.post("b")
    rig.turn()
    assert director.taken == ["a", "b"]
    assert rig.notices(seat) == ["took a", "took b"]


def test_the_inbox_holds_64_commands(rig):
    seat = rig.join()
    for number in range(64):
        seat.post(number)
    with pytest.raises(RefusedError, match="64 commands"):
        seat.post("one more")
    rig.turn()
    seat.post("now")


def test_the_director_is_shown_how_loud_both_sides_were(rig):
    director = NotingDirector()
    seat = rig.join(director)
    for _ in range(3):
        rig.hear(seat, level=-0.25)
        rig.advance(FRAME_SECONDS)
    assert director.steps == [(0.0, 0.0), (0.25, 0.0), (0.25, 0.0), (0.25, 0.001)]


def test_inactive_slots_are_fed_padding(rig):
    first, _second = rig.join(), rig.join()
    rig.hear(first)
    rig.advance(0)
    assert rig.backend.fed[-1][1] == PAD


# -- restart and tune ------------------------------------------------------------------------------


def test_a_restart_closes_and_opens_the_same_slot_and_is_ready_again(rig):
    seat = rig.join()
    rig.hear(seat, 2)
    director = NotingDirector()
    rig.scheduler.restart(seat, Opening("V"), director)
    rig.advance(0)
    assert rig.backend.log[-2:] == [("close", 0), ("open", 0, 0.7)]
    assert rig.outputs[seat][-1] == Ready()
    assert len(seat._audio) == 0
    assert seat.director is director


def test_commands_before_a_restart_are_void_and_those_after_it_are_not(rig):
    seat = rig.join()
    old, new = seat.director, NotingDirector()
    seat.post("before")
    rig.scheduler.restart(seat, Opening("V"), NotingDirector())
    seat.post("between")
    rig.scheduler.restart(seat, Opening("V"), new)
    seat.post("after")
    rig.advance(0)
    assert old.taken == []
    assert new.taken == ["after"]


def test_a_restart_before_the_slot_is_open_closes_nothing(rig):
    seat = rig.join(ready=False)
    rig.scheduler.restart(seat, Opening("V"), NotingDirector())
    rig.advance(0)
    assert rig.backend.log == [("open", 0, 0.7)]
    assert list(rig.outputs[seat]) == [Ready()]


def test_a_live_slot_is_tuned_at_once(rig):
    seat = rig.join()
    rig.scheduler.tune(seat, GREEDY)
    rig.turn()
    assert rig.backend.log[-1] == ("tune", 0, 0)


def test_a_slot_that_is_not_open_yet_opens_with_the_new_settings(rig):
    seat = rig.join(ready=False)
    rig.scheduler.tune(seat, GREEDY)
    rig.advance(0)
    assert rig.backend.log == [("open", 0, 0)]


def test_a_slot_whose_prompts_go_in_is_tuned_when_they_are_in():
    rig = Rig(pieces=2)
    seat = rig.join(ready=False)
    rig.turn()
    rig.scheduler.tune(seat, GREEDY)
    rig.advance(0)
    assert rig.backend.log == [("open", 0, 0.7), ("piece", 0), ("piece", 0), ("tune", 0, 0)]


def test_settings_that_come_while_prompts_wait_for_slack_keep_nobody_awake():
    rig = Rig(pieces=2, tick=0.06, piece=0.05)
    talking, newcomer = rig.join(), rig.join(ready=False)
    rig.scheduler._slack_work.slack.note("piece", 0.05, rig.now)
    rig.hear(talking)
    rig.advance(0.1)
    for temperature in (0.3, 0.2):
        rig.scheduler.tune(newcomer, replace(GREEDY, text_temperature=temperature))
        rig.turn()
    assert not newcomer.live
    assert not rig.scheduler._requests
    rig.advance(30)
    assert newcomer.live
    assert [entry for entry in rig.backend.log if entry[0] == "tune"] == [("tune", 1, 0.2)]


def test_a_slot_that_was_left_is_not_tuned(rig):
    seat = rig.join()
    rig.scheduler.tune(seat, GREEDY)
    rig.scheduler.leave(seat, "left")
    rig.advance(0)
    assert ("tune", 0, 0) not in rig.backend.log


def test_who_leaves_while_its_requests_are_taken_is_closed_once_and_not_tuned(rig):
    seat = rig.join()
    take = seat.take_requests

    def leave_and_take():
        rig.scheduler.leave(seat, "left")  # as another thread could, right here
        return take()

    seat.take_requests = leave_and_take
    rig.scheduler.restart(seat, Opening("V"), NotingDirector())
    rig.scheduler.tune(seat, GREEDY)
    rig.turn()
    rig.turn()
    assert rig.backend.log == [("open", 0, 0.7), ("close", 0)]
    assert rig.scheduler.free == rig.backend.slots


# -- faults ----------------------------------------------------------------------------------------


def test_a_director_that_fails_in_a_step_ends_its_own_conversation_only(rig, caplog):
    broken, neighbour = rig.join(), rig.join()
    broken.director.fails = True
    rig.hear(broken)
    rig.hear(neighbour)
    rig.advance(0)
    assert isinstance(rig.outputs[broken][-1], Ended)
    assert isinstance(rig.outputs[broken][-1].error, InternalError)
    assert len(rig.frames(neighbour)) == 1
    assert rig.scheduler.free == 1
    assert "director failed" in caplog.text  # its place, never its message


def test_a_director_that_fails_on_a_command_ends_its_own_conversation_only(rig, caplog):
    broken, neighbour = rig.join(), rig.join()
    broken.post("fail")
    neighbour.post("fine")
    rig.hear(neighbour)
    rig.advance(0)
    assert isinstance(rig.outputs[broken][-1], Ended)
    assert rig.notices(neighbour) == ["took fine"]
    assert len(rig.frames(neighbour)) == 1
    assert "director failed" in caplog.text


def test_a_backend_that_dies_tells_every_seat_and_the_owner_of_the_process(caplog):
    class Dying(NotingBackend):
        def listen(self, pcm, active):
            raise RuntimeError("device lost")

    died, deaths, told = threading.Event(), [], []
    scheduler = Scheduler(Dying(3), on_death=lambda error: (deaths.append(error), died.set()))
    for _ in range(2):
        scheduler.join(Opening("V"), NotingDirector(), told.extend)
    scheduler.start()
    assert died.wait(60)
    scheduler.stop()
    assert str(deaths[0]) == "device lost"
    assert [type(output.error) for output in told] == [InternalError] * 2
    error_id = str(told[0].error).removeprefix("internal error: ")[:8]
    assert error_id in caplog.text


def test_stopping_twice_and_before_the_start_is_harmless():
    scheduler = Scheduler(NotingBackend(1))
    scheduler.stop()
    scheduler.stop()


def test_a_client_that_stops_sending_in_its_turn_gets_the_silence_that_ends_it(rig):
    director = NotingDirector()
    seat = rig.join(director)
    rig.hear(seat)
    rig.advance(0)
    director.awaits_words = True
    assert ticks_within(rig, 0.46) == 0  # a network may stall for so long
    assert ticks_within(rig, 0.04) == 1
    assert ticks_within(rig, 5 * FRAME_SECONDS) == 5
    director.awaits_words = False
    assert ticks_within(rig, 5) == 0


@pytest.mark.parametrize(
    "path", ["/opt/site-packages/other/engine/core.py", "/usr/lib/engine/wait.py"]
)
def test_a_hang_in_somebody_elses_code_is_told_by_our_function_that_called_it(path):
    """Whatever that code's folder is called."""
    held, reached, names = threading.Event(), threading.Event(), {}
    exec(compile("def hang(reached, held): reached.set(); held.wait(60)", path, "exec"), names)
    ours = str(Path(scheduler.__file__).with_name("waiting.py"))
    exec(compile("def call_it(*what): hang(*what)", ours, "exec"), names)
    thread = threading.Thread(target=names["call_it"], args=(reached, held), daemon=True)
    thread.start()
    assert reached.wait(60)
    place = describe_place(thread)
    held.set()
    assert place == "call_it (waiting.py)"


@pytest.mark.parametrize(
    ("core_share", "waited"),  # of the time our thread has a core, and for how long is waited
    [
        (1.0, 2),  # a hang on a quiet machine
        (0.1, 20),  # a busy one
        (0.001, 62),  # no core at all: a minute is excused
    ],
)
def test_time_without_a_core_is_no_hang(core_share, waited):
    now = 0.0

    def wait(timeout):
        nonlocal now
        now += timeout
        return False

    def read_waits():
        return {"ours": now * (1 - core_share), "idle": 0.0}

    assert not wait_fairly(wait, 2.0, lambda: now, read_waits)
    assert now == pytest.approx(waited, rel=0.1)


def test_what_is_done_is_waited_for_no_longer():
    assert wait_fairly(lambda timeout: True, 0.0)
    assert min(read_core_waits().values(), default=0.0) >= 0


def test_what_a_tick_makes_for_all_is_sent_at_once_when_it_is_over():
    rig, events = Rig(slots=3), []
    seats = [rig.join() for _ in range(3)]
    rig.scheduler._send = lambda: events.append("sent")
    for seat in seats:
        seat.deliver = events.extend
        rig.hear(seat)
    rig.turn()
    assert events[0] == "sent"  # what commands have brought does not wait for the tick
    assert [type(event) for event in events[1:4]] == [Frame] * 3
    assert events[4:] == ["sent"]


def test_the_frames_of_a_tick_are_not_the_backends_own_memory():
    rig = Rig(slots=2)
    seats = [rig.join() for _ in range(2)]
    made = np.zeros((2, FRAME_SAMPLES), np.float32)
    rig.backend.speak = lambda text, hush: Spoken(made)
    for seat in seats:
        rig.hear(seat)
    made[:] = [[0.25], [-0.5]]
    rig.turn()
    made[:] = 0.9  # the next tick's
    assert [rig.frames(seat)[-1].pcm[0] for seat in seats] == [0.25, -0.5]
    assert [seat.peak_out for seat in seats] == [0.25, 0.5]
