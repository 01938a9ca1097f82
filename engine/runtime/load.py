"""How much a machine bears: slots in time, what to do in overload, what fits between two ticks.

Three parts: the timed ticks, from which the number of slots follows; overload, which closes
admission and asks the scheduler for relief; slack, in which prompts and renewals run. Arithmetic
and a stopwatch: nothing is guessed, and nothing knows a card's name. Loads no torch. Source of the
rules: docs/internals.md.
"""

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial

import numpy as np

from engine.config import FRAME_SECONDS, LATE_SECONDS
from engine.errors import BadParameterError, EngineError, ModelError, logged_fault
from engine.runtime.backend import Backend, Opening
from engine.runtime.metrics import Metrics
from engine.runtime.seat import Renewed, Seat

logger = logging.getLogger(__name__)

# -- how many slots are in time --------------------------------------------------------------------

TICK_LIMIT_SECONDS = 0.070  # of 80 ms: the rest is for what lies around the backend
# A frame that comes when a tick has just begun waits for its end and is made in the next one.
IN_TIME_SECONDS = LATE_SECONDS / 2
WARM_UPS = 2  # rounds that are not counted: kernels are compiled in them, and buffers made
ROUNDS = 20  # that are; all of it should take an A10G less than 6 s


@dataclass(frozen=True, slots=True)
class TickTable:
    """Measured seconds of a tick per bucket, with every slot's context full."""

    seconds: Mapping[int, float]  # slots of a bucket -> its tick
    pieces: Mapping[int, float] = field(default_factory=dict)  # columns -> a piece of a prompt

    def tick(self, slots: int) -> float:
        """Of the cheapest bucket that covers this many slots; beyond the largest, never in time.

        A larger bucket has more to do: a smaller one that took longer was disturbed meanwhile.
        """
        covering = (taken for size, taken in self.seconds.items() if size >= slots)
        return min(covering, default=float("inf"))

    def slots_in_time(self) -> int:
        """The largest bucket in whose ticks no frame is late, nor in any smaller; 0: none."""
        good = [size for size in self.seconds if self.tick(size) <= IN_TIME_SECONDS]
        return max(good, default=0)

    def piece_when_full(self) -> int:
        """The largest piece that makes nobody late where all slots in time are taken.

        Tick follows tick then: who spoke when one had begun waits for it, a piece, and the next.
        """
        around = 2 * self.tick(self.slots_in_time()) + AROUND_SECONDS
        sizes = [size for size, taken in self.pieces.items() if around + taken <= LATE_SECONDS]
        return max(sizes, default=min(self.pieces))


def time_ticks(
    buckets: tuple[int, ...],
    tick: Callable[[int], float],
    pieces: tuple[int, ...],
    piece: Callable[[int], float],
) -> TickTable:
    """Time a tick of each bucket and a piece of each size: the 90th percentile counts.

    `tick(slots)` and `piece(columns)` run one and return its seconds. They take turns, so that a
    hiccup of the machine falls on few of each and not on all of one bucket.
    """
    works = [partial(tick, size) for size in buckets] + [partial(piece, size) for size in pieces]
    rounds = [[work() for work in works] for _ in range(WARM_UPS + ROUNDS)][WARM_UPS:]
    taken = np.percentile(rounds, 90, axis=0, method="inverted_cdf").tolist()
    ticks, of_pieces = taken[: len(buckets)], taken[len(buckets) :]
    return TickTable(
        dict(zip(buckets, ticks, strict=True)), dict(zip(pieces, of_pieces, strict=True))
    )


# -- overload --------------------------------------------------------------------------------------

WINDOW_SECONDS = 10.0  # that measurements count; older ones say nothing of the machine now
LEAST_TICKS = 10  # about a second of them: fewer are a hiccup, and say nothing of the machine
FEW_TICKS, LONG_SECONDS = 3, 1.0  # ticks so long that there are no more
HICCUPS = 2  # slow ticks in ten seconds that close nothing, however few there were beside them
IDLE_SECONDS = 1.0  # without a tick: there is nothing to do, so there is no overload
SHED_SECONDS = 0.078  # p95 above it is overload
PATIENCE_SECONDS = 5.0  # of overload before something is given up; of waiting for slack
MOST_REST_SECONDS = 600.0  # of a recogniser that was paused again and again
KEPT_FRAMES = 3  # of a slot's backlog that are never dropped


class Relief(IntEnum):
    """What overload asks for."""

    NOTHING = 0
    PAUSE_RECOGNISER = 1
    END_NEWEST = 2


class Overload:
    """p95 of the tick over ten seconds, and what follows from it.

    It is given the seconds of every tick and asked on the scheduler's thread; `admits` may be
    asked from any thread.
    """

    def __init__(self, clock: Callable[[], float], table: TickTable | None = None) -> None:
        self._clock, self._table = clock, table
        self._lock = threading.Lock()
        self._ticks: deque[tuple[float, float]] = deque()  # (when, seconds)
        self._since: float | None = None  # when p95 rose above the shedding limit
        self._acted_at = -WINDOW_SECONDS  # what comes after a step is judged by its own ticks
        self._rest = WINDOW_SECONDS  # of the recogniser, when it is paused next
        self._resume_at = 0.0
        self.shedding = False  # in overload, even for a moment: quiet frames are dropped
        self.recogniser_paused = False

    def add_tick(self, seconds: float) -> None:
        now = self._clock()
        with self._lock:
            self._ticks.append((now, seconds))
            while self._ticks[0][0] < now - WINDOW_SECONDS:
                self._ticks.popleft()

    def _p95(self, now: float, start: float = float("-inf")) -> float:
        """Of the last ten seconds, or from `start` on; 0 while too little was measured.

        The two longest ticks never decide: one slow moment of the machine is no overload.
        """
        start = max(start, now - WINDOW_SECONDS)
        with self._lock:
            taken = sorted(seconds for when, seconds in self._ticks if when >= start)
        long = len(taken) >= FEW_TICKS and sum(taken) > LONG_SECONDS
        if not long and len(taken) < LEAST_TICKS:
            return 0.0
        return taken[-1 - max(HICCUPS, int(0.05 * len(taken)))]

    def admits(self, live: int) -> bool:
        """Whether one more than `live` conversations can be held in time; one always may try."""
        if live == 0:
            return True
        now = self._clock()
        with self._lock:
            last, seconds = self._ticks[-1] if self._ticks else (float("-inf"), 0.0)
        idle = now - last > IDLE_SECONDS + seconds
        if not idle and self._p95(now) > TICK_LIMIT_SECONDS:
            return False
        return self._table is None or live < self._table.slots_in_time()

    def step(self, transcribing: bool) -> Relief:
        """What to do now; each step is asked for once, the next after five more seconds."""
        now = self._clock()
        self.shedding = self._p95(now, self._acted_at) > SHED_SECONDS
        if not self.shedding:
            self._since = None
            if now >= self._resume_at and self._p95(now) <= TICK_LIMIT_SECONDS:
                self.recogniser_paused = False
            return Relief.NOTHING
        if self._since is None:
            self._since = now
        if now - self._since < PATIENCE_SECONDS:
            return Relief.NOTHING
        self._since = self._acted_at = now
        if not transcribing or self.recogniser_paused:
            return Relief.END_NEWEST
        # Each pause is longer than the last, unless all went well for long: no see-saw.
        if now - self._resume_at > MOST_REST_SECONDS:
            self._rest = WINDOW_SECONDS
        self.recogniser_paused = True
        self._resume_at = now + self._rest
        self._rest = min(2 * self._rest, MOST_REST_SECONDS)
        return Relief.PAUSE_RECOGNISER


# -- slack -----------------------------------------------------------------------------------------

AROUND_SECONDS = FRAME_SECONDS - TICK_LIMIT_SECONDS  # what lies around the backend
STARVED_SECONDS = FRAME_SECONDS / 2  # without a gap between ticks: work may now go before a tick
MEASUREMENTS = 5  # of one kind of work, whose median counts
DOUBT_SECONDS = 0.2  # after which a measurement that holds work back is put to the proof


class Slack:
    """Whether what may wait fits in before somebody's frame would be late.

    What may wait is a piece of a prompt or of a renewal, and a newcomer's first tick where nobody
    else's frame is to be run. How long they take is what was timed at the start (`pieces`: columns
    -> seconds) or, if that is more, the median of what was measured lately: one slow moment changes
    no median. Where only old measurements hold work back, they are forgotten and the work is tried.
    """

    def __init__(self, pieces: Mapping[int, float] | None = None) -> None:
        # A prompt's last piece is a short one: less than what was timed says nothing.
        self._timed = {("piece", size): taken for size, taken in (pieces or {}).items()}
        self.sizes = sorted(pieces or (0,), reverse=True)  # of pieces; 0: they have one size
        self._measured: dict[tuple[str, int], deque[tuple[float, float]]] = {}  # (when, seconds)
        # Estimates of one moment: many newcomers ask the same.
        self._known_at: float | None = None
        self._known: dict[tuple[str, int | None, float], float] = {}
        self._doubt = DOUBT_SECONDS  # longer each time that the proof confirmed what was measured
        self._refused_at: dict[str, float] = {}  # since when a kind of work has been held back
        self._waiting: dict[Seat, None] = {}  # whose work has been held back since then
        self._granted: dict[Seat, None] = {}  # whose work may run next, whether it fits or not

    def note(self, what: str, seconds: float, now: float, size: int = 0) -> None:
        """A `piece` of so many columns, or a `tick` of a bucket of slots, took this long."""
        self._known_at = None
        self._measured.setdefault((what, size), deque(maxlen=MEASUREMENTS)).append((now, seconds))

    def forget(self, seat: Seat) -> None:
        """Its work is void: who sits there next waits anew."""
        self._waiting.pop(seat, None)
        self._granted.pop(seat, None)
        if not self._waiting:
            self._refused_at.clear()

    def estimate(
        self, what: str, now: float, within: float = WINDOW_SECONDS, size: int | None = None
    ) -> float:
        """Seconds of such work of one size, or of the size that took longest lately."""
        if now != self._known_at:
            self._known_at, self._known = now, {}
        key = what, size, within
        if key not in self._known:
            self._known[key] = self._find_longest(now, *key)
        return self._known[key]

    def _find_longest(self, now: float, what: str, size: int | None, within: float) -> float:
        longest = self._timed.get((what, size), 0.0)
        for (kind, measured_size), measured in self._measured.items():
            same = kind == what and size in (None, measured_size)
            if same and measured[-1][0] >= now - within:
                lately = sorted(taken for at, taken in measured if at >= now - WINDOW_SECONDS)
                longest = max(longest, lately[(len(lately) - 1) // 2])
        return longest

    def fit_piece(self, now: float, next_due: float | None, seat: Seat) -> int | None:
        """Columns of the piece that this seat may run now, as many as fit; None: none may run."""
        fitting = (s for s in self.sizes if self._fits(now, next_due, "piece", WINDOW_SECONDS, s))
        size = next(fitting, self.sizes[-1])
        return size if self.allows(now, next_due, seat, "piece", size) else None

    def allows(
        self, now: float, next_due: float | None, seat: Seat, what: str, size: int | None = None
    ) -> bool:
        """Whether this seat's work may run now.

        next_due: as the function below says.
        """
        if self._fits(now, next_due, what, WINDOW_SECONDS, size):
            self._doubt = DOUBT_SECONDS
            self._refused_at.pop(what, None)
            self.forget(seat)
            return True
        if seat in self._granted:
            del self._granted[seat]
            return True
        self._waiting[seat] = None
        waited = now - self._refused_at.setdefault(what, now)
        if waited > self._doubt and self._fits(now, next_due, what, DOUBT_SECONDS, size):
            self._measured = {
                kind: measured
                for kind, measured in self._measured.items()
                if measured[-1][0] >= now - DOUBT_SECONDS
            }
            self._known_at = None
            self._doubt = min(2 * self._doubt, PATIENCE_SECONDS)
        elif waited > PATIENCE_SECONDS:  # a machine that never has slack still serves, and all who
            self._granted, self._waiting = self._waiting, {}  # wait: not one after the other
            del self._granted[seat]
        else:
            return False
        self._refused_at.pop(what)
        return True

    def _fits(
        self, now: float, next_due: float | None, what: str, within: float, size: int | None
    ) -> bool:
        """By what was timed at the start and what was measured `within` the last seconds."""
        if next_due is None:
            return True
        work, tick = self.estimate(what, now, within, size), self.estimate("tick", now, within)
        return now + work + tick + AROUND_SECONDS <= next_due + LATE_SECONDS


def next_due(seats: list[Seat], now: float) -> float | None:
    """When the earliest user frame that can be answered in time is or will be complete.

    None: there is none. A silent client's may be complete at any moment, so from now on. What is
    late already, after a slow moment, is caught up with beside the newcomers and not before them.
    """
    awake = [seat for seat in seats if seat.live and not seat.left and seat.frozen_at is None]
    live = [seat.expected_at(now) or now for seat in awake]
    return min((due for due in live if due + LATE_SECONDS >= now), default=None)


FOLDERS = re.compile(r"(?:/[^\s/]+)+/")  # of this machine, in a fault: no client's business


def read_files(backend: Backend, opening: Opening) -> None:
    """What an opening needs. Loader's thread.

    Raises BadParameterError with what is wrong with the files of its voice.
    """
    try:
        backend.prepare(opening)
    except (ModelError, OSError) as error:
        why = f"voice {opening.voice} cannot be used: {FOLDERS.sub('', str(error))}"
        raise BadParameterError(why, "voice_prompt: a file that is no voice") from None


class SlackWork:
    """Prompts first, as somebody waits for them; then renewals. Scheduler's thread only.

    One bounded piece at a time, and none that would make somebody's frame late. When the next tick
    runs is the scheduler's affair.
    """

    def __init__(
        self,
        backend: Backend,
        clock: Callable[[], float],
        give_up: Callable[[Seat, EngineError], None],
        metrics: Metrics,
    ) -> None:
        self.slack = Slack(backend.ticks.pieces if backend.ticks else None)
        self._backend, self._clock, self._give_up = backend, clock, give_up
        self._metrics = metrics
        self._renewals: dict[Seat, Generator[None, None, int]] = {}
        self._waiting_since: float | None = None  # something for its next piece

    def run_piece(self, seats: list[Seat]) -> bool:
        """One piece, if there is work and nobody gets late by it; whether there was one."""
        started = self._clock()
        jobs = self._jobs(seats)
        due = next_due(seats, started) if jobs else None
        for seat, work in jobs:
            size = self.slack.fit_piece(started, due, seat)
            if size is not None:
                if size:
                    self._backend.limit_piece(size)
                work()
                now = self._clock()
                self.slack.note("piece", now - started, now, size)
                self._waiting_since = None
                return True
        return False

    def is_starving(self, seats: list[Seat], now: float) -> bool:
        """Whether work has been waiting for long, because tick follows tick without a gap."""
        if not self._jobs(seats):
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        return self._waiting_since is not None and now - self._waiting_since > STARVED_SECONDS

    def drop(self, seat: Seat) -> None:
        """Break off a renewal: its conversation is over, the spare memory is free."""
        self.slack.forget(seat)
        if work := self._renewals.pop(seat, None):
            work.close()

    def _jobs(self, seats: list[Seat]) -> list[tuple[Seat, Callable[[], None]]]:
        """Every newcomer and the next piece of its prompt; without one, the renewal's."""
        staying = [seat for seat in seats if not seat.left]
        if newcomers := [seat for seat in staying if seat.needs_prompt]:
            return [(seat, partial(self._prefill, seat)) for seat in newcomers]
        for seat in staying:
            if not self._renewals and seat.live and (work := self._backend.renew(seat.slot)):
                self._renewals[seat] = work
        return [(seat, partial(self._renew, seat, work)) for seat, work in self._renewals.items()]

    def _prefill(self, seat: Seat) -> None:
        """One bounded piece of a newcomer's prompt."""
        try:
            if seat.work is None:
                seat.prepared.result()  # raises what is wrong with its voice
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
            self._metrics.renewed()
            logger.info("slot %d renewed: it remembers the last %d frames", seat.slot, end.value)
            seat.deliver([Renewed(end.value)])
        except Exception:  # out of memory, say: the call goes on with the memory that it has
            del self._renewals[seat]
            logged_fault("a renewal failed")
