"""Asking each seat's director: what it makes of its inbox, which text is fed, what a flush brings.

One conversation's fault ends that conversation, never its neighbours'. Scheduler's thread only.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from engine.config import FRAME_SAMPLES, PAD, SamplingConfig
from engine.errors import BusyError, EngineError, logged_fault
from engine.runtime.backend import Backend, Heard, Opening, Spoken
from engine.runtime.load import KEPT_FRAMES, Overload, Shedding, SlackWork, next_due
from engine.runtime.metrics import Dropped, Metrics, Stage
from engine.runtime.seat import Ended, Frame, FrameDirector, Notice, Output, Ready, Seat

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """Who takes part in a tick."""

    seats: list[Seat]
    pcm: np.ndarray  # [S, 1920] float32
    active: np.ndarray  # [S] bool
    peaks: dict[Seat, float] = field(default_factory=dict)  # of the user frames
    due: dict[Seat, float] = field(default_factory=dict)  # when the user frames were complete


class Directing:
    """All seats' directors, each behind its own fence."""

    def __init__(self, backend: Backend, give_up: Callable[[Seat, EngineError], None]) -> None:
        self._backend, self._give_up = backend, give_up

    def read_inboxes(self, seats: list[Seat]) -> None:
        for seat in seats:
            self._tell(seat, seat.obey)

    def flush(self, seats: list[Seat]) -> bool:
        """One step of the recogniser alone for all whose turn has just ended; whether there was."""
        if not (self._backend.transcribes and self._backend.transcribing):
            return False
        flushing = {seat.slot: seat for seat in seats if seat.flushing and not seat.left}
        if flushing:
            for slot, heard in self._backend.flush(list(flushing)).items():
                self._tell(flushing[slot], partial(flushing[slot].director.flush, heard))
        return bool(flushing)

    def choose(self, batch: Batch, heard: Heard) -> tuple[np.ndarray, np.ndarray]:
        """Which token is fed to each slot: text [S] int64, hush [S] bool."""
        text = np.full(self._backend.slots, PAD, np.int64)
        hush = np.zeros(self._backend.slots, bool)
        for seat in batch.seats:
            slot = seat.slot
            try:
                text[slot], hush[slot] = seat.director.step(
                    int(heard.text[slot]), heard.row(slot), batch.peaks[seat], seat.peak_out
                )
                seat.chosen = seat.director.events()
            except Exception:  # one conversation's fault must not reach its neighbours
                self._give_up(seat, logged_fault("director failed"))
        return text, hush

    def _tell(self, seat: Seat, report: Callable[[], list[Any]]) -> None:
        """Deliver what a director reports between two frames."""
        try:
            events = report()
        except Exception:  # one conversation's fault must not reach its neighbours
            self._give_up(seat, logged_fault("director failed"))
            return
        if events:
            seat.deliver([Notice(events)])


# -- scheduler -------------------------------------------------------------------------------------
#
# Who runs frames: one thread owns the backend and ticks it for every slot that has a frame.
#
# Not a place for conversation: which text is fed is each seat's director's affair, who may talk for
# how long the session's. Source of the clock rules: performance.md 2.6 (public batched servers).

RETRY_SECONDS = 3  # what a refused client is told
LOOK_AGAIN_SECONDS = 0.02  # for slack, while a prompt waits for it


class Scheduler:
    """Slots, the frame clock and the thread that owns the backend.

    `on_death` is called, in the scheduler's thread, with the exception that ended it.
    """

    def __init__(
        self,
        backend: Backend,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.backend = backend
        self.metrics = metrics or Metrics()
        self.clock = clock
        self._on_death = on_death
        self.overload = Overload(clock, backend.ticks)
        self._shedding = Shedding(self.overload, backend, self._give_up)
        self._directing = Directing(backend, self._give_up)
        self._between = SlackWork(backend, clock, self._give_up)
        self._count = itertools.count()  # of conversations, to know the newest
        self._seats: dict[int, Seat] = {}  # slot -> seat
        self._leavers: list[Seat] = []  # whose slots are to be closed before anything is opened
        self._sitting: list[Seat] = []  # scheduler's thread: who sat there when its turn began
        self._tasks: list[Callable[[], None]] = []  # for the scheduler's thread
        self._wake = threading.Condition()
        self._awake = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    # -- any thread --------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the tick in progress."""
        self._stopping = True
        self.wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def free(self) -> int:
        """How many newcomers in a row would be admitted now, which may be fewer than free slots."""
        empty = range(len(self._seats), self.backend.slots)
        return sum(1 for _ in itertools.takewhile(self.overload.admits, empty))

    def join(
        self, opening: Opening, director: FrameDirector, deliver: Callable[[list[Output]], None]
    ) -> Seat:
        """Take the lowest free slot. Raises BusyError if there is none."""
        seat = Seat(opening, director, deliver, self.wake, self.metrics)
        with self._wake:
            free = [slot for slot in range(self.backend.slots) if slot not in self._seats]
            if not free:
                raise BusyError(
                    f"all {self.backend.slots} conversations are taken; retry in {RETRY_SECONDS} s"
                )
            if not self.overload.admits(len(self._seats)):
                raise BusyError(
                    f"{len(self._seats)} conversations are all this server holds in time; "
                    f"retry in {RETRY_SECONDS} s"
                )
            seat.slot, seat.joined = free[0], next(self._count)
            self._seats[seat.slot] = seat
        self.metrics.opened()
        self.wake()
        return seat

    def leave(self, seat: Seat, reason: str) -> None:
        """Give a seat back: at once somebody else may take its slot. Again: nothing."""
        with self._wake:
            if seat.left:
                return
            seat.left = True
            del self._seats[seat.slot]
            self._leavers.append(seat)
        self.metrics.ended(reason)
        self.wake()

    def restart(self, seat: Seat, opening: Opening, director: FrameDirector) -> None:
        """The same slot from the beginning; `Ready` is delivered again."""
        seat.forget()
        self._do(lambda: self._reopen(seat, opening, director))

    def tune(self, seat: Seat, sampling: SamplingConfig) -> None:
        """Change how a seat samples from its next tick on."""
        self._do(lambda: self._tune(seat, sampling))

    def wake(self) -> None:
        with self._wake:
            self._awake = True
            self._wake.notify()

    def _do(self, task: Callable[[], None]) -> None:
        with self._wake:
            self._tasks.append(task)
        self.wake()

    # -- scheduler's thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wait(self.turn())
        except Exception as error:  # the thread's boundary: whoever owns the process must know
            self._bury(error)

    def _bury(self, error: Exception) -> None:
        fault = logged_fault("the scheduler's thread died")
        with self._wake:
            seats = list(self._seats.values())
        for seat in seats:
            seat.deliver([Ended(fault)])
        if self._on_death:
            self._on_death(error)

    def _wait(self, until: float | None) -> None:
        """Sleep until woken or `until`."""
        with self._wake:
            if not self._awake:
                timeout = None if until is None else max(0.0, until - self.clock())
                self._wake.wait(timeout)
            self._awake = False

    def turn(self) -> float | None:
        """One round: tick what is ready, else one piece of work. When to come back, or None."""
        self._tidy()
        seats, between = self._sitting, self._between
        self._directing.read_inboxes(seats)
        now = self.clock()
        if between.starves(seats, now) and between.piece(seats):
            return self.clock()
        if ready := self._ready(now):
            self._tick(self._collect(ready, now))
            return self.clock()
        if self._directing.flush(seats) or between.piece(seats):
            return self.clock()
        return self._next_at()

    def _tidy(self) -> None:
        """Close the slots of those who left, carry out what other threads asked for, look round."""
        with self._wake:
            tasks, self._tasks = self._tasks, []
            leavers, self._leavers = self._leavers, []
            self._sitting = list(self._seats.values())
        for seat in leavers:
            self._close(seat)
        for task in tasks:
            task()

    def _reopen(self, seat: Seat, opening: Opening, director: FrameDirector) -> None:
        if not seat.left:
            self._close(seat)
            seat.restart(opening, director)

    def _close(self, seat: Seat) -> None:
        self._between.drop(seat)
        if seat.is_open:
            self.backend.close(seat.slot)

    def _tune(self, seat: Seat, sampling: SamplingConfig) -> None:
        if seat.left:
            return
        if seat.bootstrapping or seat.live:
            self.backend.tune(seat.slot, sampling)
        elif seat.work is None:  # not open yet: it opens with these settings
            seat.opening = replace(seat.opening, sampling=sampling)
        else:  # its prompts are going in: when they are in
            seat.tuned = sampling

    def _give_up(self, seat: Seat, error: EngineError) -> None:
        seat.deliver([Ended(error)])
        self.leave(seat, "error")

    def _ready(self, now: float) -> list[Seat]:
        """Every seat that has a whole frame, or must get one; nobody, if all of them can wait."""
        seats = [seat for seat in self._sitting if not seat.left]
        ready = [s for s in seats if (at := s.next_tick_at(now)) is not None and at <= now]
        others = [seat for seat in seats if seat not in ready]
        return ready if any(self._may_start(seat, others, now) for seat in ready) else []

    def _may_start(self, seat: Seat, others: list[Seat], now: float) -> bool:
        """Whether this seat is worth a tick now. In a tick of somebody else's it rides along."""
        if seat.bootstrapping:  # a newcomer makes nobody late
            return self._between.slack.allows(now, next_due(others, now), seat, "tick")
        return not (seat.catches_up(now) and any(other.is_late(now) for other in others))

    def _collect(self, seats: list[Seat], now: float) -> Batch:
        """Take one frame of each of them."""
        size = self.backend.slots
        batch = Batch(seats, np.zeros((size, FRAME_SAMPLES), np.float32), np.zeros(size, bool))
        for seat in seats:
            batch.active[seat.slot] = True
            if not seat.bootstrapping:
                if self.overload.shedding:
                    self.metrics.dropped(seat.drop_quiet(KEPT_FRAMES), Dropped.OVERLOAD)
                batch.pcm[seat.slot], batch.due[seat] = seat.take_frame(now)
                self.metrics.took(Stage.QUEUE, max(0.0, now - batch.due[seat]))
            batch.peaks[seat] = float(np.abs(batch.pcm[seat.slot]).max())
        return batch

    def _tick(self, batch: Batch) -> None:
        """One frame for every seat of the batch."""
        started = self.clock()
        heard = self.backend.listen(batch.pcm, batch.active)
        listened = self.clock()
        before = {seat: seat.chosen for seat in batch.seats}  # events of the frame made now
        text, hush = self._directing.choose(batch, heard)
        chosen = self.clock()
        spoken = self.backend.speak(text, hush)
        ready = self.clock()
        self._deliver(batch, spoken, before, ready)
        step = (listened - started) + (ready - chosen)
        self.metrics.ticked(len(batch.seats), step)
        live = len(batch.due)
        self.metrics.took(Stage.LISTEN, listened - started, live)
        self.metrics.took(Stage.CHOOSE, chosen - listened, live)
        self.metrics.took(Stage.SPEAK, ready - chosen, live)
        self.overload.ticked(step)
        self._between.slack.tick_took(step)
        self._shedding.act(self._sitting)

    def _deliver(
        self, batch: Batch, spoken: Spoken, before: dict[Seat, list], ready: float
    ) -> None:
        for seat in batch.seats:
            if seat.left:
                continue
            pcm = spoken.pcm[seat.slot].copy()
            if seat.bootstrapping:  # this pcm is the last prompt frame's: nobody hears it
                seat.bootstrapping, seat.live = False, True
                seat.deliver([Ready()])
                continue
            seat.peak_out = float(np.abs(pcm).max())
            seat.answered(batch.due[seat], self.clock())
            seat.deliver([Frame(pcm, before[seat], batch.due[seat], ready)])

    def _next_at(self) -> float | None:
        """When the earliest seat's next frame may run; soon, where somebody waits for slack."""
        now = self.clock()
        seats = [seat for seat in self._sitting if not seat.left]
        times = [at for seat in seats if (at := seat.next_tick_at(now)) is not None]
        times = [at if at > now else now + LOOK_AGAIN_SECONDS for at in times]
        if any(not (seat.live or seat.bootstrapping) for seat in seats):
            times.append(now + LOOK_AGAIN_SECONDS)  # a prompt waits: nobody else wakes us
        return min(times, default=None)
