"""What runs in the slack between ticks: newcomers' prompts, and renewals of long conversations.

One bounded piece at a time, and none that would make somebody's frame late. When the next tick
runs is the scheduler's affair. Source of the rules: performance.md 2.6. Scheduler's thread only.
"""

from collections.abc import Callable, Iterator

from engine.errors import EngineError
from engine.runtime.backend import Backend
from engine.runtime.overload import LATE_SECONDS, PATIENCE_SECONDS
from engine.runtime.seat import Renewed, Seat

DONE = object()  # what an exhausted piece of work says


class Slack:
    """Whether a piece of a newcomer's prompt fits before somebody's frame would be late."""

    def __init__(self) -> None:
        self._piece = 0.0  # seconds of the slowest recent pieces
        self._tick = 0.0
        self._refused: float | None = None  # since when a newcomer has been held back

    def piece_took(self, seconds: float) -> None:
        self._piece = max(seconds, 0.9 * self._piece)

    def tick_took(self, seconds: float) -> None:
        self._tick = max(seconds, 0.9 * self._tick)

    def allows(self, now: float, next_due: float | None) -> bool:
        """next_due: when the earliest coming user frame will be complete; None: nobody is live."""
        fits = next_due is None or now + self._piece + self._tick <= next_due + LATE_SECONDS
        if not fits and self._refused is None:
            self._refused = now
        if fits or now - self._refused > PATIENCE_SECONDS:
            self._refused = None  # a machine that never has slack still serves
            return True
        return False


def next_due(seats: list[Seat], now: float) -> float | None:
    """When the earliest coming user frame is complete; None: nobody is live."""
    live = [seat.expected_at for seat in seats if seat.live and not seat.left]
    return max(now, min(live)) if live else None


class SlackWork:
    """Prompts first, as somebody waits for them; then renewals."""

    def __init__(
        self,
        backend: Backend,
        clock: Callable[[], float],
        give_up: Callable[[Seat, EngineError], None],
    ) -> None:
        self.slack = Slack()
        self._backend, self._clock, self._give_up = backend, clock, give_up
        self._renewals: dict[Seat, Iterator[None]] = {}

    def piece(self, seats: list[Seat]) -> bool:
        """One piece, if nobody gets late by it; whether there was one."""
        started = self._clock()
        if not self.slack.allows(started, next_due(seats, started)):
            return False
        worked = self._prepare(seats) or self._renew(seats)
        if worked:
            self.slack.piece_took(self._clock() - started)
        return worked

    def _prepare(self, seats: list[Seat]) -> bool:
        """One bounded piece of one newcomer's prompt; whether there was one."""
        for seat in seats:
            if seat.left or seat.live or seat.bootstrapping:
                continue
            try:
                if seat.work is None:
                    seat.work = self._backend.open(seat.slot, seat.opening)
                next(seat.work)
            except StopIteration:
                seat.bootstrapping = True
            except EngineError as error:  # this conversation's own fault, a voice for example
                self._give_up(seat, error)
            return True
        return False

    def _renew(self, seats: list[Seat]) -> bool:
        """One piece of work for a conversation whose context runs out; whether there was one."""
        for seat in seats:
            if seat.left or not seat.live:
                self._renewals.pop(seat, None)
                continue
            work = self._renewals.get(seat) or self._backend.renew(seat.slot)
            if work is None:
                continue
            self._renewals[seat] = work
            if next(work, DONE) is DONE:
                del self._renewals[seat]
                seat.deliver([Renewed(self._backend.kept_frames)])
            return True
        return False
