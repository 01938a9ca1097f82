"""When a server is too slow: close admission, then shed the recogniser, then the newest session.

Source of the rules: performance.md 2.6. Fed with the seconds of every tick and asked on the
scheduler's thread; knows no threads and no clock but the one it is given.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum

import numpy as np

from engine.errors import BusyError, EngineError
from engine.runtime.backend import Backend
from engine.runtime.capacity import TICK_LIMIT_SECONDS, TickTable
from engine.runtime.seat import Seat

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 10.0  # that p95 looks back
LEAST_TICKS = 10  # about a second of them: fewer are a hiccup, and say nothing of the machine
FEW_TICKS, LONG_SECONDS = 3, 1.0  # unless they are so long that there are not more of them
SHED_SECONDS = 0.078  # p95 above it is overload
PATIENCE_SECONDS = 5.0  # of overload before something is given up
MOST_REST_SECONDS = 600.0  # of a recogniser that was paused again and again
KEPT_FRAMES = 3  # of a slot's backlog that are never dropped


class Step(IntEnum):
    """What overload asks for."""

    NOTHING = 0
    PAUSE_RECOGNISER = 1
    END_NEWEST = 2


class Overload:
    """p95 of the tick over ten seconds, and what follows from it. `admits` from any thread."""

    def __init__(self, clock: Callable[[], float], table: TickTable | None = None) -> None:
        self._clock, self._table = clock, table
        self._lock = threading.Lock()
        self._ticks: deque[tuple[float, float]] = deque()  # (when, seconds)
        self._since: float | None = None  # when p95 rose above the shedding limit
        self._acted_at = -WINDOW_SECONDS  # what comes after a step is judged by its own ticks
        self._rest = WINDOW_SECONDS  # of the recogniser, when it is paused next
        self._resume_at = 0.0
        self.shedding = False  # in overload, however short: quiet frames are dropped
        self.recogniser_paused = False

    def ticked(self, seconds: float) -> None:
        now = self._clock()
        with self._lock:
            self._ticks.append((now, seconds))
            while self._ticks[0][0] < now - WINDOW_SECONDS:
                self._ticks.popleft()

    @property
    def p95(self) -> float:
        """Seconds; 0 while too little was measured in the last ten seconds."""
        return self._p95_since(self._clock() - WINDOW_SECONDS)

    def _p95_since(self, start: float) -> float:
        with self._lock:
            taken = [seconds for when, seconds in self._ticks if when >= start]
        long = len(taken) >= FEW_TICKS and sum(taken) > LONG_SECONDS
        return float(np.percentile(taken, 95)) if long or len(taken) >= LEAST_TICKS else 0.0

    def admits(self, live: int) -> bool:
        """Whether one more than `live` conversations can be held in time; one always may try."""
        if live == 0:
            return True
        if self.p95 > TICK_LIMIT_SECONDS:
            return False
        return self._table is None or live < self._table.slots_in_time()

    def step(self, transcribing: bool) -> Step:
        """What to do now; each step is asked for once, the next after five more seconds."""
        now = self._clock()
        self.shedding = self._p95_since(max(now - WINDOW_SECONDS, self._acted_at)) > SHED_SECONDS
        if not self.shedding:
            self._since = None
            if now >= self._resume_at and self.p95 <= TICK_LIMIT_SECONDS:
                self.recogniser_paused = False
            return Step.NOTHING
        if self._since is None:
            self._since = now
        if now - self._since < PATIENCE_SECONDS:
            return Step.NOTHING
        self._since = self._acted_at = now
        if transcribing and not self.recogniser_paused:
            self._pause(now)
            return Step.PAUSE_RECOGNISER
        return Step.END_NEWEST

    def _pause(self, now: float) -> None:
        """Each pause is longer than the last, unless all went well for long: no see-saw."""
        if now - self._resume_at > MOST_REST_SECONDS:
            self._rest = WINDOW_SECONDS
        self.recogniser_paused = True
        self._resume_at = now + self._rest
        self._rest = min(2 * self._rest, MOST_REST_SECONDS)


class Shedding:
    """Does what overload asks for."""

    def __init__(
        self, overload: Overload, backend: Backend, give_up: Callable[[Seat, EngineError], None]
    ) -> None:
        self._overload, self._backend, self._give_up = overload, backend, give_up

    def act(self, seats: list[Seat]) -> None:
        """After a tick: the recogniser goes first, then the newest conversation."""
        backend, was_paused = self._backend, self._overload.recogniser_paused
        step = self._overload.step(backend.transcribes and backend.transcribing)
        if step is Step.PAUSE_RECOGNISER:
            logger.warning("overload: the recogniser is paused")
            backend.transcribing = False
        elif step is Step.END_NEWEST:
            self._end_newest([seat for seat in seats if not seat.left])
        elif was_paused and not self._overload.recogniser_paused:
            backend.transcribing = True

    def _end_newest(self, seats: list[Seat]) -> None:
        if len(seats) > 1:  # the last one is better slow than gone
            newest = max(seats, key=lambda seat: seat.joined)
            self._give_up(newest, BusyError("the server is overloaded; retry in 60 s"))
