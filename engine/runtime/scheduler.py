"""Who runs frames: one thread owns the backend and ticks it for every slot that has a frame.

Not a place for conversation: each seat's director says which text is fed, the session how long
somebody may talk. The thread runs frames and nothing else: what other threads ask for is bounded
in number and time per turn, and files are read in a thread beside it.
The clock rules follow public batched servers (docs/internals.md).
"""

import contextlib
import itertools
import logging
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import FRAME_SAMPLES, LATE_SECONDS, PAD, SamplingConfig
from engine.errors import (
    BusyError,
    EngineError,
    InternalError,
    ModelError,
    logged_fault,
)
from engine.runtime.backend import Backend, Heard, HeardRow, Opening, Spoken
from engine.runtime.ears import Listener
from engine.runtime.load import (
    KEPT_FRAMES,
    Overload,
    Relief,
    SlackWork,
    next_due,
    read_files,
)
from engine.runtime.metrics import Dropped, Metrics, Stage
from engine.runtime.seat import Ended, Frame, FrameDirector, Notice, Output, Ready, Seat

logger = logging.getLogger(__name__)

RETRY_SECONDS = 3  # what a refused client is told
LOOK_AGAIN_SECONDS = 0.02  # for slack, while a prompt or a held-back frame waits for it
REQUESTS_A_TURN = 4  # seats whose restart or settings are carried out in one turn
COMMANDS_A_TURN = 4  # of one seat
COMMANDS_SECONDS = 0.002  # for requests and commands of all seats in one turn
READERS = 2  # threads that read voices: a slow file keeps one of them
HEARTBEAT_SECONDS = 1.0  # between two turns while somebody is seated, at most
JOIN_SECONDS = 2.0  # for the turn in progress, when the thread is to end
LOOK_SECONDS = 1.0  # between two looks of a watchdog
FAIR_LOOK_SECONDS = 0.1  # between two looks at how long our threads have waited for a core
MOST_WAIT_SECONDS = 60.0  # of such waiting
STOPPED = "the model has stopped"
SILENCE = np.zeros(FRAME_SAMPLES, np.float32)  # of slots that hear nothing
ENGINE = f"{Path(__file__).parents[1]}/"  # our code; another's folder may have the same name


class Scheduler:
    """Slots, the frame clock and the thread that owns the backend.

    `on_death` is called with the exception that ended the thread, or that says that it hangs: it
    has made no turn for `hang_s`. `loader` reads the files of a newcomer's voice. `send` is called
    when something was delivered: a seat's `deliver` may keep it until then.
    """

    def __init__(
        self,
        backend: Backend,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_death: Callable[[BaseException], None] | None = None,
        loader: Executor | None = None,
        hang_s: float = 30.0,
        send: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend = backend
        self.metrics = metrics or Metrics()
        self.clock = clock
        self._on_death, self._send = on_death, send
        self._loader = loader or ThreadPoolExecutor(READERS, "voices")
        self.overload = Overload(clock, backend.ticks)
        self._slack_work = SlackWork(backend, clock, self._give_up, self.metrics)
        self._count = itertools.count()  # of conversations, to know the newest
        self._seats: dict[int, Seat] = {}  # slot -> seat
        self._leavers: list[Seat] = []  # whose slots are to be closed before anything is opened
        self._requests: dict[Seat, None] = {}  # who asked for a restart or settings, in order
        self._sitting: list[Seat] = []  # scheduler's thread: who sat there when its turn began
        self._served = -1  # the number of the seat whose command was carried out last
        self._wake = threading.Condition()
        self._awake = False
        self._stopping = False
        self._turns, self._in_turn = 0, False
        self._heartbeat_s = min(HEARTBEAT_SECONDS, hang_s / 12)  # half of what is suspect
        self.watchdog = Watchdog(hang_s, 6, self._list_signs, self._end_hung)
        self._dead: EngineError | None = None  # what everybody is told who still comes
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    # -- any thread --------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()
        self.watchdog.start()

    def stop(self) -> None:
        """End the thread after the turn in progress. A thread that hangs is left behind."""
        self._stopping = True
        self.watchdog.stop()
        self.wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            ended = wait_fairly(self._is_ended, JOIN_SECONDS)
            self.watchdog.hung |= not ended

    def _is_ended(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _list_signs(self) -> list[tuple[str, int | None]]:
        """Of turns, while somebody is seated or one is going on; of voices that are read."""
        with self._wake:
            reading = [seat.joined for seat in self._seats.values() if not seat.prepared.done()]
            turning = bool(self._seats) or self._in_turn
        return [
            (f"no turn in {describe_place(self._thread)}", self._turns if turning else None),
            ("a voice could not be read", min(reading, default=None)),
        ]

    def _end_hung(self, why: str) -> None:
        """Watchdog's thread."""
        self.give_up(InternalError(STOPPED))
        if self._on_death:
            self._on_death(ModelError(why))

    def give_up(self, error: EngineError) -> None:
        """The thread has ended, or hangs: end every conversation, and admit nobody any more."""
        with self._wake:
            self._dead = error
            seats = list(self._seats.values())
        for seat in seats:
            seat.deliver([Ended(error)])
        self._send()

    @property
    def free(self) -> int:
        """How many newcomers in a row would be admitted, which may be fewer than free slots.

        A frozen seat is free: its conversation makes way for a newcomer.
        """
        with self._wake:
            awake = sum(seat.frozen_at is None for seat in self._seats.values())
        empty = range(awake, self.backend.slots)
        return sum(1 for _ in itertools.takewhile(self.overload.admits, empty))

    def admits_instead(self) -> bool:
        """Whether a newcomer would be admitted if one of those who sit here left."""
        live = len(self._seats) - 1
        return live < self.backend.slots and self.overload.admits(live)

    def prepare(self, opening: Opening) -> Future[None]:
        """Read the files that an opening needs. Done: they are read; or it has what is wrong."""
        return self._loader.submit(read_files, self.backend, opening)

    def freeze(self, seat: Seat) -> None:
        """Let not a frame of this seat pass until `thaw`: its slot stays as it is."""
        seat.freeze(self.clock())

    def thaw(self, seat: Seat) -> None:
        seat.thaw(self.clock())
        self.wake()

    def join(
        self,
        opening: Opening,
        director: FrameDirector,
        deliver: Callable[[list[Output]], None],
        listener: Listener | None = None,
    ) -> Seat:
        """Take the lowest free slot. Raises BusyError if there is none, or in overload."""
        seat = Seat(opening, director, deliver, self.wake, self.metrics, listener)
        with self._wake:
            if self._dead:
                raise self._dead
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
            seat.prepared = self._loader.submit(self._read_files, seat)
            self._seats[seat.slot] = seat
        seat.prepared.add_done_callback(lambda _: self.wake())
        self.metrics.opened()
        self.wake()
        return seat

    def leave(self, seat: Seat, reason: str) -> None:
        """Give a seat back: somebody else may take its slot at once. A second call does nothing."""
        with self._wake:
            if seat.left:
                return
            seat.left = True
            del self._seats[seat.slot]
            self._requests.pop(seat, None)
            self._leavers.append(seat)
        self.metrics.ended(reason)
        self.wake()

    def restart(self, seat: Seat, opening: Opening, director: FrameDirector) -> None:
        """The same slot and voice from the beginning; `Ready` is delivered again."""
        seat.request_restart(opening, director)
        self._ask(seat)

    def tune(self, seat: Seat, sampling: SamplingConfig) -> None:
        """Change how a seat samples from its next tick on; only the last settings count."""
        seat.request_sampling(sampling)
        self._ask(seat)

    def _ask(self, seat: Seat) -> None:
        with self._wake:
            if not seat.left:
                self._requests[seat] = None
        self.wake()

    def wake(self) -> None:
        with self._wake:
            self._awake = True
            self._wake.notify()

    def _read_files(self, seat: Seat) -> None:
        """Loader's thread. Who has left meanwhile needs nothing any more."""
        if not seat.left:
            read_files(self.backend, seat.opening)

    # -- scheduler's thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wait(self.turn())
        except Exception as error:  # the thread's boundary: the owner of the process must know
            self.watchdog.stop()
            self.give_up(logged_fault("the scheduler's thread died"))
            if self._on_death:
                self._on_death(error)

    def _wait(self, until: float | None) -> None:
        """Sleep until woken or `until`."""
        with self._wake:
            if not self._awake:
                timeout = self._heartbeat_s if self._seats else None
                if until is not None:
                    timeout = min(max(0.0, until - self.clock()), self._heartbeat_s)
                self._wake.wait(timeout)
            self._awake = False

    def turn(self) -> float | None:
        """One round: a starving piece, else a tick, else a piece. When to come back, or None."""
        self._in_turn = True
        wanted = self._take_turn()
        self._send()  # once for all: each time the receiving thread would take ours the lock
        self._turns, self._in_turn = self._turns + 1, False
        return wanted

    def _take_turn(self) -> float | None:
        until = self.clock() + COMMANDS_SECONDS
        with self._wake:
            leavers, self._leavers = self._leavers, []
            seats = self._sitting = list(self._seats.values())
        for seat in leavers:  # nothing is opened in a slot before this
            self._close(seat)
        slack_work = self._slack_work
        more = self._carry_out_requests(until)
        more = self._read_inboxes(seats, until) or more
        self._send()  # what commands brought need not wait for a piece or a tick
        now = self.clock()
        if slack_work.is_starving(seats, now) and slack_work.run_piece(seats):
            return self.clock()
        if ready := self._ready(now):
            self._tick(ready, now)
            return self.clock()
        if self._flush(seats) or slack_work.run_piece(seats) or more:
            return self.clock()
        return self._next_at()

    def _carry_out_requests(self, until: float) -> bool:
        """Restarts and settings of a few seats; whether others have to wait for the next turn."""
        for _ in range(REQUESTS_A_TURN):
            with self._wake:
                if not self._requests:
                    return False
                seat = next(iter(self._requests))
                del self._requests[seat]
            restart, sampling = seat.take_requests()
            if restart:  # its client may be leaving: its slot is reused only after this turn
                self._close(seat)
                seat.start(*restart)
            if sampling and (seat.bootstrapping or seat.live):
                self.backend.tune(seat.slot, sampling)
            elif sampling and seat.work is None:  # not open yet: it opens with these settings
                seat.opening = replace(seat.opening, sampling=sampling)
            elif sampling:  # its prompts are going in: when they are in
                seat.tuned = sampling
            if self.clock() >= until:
                break
        return bool(self._requests)

    def _close(self, seat: Seat) -> None:
        self._slack_work.drop(seat)
        if seat.is_open:
            self.backend.close(seat.slot)

    def _give_up(self, seat: Seat, error: EngineError) -> None:
        seat.deliver([Ended(error)])
        self.leave(seat, "error")

    def _ready(self, now: float) -> list[Seat]:
        """Every seat that has a whole frame or must get one; empty if all of them can wait."""
        ready, others = [], []
        for seat in self._sitting:
            if not seat.left:
                at = seat.next_tick_at(now)
                (others if at is None or at > now else ready).append(seat)
        return ready if any(self._may_start(seat, others, now) for seat in ready) else []

    def _may_start(self, seat: Seat, others: list[Seat], now: float) -> bool:
        """Whether this seat is worth a tick now. If another seat starts one, this one joins it."""
        if seat.bootstrapping:  # a newcomer makes nobody late
            return self._slack_work.slack.allows(now, next_due(others, now), seat, "tick")
        return not (seat.would_catch_up(now) and any(other.is_late(now) for other in others))

    def _tick(self, seats: list[Seat], now: float) -> None:
        """Take one frame of each of these seats, and make one for each."""
        began = self.clock()
        frames, active = [SILENCE] * self.backend.slots, [False] * self.backend.slots
        due: dict[Seat, float] = {}  # when the user frames were complete
        peaks: dict[Seat, float] = {}  # of them
        for seat in seats:
            active[seat.slot] = True
            if not seat.bootstrapping:
                if self.overload.shedding:
                    self.metrics.dropped(seat.drop_quiet(KEPT_FRAMES), Dropped.OVERLOAD)
                frames[seat.slot], peaks[seat], due[seat] = seat.take_frame(now)
                if seat.listener:
                    seat.listener.push(frames[seat.slot], seat.pcm_out)
        self.metrics.took(Stage.QUEUE, *(max(0.0, now - at) for at in due.values()))
        pcm = join_frames(frames)
        started = self.clock()
        heard = self.backend.listen(pcm, np.array(active))
        listened = self.clock()
        before = {seat: seat.next_events for seat in seats}  # of the frame made now
        text, hush = self._choose(seats, peaks, heard)
        chosen = self.clock()
        spoken = self.backend.speak(text, hush)
        ready = self.clock()
        self._deliver(seats, spoken, due, before, ready)
        done = self.clock()
        step = (listened - started) + (ready - chosen)
        self.metrics.ticked(len(seats), step)
        stages = {
            Stage.LISTEN: listened - started, Stage.CHOOSE: chosen - listened,
            Stage.SPEAK: ready - chosen, Stage.HOST: done - began - step,
        }  # fmt: skip
        for stage, seconds in stages.items():
            self.metrics.took(stage, *[seconds] * len(due))
        self.overload.add_tick(step)
        bucket = 1 << max(seat.slot for seat in seats).bit_length()
        self._slack_work.slack.note("tick", step, ready, bucket)
        self._shed(self._sitting)

    def _deliver(
        self,
        seats: list[Seat],
        spoken: Spoken,
        due: dict[Seat, float],
        before: dict[Seat, list],
        ready: float,
    ) -> None:
        made = spoken.pcm[[seat.slot for seat in seats]]  # copied: the backend's own may change
        peaks = np.maximum(made.max(1), -made.min(1)).tolist()
        for seat, pcm, peak in zip(seats, made, peaks, strict=True):
            if seat.left:
                continue
            if seat.bootstrapping:  # this pcm is the last prompt frame's: nobody hears it
                seat.bootstrapping, seat.live = False, True
                seat.deliver([Ready()])
                continue
            seat.pcm_out, seat.peak_out = pcm, peak
            seat.was_late = self.clock() - due[seat] > LATE_SECONDS
            seat.deliver([Frame(pcm, before[seat], due[seat], ready)])

    def _shed(self, seats: list[Seat]) -> None:
        """What overload asks for: the recogniser goes first, then the newest conversation."""
        backend, was_paused = self.backend, self.overload.recogniser_paused
        relief = self.overload.step(backend.transcribes and backend.transcribing)
        staying = [seat for seat in seats if not seat.left and seat.frozen_at is None]
        if relief is Relief.PAUSE_RECOGNISER:
            logger.warning("overload: the recogniser is paused")
            backend.transcribing = False
        elif relief is Relief.END_NEWEST and len(staying) > 1:  # the last: better slow than gone
            newest = max(staying, key=lambda seat: seat.joined)
            self._give_up(newest, BusyError("the server is overloaded; retry in 60 s"))
        elif was_paused and not self.overload.recogniser_paused:
            backend.transcribing = True

    def _next_at(self) -> float | None:
        """When the earliest seat's next frame may run; soon, where somebody waits for slack."""
        now = self.clock()
        seats = [seat for seat in self._sitting if not seat.left]
        times = [at for seat in seats if (at := seat.next_tick_at(now)) is not None]
        times = [at if at > now else now + LOOK_AGAIN_SECONDS for at in times]
        if any(seat.needs_prompt for seat in seats):
            times.append(now + LOOK_AGAIN_SECONDS)  # nobody else wakes us
        return min(times, default=None)

    # -- the seats' directors: one's fault ends its conversation and no other ----------------------

    def _read_inboxes(self, seats: list[Seat], until: float) -> bool:
        """A few commands of each seat, one at a time in turns; whether others have to wait.

        When the time is over the rest waits, in order, and the next turn goes on with the next
        seat: nobody's commands keep anybody's frame waiting, nor anybody else's commands.
        """
        waiting = [seat for seat in seats if seat.has_commands]
        waiting.sort(key=lambda seat: (seat.joined <= self._served, seat.joined))
        queue, taken = deque(waiting), Counter()
        while queue:
            seat = queue.popleft()
            if seat.left or (command := seat.take_command()) is None:
                continue
            self._report(seat, partial(seat.director.take, command))
            self._served = seat.joined
            taken[seat] += 1
            if self.clock() >= until:
                break
            if taken[seat] < COMMANDS_A_TURN:
                queue.append(seat)
        return any(seat.has_commands and not seat.left for seat in waiting)

    def _flush(self, seats: list[Seat]) -> bool:
        """One step of the recogniser alone for all whose turn has just ended; whether there was."""
        if not (self.backend.transcribes and self.backend.transcribing):
            return False
        flushing = {seat.slot: seat for seat in seats if seat.flushing and not seat.left}
        if flushing:
            for slot, heard in self.backend.flush(list(flushing)).items():
                self._report(flushing[slot], partial(flushing[slot].director.flush, heard))
        return bool(flushing)

    def _choose(
        self, seats: list[Seat], peaks: dict[Seat, float], heard: Heard
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which token is fed to each slot: text [S] int64, hush [S] bool."""
        sampled = heard.text.tolist()
        text, hush = [PAD] * self.backend.slots, [False] * self.backend.slots
        for seat in seats:
            slot, peak = seat.slot, peaks.get(seat, 0.0)
            try:
                text[slot], hush[slot] = seat.director.step(
                    sampled[slot], hear(heard, seat), peak, seat.peak_out
                )
                seat.next_events = seat.director.events()
            except Exception:  # one conversation's fault must not reach its neighbours
                self._give_up(seat, logged_fault("director failed"))
        return np.array(text, np.int64), np.array(hush)

    def _report(self, seat: Seat, act: Callable[[], list[Any]]) -> None:
        """Deliver what a director has to say between two frames."""
        try:
            events = act()
        except Exception:  # one conversation's fault must not reach its neighbours
            self._give_up(seat, logged_fault("director failed"))
            return
        if events:
            seat.deliver([Notice(events)])


def join_frames(frames: list[np.ndarray]) -> np.ndarray:
    """Frames [1920] of all slots in one array [S, 1920].

    By `bytes`, as NumPy lets go of Python's lock at every copy of a frame: with 96 of them the
    event loop would take it again and again, and a tick would wait for it.
    """
    return np.frombuffer(b"".join(frames), np.float32).reshape(len(frames), FRAME_SAMPLES)


def hear(heard: Heard, seat: Seat) -> HeardRow:
    """What one seat's director is shown beside the sampled token."""
    if seat.listener:
        return HeardRow(speech=seat.listener.take_speech(), writing=seat.listener.writing)
    return heard_row(heard, seat.slot)


def heard_row(heard: Heard, slot: int) -> HeardRow:
    """The recogniser's part of it."""
    if heard.stt_text is None or heard.stt_text[slot] < 0:
        return HeardRow()
    pause = None if heard.pause is None else heard.pause[slot]
    return HeardRow(stt_text=int(heard.stt_text[slot]), pause=pause)


# -- a hang is noticed -----------------------------------------------------------------------------


def describe_place(thread: threading.Thread) -> str:
    """Which function of ours a thread is in, itself or in what that calls: it may hang there."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame and not frame.f_code.co_filename.startswith(ENGINE) and frame.f_back:
        frame = frame.f_back
    code = frame.f_code if frame else None
    return f"{code.co_qualname} ({code.co_filename.rpartition('/')[2]})" if code else "no code"


def wait_fairly(
    done: Callable[[float], bool],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    read_waits: Callable[[], dict[str, float]] | None = None,
) -> bool:
    """Wait until `done(timeout)` says so; False: it did not in these seconds.

    Time in which a thread of this process waits for a core does not count, up to a minute of it: a
    machine that is busy with others' work is no hang of ours.
    """
    read_waits = read_waits or read_core_waits
    counted = excused = 0.0
    at, waits = clock(), read_waits()
    while not done(min(FAIR_LOOK_SECONDS, max(0.0, seconds - counted))):
        before, at = at, clock()
        earlier, waits = waits, read_waits()
        longest = max(0.0, *(wait - earlier.get(task, wait) for task, wait in waits.items()), 0.0)
        excuse = min(longest, at - before, MOST_WAIT_SECONDS - excused)
        excused += excuse
        counted += at - before - excuse
        if counted >= seconds:
            return done(0.0)
    return True


def read_core_waits() -> dict[str, float]:
    """For how many seconds each thread of this process has waited for a core; {} but on Linux."""
    waits = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError):  # it has just ended
            _ran, waited, _times = path.read_text().split()
            waits[path.parent.name] = int(waited) / 1e9
    return waits


class Watchdog:
    """Looks at signs of life in a thread of its own; the first hang that it sees is its last.

    `list_signs` names what has to go on and gives a number that changes while it does; None: it
    need not. What stands still for a `share` of the limit is `stuck`, for all of it: `on_hang`. A
    pause of the whole process (a debugger, a frozen container) counts as one look, no more.
    """

    def __init__(
        self,
        limit_s: float,
        share: float,
        list_signs: Callable[[], list[tuple[str, int | None]]],
        on_hang: Callable[[str], None],
    ) -> None:
        self.stuck = ""  # what stands still, and for how long
        self.hung = False
        self._limit_s, self._suspect_s = limit_s, limit_s / share
        self._list_signs, self._on_hang = list_signs, on_hang
        self._period = min(LOOK_SECONDS, limit_s / 20)
        self._looked_at: float | None = None
        self._seen: dict[int, tuple[int | None, float]] = {}  # place -> (sign, for how long)
        self._over = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._period) and not self.look(time.monotonic()):
            pass

    def look(self, now: float) -> bool:
        """Whether something hangs, in which case `on_hang` was called."""
        elapsed = 0.0 if self._looked_at is None else min(now - self._looked_at, 2 * self._period)
        self._looked_at, stuck = now, ""
        for place, (what, sign) in enumerate(self._list_signs()):
            before, still = self._seen.get(place, (None, 0.0))
            still = still + elapsed if sign is not None and sign == before else 0.0
            self._seen[place] = sign, still
            if still > self._suspect_s:
                stuck = f"{what} for {still:.0f} s"
            self.hung |= still > self._limit_s
        self.stuck = stuck
        if self.hung:
            self._on_hang(f"{STOPPED}: {stuck}")
        return self.hung
