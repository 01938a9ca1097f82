"""One client floods the server with every kind of message: its neighbour's frames are in time.

On a clock that a test turns by hand. What a message costs the scheduler's thread is planted.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, GREEDY, LATE_SECONDS
from engine.dialogue import events as ev
from engine.errors import RefusedError, TooFastError
from engine.runtime.backend import Opening
from engine.runtime.scheduler import COMMANDS_A_TURN, COMMANDS_SECONDS, REQUESTS_A_TURN
from engine.runtime.seat import Ready, Seat
from tests.runtime.rig import NotingBackend, NotingDirector, Rig

COST = 0.001  # seconds that a message takes
FLOOD = 64  # messages between two turns: what an inbox holds


class CostlyDirector(NotingDirector):
    """Takes its time over every command."""

    def __init__(self, rig: Rig, seconds: float = COST) -> None:
        super().__init__()
        self.rig, self.seconds = rig, seconds

    def take(self, command: Any) -> list[Any]:
        self.rig.now += self.seconds
        return super().take(command)


class CostlyBackend(NotingBackend):
    """Takes its time to tune and to close, too."""

    def tune(self, slot: int, sampling) -> None:
        self.works(COST)
        super().tune(slot, sampling)

    def close(self, slot: int) -> None:
        self.works(COST)
        super().close(slot)


def post(command: Any) -> Callable[[Rig, Seat], None]:
    return lambda rig, seat: seat.post(command)


def tune(rig: Rig, seat: Seat) -> None:
    rig.scheduler.tune(seat, GREEDY)


def restart(rig: Rig, seat: Seat) -> None:
    rig.scheduler.restart(seat, Opening("V"), CostlyDirector(rig))


def restart_and_tune(rig: Rig, seat: Seat) -> None:
    restart(rig, seat)
    tune(rig, seat)
    seat.post("say")


def push_a_sample(rig: Rig, seat: Seat) -> None:
    seat.push_audio(np.full(1, 0.5, np.float32), rig.now)


FLOODS = {
    "say": post(ev.Say(1, "a word or two")),
    "replace": post(ev.Say(1, "a word or two", replace=True)),
    "more": post(ev.More(1, "and more")),
    "cancel": post(ev.Cancel()),
    "end turn": post(ev.EndTurn()),
    "pause": post(ev.Pause()),
    "resume": post(ev.Resume()),
    "routing": post(ev.SetRouting(True)),
    "user text": post(ev.UserText("hello", True, 0.0, 0.1)),
    "set": tune,
    "restart": restart,
    "restart and set": restart_and_tune,
    "audio in tiny pieces": push_a_sample,
}


def flood(send: Callable[[Rig, Seat], None], rig: Rig, seat: Seat) -> None:
    with contextlib.suppress(RefusedError, TooFastError):
        for _ in range(FLOOD):
            send(rig, seat)


def costly_rig(slots: int, seconds: float = COST) -> tuple[Rig, list[Seat]]:
    rig = Rig(tick=0.03, piece=0.005, backend=CostlyBackend(slots, pieces=2))
    return rig, [rig.join(CostlyDirector(rig, seconds)) for _ in range(slots)]


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_one_client_makes_no_frame_of_its_neighbour_late(kind):
    rig, (flooder, neighbour) = costly_rig(2)
    rig.play({neighbour: 0.0}, 4.0, meanwhile=partial(flood, FLOODS[kind], rig, flooder))
    assert len(rig.frames(neighbour)) >= int(4.0 / FRAME_SECONDS) - 2
    assert max(rig.delays[neighbour]) <= LATE_SECONDS


def test_a_turn_takes_few_commands_of_a_seat_and_leaves_the_others_in_order():
    rig, (seat,) = costly_rig(1, seconds=0.0)
    for number in range(10):
        seat.post(number)
    rig.turn()
    assert seat.director.taken == list(range(COMMANDS_A_TURN))
    assert rig.turn() == rig.now  # there is more to do: come back at once
    rig.turn()
    assert seat.director.taken == list(range(10))
    assert rig.turn() is None


def test_commands_of_all_seats_together_take_little_time_of_a_turn():
    rig, seats = costly_rig(8)
    for seat in seats:
        seat.post("a")
        seat.post("b")
    before = rig.now
    rig.turn()
    assert rig.now - before <= COMMANDS_SECONDS + COST
    assert sum(len(seat.director.taken) for seat in seats) <= COMMANDS_SECONDS / COST + 1


def test_seats_are_served_in_turns_whatever_one_of_them_sends():
    rig, seats = costly_rig(3, seconds=2 * COMMANDS_SECONDS)  # a command is all that a turn takes
    flooder, *others = seats
    for seat in others:
        seat.post("mine")
    for _ in range(3):
        with contextlib.suppress(RefusedError):
            for _ in range(FLOOD):
                flooder.post("flood")
        rig.turn()
    assert [seat.director.taken for seat in seats] == [["flood"], ["mine"], ["mine"]]


def test_what_waits_for_a_seat_is_one_restart_and_the_last_settings():
    rig, (seat,) = costly_rig(1)
    rig.backend.log.clear()
    for temperature in (0.1, 0.2):
        rig.scheduler.tune(seat, replace(GREEDY, text_temperature=temperature))  # void
        restart(rig, seat)
        rig.scheduler.tune(seat, replace(GREEDY, text_temperature=temperature + 0.3))
    assert len(rig.scheduler._requests) == 1
    rig.advance(1)
    assert [entry for entry in rig.backend.log if entry[0] != "piece"] == [
        ("close", 0),
        ("open", 0, 0.5),
    ]
    assert list(rig.outputs[seat]) == [Ready(), Ready()]  # of the first start and of the restart


def test_few_seats_are_restarted_or_tuned_in_one_turn_and_the_others_in_the_next():
    seats_at_once = 2 * REQUESTS_A_TURN
    rig = Rig(slots=seats_at_once)
    seats = [rig.join() for _ in range(seats_at_once)]
    rig.backend.log.clear()
    for seat in seats:
        rig.scheduler.tune(seat, GREEDY)
    rig.turn()
    assert [slot for _, slot, _ in rig.backend.log] == list(range(REQUESTS_A_TURN))
    rig.turn()
    assert not rig.scheduler._requests
    assert [slot for _, slot, _ in rig.backend.log] == list(range(seats_at_once))


def test_a_piece_of_a_frame_wakes_nobody():
    wakes = itertools.count()
    rig, (seat,) = costly_rig(1)
    seat._wake = lambda: next(wakes)
    rig.hear(seat, 0.5)
    rig.hear(seat, 0.25)
    assert next(wakes) == 0
    rig.hear(seat, 0.25)
    assert next(wakes) == 2


def test_a_tick_takes_a_frame_at_once_whatever_pieces_it_came_in():
    rig, (seat,) = costly_rig(1)
    for number in range(FRAME_SAMPLES):
        seat.push_audio(np.full(1, number, np.float32), rig.now)
    calls = []
    sys.setprofile(lambda frame, event, what: calls.append(event))
    frame, *_ = seat.take_frame(rig.now)
    sys.setprofile(None)
    assert len(calls) < 100
    np.testing.assert_array_equal(frame, np.arange(FRAME_SAMPLES))


@pytest.mark.parametrize("ready", [True, False])
def test_nothing_is_done_any_more_for_who_left_while_commands_were_read(ready):
    class LeavingDirector(NotingDirector):
        def take(self, command: Any) -> list[Any]:
            rig.scheduler.leave(leaver, "left")
            return []

    rig = Rig(slots=2)
    other, leaver = rig.join(LeavingDirector()), rig.join(ready=ready)
    rig.hear(leaver)
    leaver.post("of the leaver")
    other.post("leave")
    ticks = rig.ticks
    assert rig.turn() is None  # nothing is left to do or to wait for
    assert leaver.director.taken == []
    assert rig.ticks == ticks
    assert leaver.is_open == ready


def test_who_left_while_commands_were_read_is_not_flushed():
    class LeavingDirector(NotingDirector):
        def take(self, command: Any) -> list[Any]:
            rig.scheduler.leave(leaver, "left")
            return []

    class FlushedDirector(NotingDirector):
        flushing = True

        def flush(self, heard) -> list[str]:
            self.flushing = False
            return ["flushed"]

    class TranscribingBackend(NotingBackend):
        transcribes = transcribing = True

        def flush(self, slots: list[int]) -> dict:
            self.log.append(("flush", *slots))
            return dict.fromkeys(slots)

    rig = Rig(backend=TranscribingBackend(3))
    leaver, stayer, other = (
        rig.join(director) for director in (FlushedDirector(), FlushedDirector(), LeavingDirector())
    )
    for seat in (leaver, stayer):
        seat.opening = Opening("V", transcribe=True)
    other.post("leave")
    rig.turn()
    assert [entry for entry in rig.backend.log if entry[0] == "flush"] == [("flush", stayer.slot)]
    assert rig.notices(leaver) == []
