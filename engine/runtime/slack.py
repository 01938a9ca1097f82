"""What runs in the slack between ticks: newcomers' prompts, and renewals of long conversations.

One bounded piece at a time, and none that would make somebody's frame late. When the next tick
runs is the scheduler's affair. Source of the rules: performance.md 2.6. Scheduler's thread only.
"""

from collections.abc import Callable, Generator
from functools import partial

from engine.config import FRAME_SECONDS, LATE_SECONDS
from engine.errors import EngineError
from engine.runtime.backend import Backend
from engine.runtime.capacity import TICK_LIMIT_SECONDS
from engine.runtime.directing import logged_fault
from engine.runtime.overload import PATIENCE_SECONDS
from engine.runtime.seat import Renewed, Seat

AROUND_SECONDS = FRAME_SECONDS - TICK_LIMIT_SECONDS  # what lies around the backend
STARVED_SECONDS = FRAME_SECONDS / 2  # without a gap between ticks: work may now go before a tick


class Slack:
    """Whether what may wait fits in before somebody's frame would be late.

    That is a piece of a prompt or of a renewal, and a newcomer's first tick where nobody else's
    frame is to be run. `piece`: seconds of one as timed at the start.
    """

    def __init__(self, piece: float = 0.0) -> None:
        self._least = {"piece": piece, "tick": 0.0}  # a prompt's last piece is a short one
        self._seconds = dict(self._least)  # of the slowest recent ones
        self._refused: dict[Seat, float] = {}  # since when its work has been held back

    def piece_took(self, seconds: float) -> None:
        self._took("piece", seconds)

    def tick_took(self, seconds: float) -> None:
        self._took("tick", seconds)

    def _took(self, what: str, seconds: float) -> None:
        self._seconds[what] = max(seconds, 0.9 * self._seconds[what], self._least[what])

    def forget(self, seat: Seat) -> None:
        """Its work is void: whoever sits there next waits for a time of their own."""
        self._refused.pop(seat, None)

    def allows(self, now: float, next_due: float | None, seat: Seat, what: str = "piece") -> bool:
        """Whether this seat's work may run now.

        next_due: when the earliest coming user frame will be complete; None: nobody is live.
        """
        done = now + self._seconds[what] + self._seconds["tick"] + AROUND_SECONDS
        fits = next_due is None or done <= next_due + LATE_SECONDS
        if not fits and now - self._refused.setdefault(seat, now) <= PATIENCE_SECONDS:
            return False
        self.forget(seat)  # a machine that never has slack still serves
        return True


def next_due(seats: list[Seat], now: float) -> float | None:
    """When the earliest user frame is or will be complete; None: nobody is live.

    A silent client's may be complete at any moment, so from now on.
    """
    live = [seat.expected_at(now) or now for seat in seats if seat.live and not seat.left]
    return min(live, default=None)


class SlackWork:
    """Prompts first, as somebody waits for them; then renewals."""

    def __init__(
        self,
        backend: Backend,
        clock: Callable[[], float],
        give_up: Callable[[Seat, EngineError], None],
    ) -> None:
        self.slack = Slack(backend.ticks.piece if backend.ticks else 0.0)
        self._backend, self._clock, self._give_up = backend, clock, give_up
        self._renewals: dict[Seat, Generator[None, None, int]] = {}
        self._waiting_since: float | None = None  # something for its next piece

    def piece(self, seats: list[Seat]) -> bool:
        """One piece, if there is work and nobody gets late by it; whether there was one."""
        job, started = self._job(seats), self._clock()
        if not job:
            return False
        seat, work = job
        if not self.slack.allows(started, next_due(seats, started), seat):
            return False
        work()
        self.slack.piece_took(self._clock() - started)
        self._waiting_since = None
        return True

    def starves(self, seats: list[Seat], now: float) -> bool:
        """Whether work has been waiting for long, because tick follows tick without a gap."""
        if not self._job(seats):
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        return self._waiting_since is not None and now - self._waiting_since > STARVED_SECONDS

    def drop(self, seat: Seat) -> None:
        """End a renewal in its midst: its conversation is over, the spare memory is free."""
        self.slack.forget(seat)
        if work := self._renewals.pop(seat, None):
            work.close()

    def _job(self, seats: list[Seat]) -> tuple[Seat, Callable[[], None]] | None:
        """What is to be done next and for whom, if anything."""
        staying = [seat for seat in seats if not seat.left]
        for seat in staying:
            if not (seat.live or seat.bootstrapping):
                return seat, partial(self._prepare, seat)
        for seat in staying:
            if not self._renewals and seat.live and (work := self._backend.renew(seat.slot)):
                self._renewals[seat] = work
        for seat, work in self._renewals.items():
            return seat, partial(self._renew, seat, work)
        return None

    def _prepare(self, seat: Seat) -> None:
        """One bounded piece of a newcomer's prompt."""
        try:
            if seat.work is None:
                seat.work = self._backend.open(seat.slot, seat.opening)
            next(seat.work)
        except StopIteration:
            seat.bootstrapping = True
            if seat.tuned:
                self._backend.tune(seat.slot, seat.tuned)
        except EngineError as error:  # this conversation's own fault, a voice for example
            self._give_up(seat, error)
        except Exception:  # out of memory, say: a newcomer's fault must not reach its neighbours
            self._give_up(seat, logged_fault("a conversation could not be opened"))

    def _renew(self, seat: Seat, work: Generator[None, None, int]) -> None:
        """One piece of work for a conversation whose context runs out."""
        try:
            next(work)
        except StopIteration as end:
            del self._renewals[seat]
            seat.deliver([Renewed(end.value)])
        except Exception:  # out of memory, say: the call goes on with the memory that it has
            del self._renewals[seat]
            logged_fault("a renewal failed")
