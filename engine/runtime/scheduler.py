"""Who runs frames: one thread owns the backend and ticks it for every slot that has a frame.

Not a place for conversation: which text is fed is each seat's director's affair, who may talk for
how long the session's. Source of the clock rules: performance.md 2.6 (public batched servers).
"""

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from engine.config import FRAME_SAMPLES, PAD, SamplingConfig
from engine.errors import BusyError, EngineError, InternalError
from engine.runtime.backend import Backend, Heard, Opening, Spoken
from engine.runtime.metrics import Metrics
from engine.runtime.overload import KEPT_FRAMES, Overload, Slack
from engine.runtime.overload import Step as Shed
from engine.runtime.seat import Director, Ended, Frame, Notice, Output, Ready, Renewed, Seat

logger = logging.getLogger(__name__)

DONE = object()  # what an exhausted piece of work says
RETRY_SECONDS = 3  # what a refused client is told
LOOK_AGAIN_SECONDS = 0.02  # for slack, while a prompt waits for it


def logged_fault(what: str) -> InternalError:
    """Log the exception at hand under an id; the error that tells a client that id."""
    error_id = uuid.uuid4().hex[:8]
    logger.exception("%s, error %s", what, error_id)
    return InternalError(f"{error_id}; the server's log has the details")


@dataclass(slots=True)
class Batch:
    """Who takes part in a tick."""

    seats: list[Seat]
    pcm: np.ndarray  # [S, 1920] float32
    active: np.ndarray  # [S] bool
    peaks: dict[Seat, float]  # of the user frames
    due: dict[Seat, float]  # when the user frames were complete


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
        self._slack = Slack()
        self._count = itertools.count()  # of conversations, to know the newest
        self._renewals: dict[Seat, Iterator[None]] = {}
        self._seats: dict[int, Seat] = {}  # slot -> seat
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
        """Slots nobody sits in."""
        return self.backend.slots - len(self._seats)

    def _sitting(self) -> list[Seat]:
        with self._wake:
            return list(self._seats.values())

    def join(
        self, opening: Opening, director: Director, deliver: Callable[[list[Output]], None]
    ) -> Seat:
        """Take the lowest free slot. Raises BusyError if there is none."""
        seat = Seat(opening, director, deliver, self.wake)
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
        """Give a seat back; its slot is free after the tick in progress. Again: nothing."""
        if not seat.left:
            seat.left = True
            self.metrics.ended(reason)
            self.wake()

    def restart(self, seat: Seat, opening: Opening, director: Director) -> None:
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
        for seat in self._sitting():
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
        self._read_inboxes()
        batch = self._collect(self.clock())
        if batch.seats:
            self._tick(batch)
            return self.clock()
        if self._flush() or self._fill_slack():
            return self.clock()
        return self._next_at()

    def _fill_slack(self) -> bool:
        """One piece of a prompt or of a renewal, if nobody gets late by it; whether there was."""
        started = self.clock()
        if not self._slack.allows(started, self._next_due(started)):
            return False
        worked = self._prepare() or self._renew()
        if worked:
            self._slack.piece_took(self.clock() - started)
        return worked

    def _next_due(self, now: float) -> float | None:
        """When the earliest coming user frame is complete; None: nobody is live."""
        live = [seat.expected_at for seat in self._sitting() if seat.live and not seat.left]
        return max(now, min(live)) if live else None

    def _renew(self) -> bool:
        """One piece of work for a conversation whose context runs out; whether there was one."""
        for seat in self._sitting():
            if seat.left or not seat.live:
                self._renewals.pop(seat, None)
                continue
            work = self._renewals.get(seat) or self.backend.renew(seat.slot)
            if work is None:
                continue
            self._renewals[seat] = work
            if next(work, DONE) is DONE:
                del self._renewals[seat]
                seat.deliver([Renewed(self.backend.kept_frames)])
            return True
        return False

    def _shed(self) -> None:
        """In overload: the recogniser goes first, then the newest conversation."""
        backend, was_paused = self.backend, self.overload.recogniser_paused
        step = self.overload.step(backend.transcribes and backend.transcribing)
        if step is Shed.PAUSE_RECOGNISER:
            logger.warning("overload: the recogniser is paused")
            backend.transcribing = False
        elif step is Shed.END_NEWEST:
            seats = [seat for seat in self._sitting() if not seat.left]
            if len(seats) > 1:  # the last one is better slow than gone
                newest = max(seats, key=lambda seat: seat.joined)
                self._give_up(newest, BusyError("the server is overloaded; retry in a minute"))
        elif was_paused and not self.overload.recogniser_paused:
            backend.transcribing = True

    def _tidy(self) -> None:
        """Carry out what other threads asked for; free the slots of those who left."""
        with self._wake:
            tasks, self._tasks = self._tasks, []
        left = [seat for seat in self._sitting() if seat.left]
        for task in tasks:
            task()
        for seat in left:
            if seat.is_open:
                self.backend.close(seat.slot)
            with self._wake:
                del self._seats[seat.slot]

    def _reopen(self, seat: Seat, opening: Opening, director: Director) -> None:
        if not seat.left:
            if seat.is_open:
                self.backend.close(seat.slot)
            seat.restart(opening, director)

    def _tune(self, seat: Seat, sampling: SamplingConfig) -> None:
        if seat.left:
            return
        if seat.bootstrapping or seat.live:
            self.backend.tune(seat.slot, sampling)
        elif seat.work is None:  # not open yet: it opens with these settings
            seat.opening = replace(seat.opening, sampling=sampling)
        else:  # its prompts are going in: when they are in
            self.tune(seat, sampling)

    def _read_inboxes(self) -> None:
        for seat in self._sitting():
            self._tell(seat, seat.obey)

    def _flush(self) -> bool:
        """One step of the recogniser alone for all whose turn has just ended; whether there was."""
        if not (self.backend.transcribes and self.backend.transcribing):
            return False
        seats = {seat.slot: seat for seat in self._sitting() if seat.flushing and not seat.left}
        if seats:
            for slot, heard in self.backend.flush(list(seats)).items():
                self._tell(seats[slot], partial(seats[slot].director.flush, heard))
        return bool(seats)

    def _tell(self, seat: Seat, report: Callable[[], list[Any]]) -> None:
        """Deliver what a director reports between two frames."""
        try:
            events = report()
        except Exception:  # one conversation's fault must not reach its neighbours
            self._give_up(seat, logged_fault("director failed"))
            return
        if events:
            seat.deliver([Notice(events)])

    def _prepare(self) -> bool:
        """One bounded piece of one newcomer's prompt; whether there was one."""
        for seat in self._sitting():
            if seat.left or seat.live or seat.bootstrapping:
                continue
            try:
                if seat.work is None:
                    seat.work = self.backend.open(seat.slot, seat.opening)
                next(seat.work)
            except StopIteration:
                seat.bootstrapping = True
            except EngineError as error:  # this conversation's own fault, a voice for example
                self._give_up(seat, error)
            return True
        return False

    def _give_up(self, seat: Seat, error: EngineError) -> None:
        seat.deliver([Ended(error)])
        self.leave(seat, "error")

    def _collect(self, now: float) -> Batch:
        """Every seat that has a whole frame, or must get one."""
        size = self.backend.slots
        batch = Batch([], np.zeros((size, FRAME_SAMPLES), np.float32), np.zeros(size, bool), {}, {})
        for seat in self._sitting():
            at = seat.next_tick_at(now)
            if seat.left or at is None or at > now:
                continue
            batch.seats.append(seat)
            batch.active[seat.slot] = True
            if not seat.bootstrapping:
                if self.overload.shedding:
                    self.metrics.dropped(seat.drop_quiet(KEPT_FRAMES))
                batch.pcm[seat.slot], batch.due[seat] = seat.take_frame(now)
                self.metrics.queue.add(max(0.0, now - batch.due[seat]))
            batch.peaks[seat] = float(np.abs(batch.pcm[seat.slot]).max())
        return batch

    def _tick(self, batch: Batch) -> None:
        """One frame for every seat of the batch."""
        started = self.clock()
        heard = self.backend.listen(batch.pcm, batch.active)
        listened = self.clock()
        before = {seat: seat.chosen for seat in batch.seats}  # events of the frame made now
        text, hush = self._choose(batch, heard)
        chosen = self.clock()
        spoken = self.backend.speak(text, hush)
        step = (listened - started) + (self.clock() - chosen)
        self._deliver(batch, spoken, before)
        self.metrics.ticked(len(batch.seats), step)
        self.overload.ticked(step)
        self._slack.tick_took(step)
        self._shed()

    def _choose(self, batch: Batch, heard: Heard) -> tuple[np.ndarray, np.ndarray]:
        """Ask each seat's director which token is fed: text [S] int64, hush [S] bool."""
        text = np.full(self.backend.slots, PAD, np.int64)
        hush = np.zeros(self.backend.slots, bool)
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

    def _deliver(self, batch: Batch, spoken: Spoken, before: dict[Seat, list]) -> None:
        for seat in batch.seats:
            if seat.left:
                continue
            pcm = spoken.pcm[seat.slot].copy()
            if seat.bootstrapping:  # this pcm is the last prompt frame's: nobody hears it
                seat.bootstrapping, seat.live = False, True
                seat.deliver([Ready()])
                continue
            seat.peak_out = float(np.abs(pcm).max())
            seat.deliver([Frame(pcm, before[seat], batch.due[seat])])

    def _next_at(self) -> float | None:
        """When the earliest seat's next frame may run."""
        now = self.clock()
        seats = [seat for seat in self._sitting() if not seat.left]
        times = [seat.next_tick_at(now) for seat in seats]
        if any(not (seat.live or seat.bootstrapping) for seat in seats):
            times.append(now + LOOK_AGAIN_SECONDS)  # a prompt waits for slack: nobody else wakes us
        return min((at for at in times if at is not None), default=None)
