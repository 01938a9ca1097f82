"""One conversation's place at the scheduler: its bounded boxes and its frame clock.

A session's threads write into the boxes (`push_audio`, `post`, requests); the scheduler's thread
empties them. A seat decides nothing about other seats.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine.config import (
    FRAME_SAMPLES,
    FRAME_SECONDS,
    LATE_SECONDS,
    MAX_WAITING_FRAMES,
    SAMPLE_RATE,
    SamplingConfig,
)
from engine.errors import EngineError, RefusedError
from engine.runtime.backend import HeardRow, Opening
from engine.runtime.ears import Listener
from engine.runtime.metrics import Dropped, Metrics

INBOX_LIMIT = 64  # commands waiting for the next tick
SILENT_AFTER_SECONDS = 0.24  # without audio for this long, a client counts as silent
CUT_OFF_AFTER_SECONDS = 0.48  # the same in the midst of the user's turn: a network may stall
FORGIVE_SECONDS = 1.0  # after a gap, audio may come late for this long; then the silence stays
HOPE_SECONDS = 5.0  # for quiet frames that may go in place of silence that was invented
EARLY_FRAMES = 12  # in a row, a second of speech: then the clock is wrong, not the client
MOMENT = 1e-6  # seconds: what rounding may take from 80 ms
QUIET_PEAK = 0.01  # of full scale: below it a frame is quiet


class FrameDirector(Protocol):
    """What the scheduler needs of `dialogue.director`, which lies above it."""

    @property
    def wants_frames(self) -> bool: ...

    @property
    def awaits_words(self) -> bool: ...

    def take(self, command: Any) -> list[Any]: ...

    def step(
        self, sampled: int, heard: HeardRow, peak_in: float, peak_out: float
    ) -> tuple[int, bool]: ...

    def events(self) -> list[Any]: ...

    # only for conversations that are transcribed:

    @property
    def flushing(self) -> bool: ...

    def flush(self, heard: HeardRow) -> list[Any]: ...


# -- outputs: what a seat's session is handed, in order --------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The prompts are in and the first text is picked: start talking (0x00)."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Events that belong to no frame."""

    events: list[Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """80 ms of the agent, and what belongs to them."""

    pcm: np.ndarray  # [1920] float32
    events: list[Any]
    due_at: float  # when its user frame was complete, on the real-time clock of the seat
    ready_at: float  # when its pcm was there


@dataclass(frozen=True, slots=True)
class Renewed:
    """The model's memory of this conversation was made anew: prompt and its last frames."""

    frames: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The scheduler gave this seat up."""

    error: EngineError


Output = Ready | Notice | Frame | Renewed | Ended


class Seat:
    """The boxes of one conversation."""

    def __init__(
        self,
        opening: Opening,
        director: FrameDirector,
        deliver: Callable[[list[Output]], None],
        wake: Callable[[], None],
        metrics: Metrics,
        listener: Listener | None = None,
    ) -> None:
        self.listener = listener  # the CPU's ears for this conversation
        self.deliver = deliver  # thread-safe; called in the scheduler's thread
        self.slot = -1
        self.joined = 0  # counts up with every conversation of its scheduler
        self.left = False
        self.frozen_at: float | None = None  # its line has dropped; None: time goes on
        self.prepared: Future[None] = Future()  # done: its voice is read, or cannot be
        self._wake, self._metrics = wake, metrics
        self._lock = threading.Lock()
        self._inbox: deque[Any] = deque()
        self._restart: tuple[Opening, FrameDirector] | None = None  # asked for, not carried out
        self._sampling: SamplingConfig | None = None  # asked for after that, not carried out
        self.start(opening, director)

    def start(self, opening: Opening, director: FrameDirector) -> None:
        """Begin a conversation on this seat (again, for a restart)."""
        self.opening, self.director = opening, director
        if self.listener:
            self.listener.reset()
        self.pcm_out = np.zeros(FRAME_SAMPLES, np.float32)  # the agent's last frame
        self.work: Iterator[None] | None = None  # the rest of its prompts; set by the scheduler
        self.tuned: SamplingConfig | None = None  # came while its prompts were going in
        self.bootstrapping = False
        self.live = False
        self.next_events: list[Any] = []  # of the frame whose text is fed already
        self.peak_out = 0.0
        self._audio = FrameQueue()
        self._last_heard: float | None = None  # when audio came last
        self._next_silence = 0.0
        self._owed = 0  # frames of silence invented in the gap before the last audio
        self._forgive_until = 0.0
        self._ticked_at = self._ticked_before = float("-inf")  # its last tick, and the one before
        self.was_late = False  # its last frame; set by the scheduler

    # -- any thread --------------------------------------------------------------------------------

    def push_audio(self, pcm: np.ndarray, now: float) -> int:
        """Take user samples [n] float32; the number of frames they complete.

        Of more than 30 s that wait the oldest are dropped: the session knows whether its client
        sends too fast, so here it is the scheduler that is far behind.
        """
        with self._lock:
            if not self.live:
                return 0  # spoken before the handshake: there is nobody to hear it yet
            before = len(self._audio)
            complete = self._audio.push(pcm, now)
            self._forget_late_audio(now, before)
            dropped = self._audio.drop(MAX_WAITING_FRAMES, only_quiet=False)
        if dropped:
            self._metrics.dropped(dropped, Dropped.BEHIND)
        if complete:  # a piece of a frame gives the scheduler nothing to do
            self._wake()
        return complete

    def freeze(self, now: float) -> None:
        """No frame from now on until `thaw`; prompts that are going in go on. Again: nothing."""
        with self._lock:
            if self.frozen_at is None:
                self.frozen_at = now

    def thaw(self, now: float) -> None:
        """Go on as if no time had passed: what waits is due as long from now as it was then."""
        with self._lock:
            if self.frozen_at is None:
                return
            passed, self.frozen_at = now - self.frozen_at, None
            self._audio.shift(passed)
            if self._last_heard is not None:
                self._last_heard += passed
            self._next_silence += passed
            self._forgive_until += passed
            self._ticked_at += passed
            self._ticked_before += passed

    def post(self, command: Any) -> None:
        """Queue a command for the director. Raises RefusedError when 64 are waiting."""
        with self._lock:
            if len(self._inbox) >= INBOX_LIMIT:
                raise RefusedError(f"{INBOX_LIMIT} commands are waiting; send them slower")
            self._inbox.append(command)
        self._wake()

    def request_restart(self, opening: Opening, director: FrameDirector) -> None:
        """What waits is void, an earlier restart too; what comes from now on is for after it."""
        with self._lock:
            self._inbox.clear()
            self._restart, self._sampling = (opening, director), None

    def request_sampling(self, sampling: SamplingConfig) -> None:
        """Only the last settings that were asked for count."""
        with self._lock:
            self._sampling = sampling

    # -- scheduler's thread ------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the backend holds anything of this conversation."""
        return self.work is not None or self.bootstrapping or self.live

    @property
    def needs_prompt(self) -> bool:
        """Whether a piece of its prompts could run now."""
        return not (self.live or self.bootstrapping) and self.prepared.done()

    @property
    def flushing(self) -> bool:
        """Whether steps of the recogniser between two frames would help its director."""
        awake = self.live and self.frozen_at is None
        return awake and self.opening.transcribe and self.director.flushing

    def take_requests(self) -> tuple[tuple[Opening, FrameDirector] | None, SamplingConfig | None]:
        """(the restart, the settings) that were asked for, in the order to carry them out."""
        with self._lock:
            requests = self._restart, self._sampling
            self._restart = self._sampling = None
        return requests

    def take_command(self) -> Any | None:
        """The oldest command; None: none waits, or they wait for the next director."""
        with self._lock:
            return self._inbox.popleft() if self._inbox and not self._restart else None

    @property
    def has_commands(self) -> bool:
        """Whether `take_command` has one."""
        return bool(self._inbox) and not self._restart

    def next_tick_at(self, now: float) -> float | None:
        """When this seat's next frame may run (<= now: at once); None: nothing to wait for."""
        if self.bootstrapping:
            return now
        if not self.live or self.frozen_at is not None:
            return None
        with self._lock:
            if self._audio:
                # A steady client is never held back; a backlog gets two ticks in any 80 ms, one is
                # extra. What came late gets none: with the silence that was answered in its place,
                # the agent would run ahead of real time (docs/api.md).
                if self._owed and len(self._audio) > 1:
                    return max(now, self._next_silence)
                return max(now, self._ticked_before + FRAME_SECONDS - MOMENT)
            if not self.director.wants_frames and not self.director.awaits_words:
                return None
            if self._last_heard is None:
                return self._next_silence
            wanted = self.director.wants_frames
            patience = SILENT_AFTER_SECONDS if wanted else CUT_OFF_AFTER_SECONDS
            return max(self._next_silence, self._last_heard + patience)

    def take_frame(self, now: float) -> tuple[np.ndarray, float, float]:
        """The user frame [1920] of this tick, its peak, and when it was due."""
        with self._lock:
            whole = bool(self._audio)
            due = self._audio.due if whole else max(self._next_silence, now - FRAME_SECONDS)
            if not whole:
                self._owed += self._last_heard is not None
            late = now - self._next_silence > FRAME_SECONDS
            on_clock = not late and (not whole or self._owed)
            self._next_silence = (self._next_silence if on_clock else now) + FRAME_SECONDS
            self._ticked_before, self._ticked_at = self._ticked_at, now
            return *self._audio.pop(), due

    def expected_at(self, now: float) -> float:
        """When the next user frame is or will be complete, at the pace of speech.

        Of a client that is silent nobody knows: it may be at any moment, so 0.
        """
        with self._lock:
            if self._audio:
                return self._audio.due
            if self._is_heard(now):
                return self._last_heard + self._audio.missing_seconds
            return self._next_silence if self.director.wants_frames else 0.0

    def would_catch_up(self, now: float) -> bool:
        """Whether a tick now would be an extra one: of a backlog, not 80 ms after the last."""
        with self._lock:
            return len(self._audio) > 1 and now < self._ticked_at + FRAME_SECONDS - MOMENT

    def is_late(self, now: float) -> bool:
        """Whether this conversation's frames come too late at present."""
        with self._lock:
            if self.frozen_at is not None:
                return False
            overdue = self._audio and now - self._audio.due > LATE_SECONDS
            return bool(overdue or (self.was_late and self._is_heard(now)))

    def drop_quiet(self, kept: int) -> int:
        """In overload: drop the oldest quiet frames beyond `kept`; the number dropped."""
        with self._lock:
            return self._audio.drop(kept, only_quiet=True)

    # -- under the lock ----------------------------------------------------------------------------

    def _is_heard(self, now: float) -> bool:
        return self._last_heard is not None and now - self._last_heard <= SILENT_AFTER_SECONDS

    def _forget_late_audio(self, now: float, waited: int) -> None:
        """After a gap that was filled with silence, quiet frames that come late only add delay.

        Speech is heard, however late. The delay goes with the next quiet frames, and with the
        oldest of any kind where no quiet ones come for long: there is noise.
        """
        if not self._is_heard(now):
            self._forgive_until = now + FORGIVE_SECONDS
        elif now > self._forgive_until and waited < 2:
            self._owed = 0
        self._last_heard, waiting = now, len(self._audio)
        if self._owed and waiting > 1:
            hopes = now <= self._forgive_until + HOPE_SECONDS
            dropped = self._audio.drop(max(1, waiting - self._owed), only_quiet=hopes)
            self._owed -= dropped
            self._metrics.dropped(dropped, Dropped.LATE)


class FrameQueue:
    """The whole user frames that wait, and the samples of the one that has begun.

    Samples are cut into frames where they are pushed, in the sender's thread: however small the
    pieces are, a tick takes a frame at once. A burst is dated on the 80 ms clock, not on its
    arrival: its frames are due one after another. A frame that comes late sets that clock forward.
    Where many come early after it, the clock is set back: else no later frame could be late.
    No lock of its own: the seat holds one.
    """

    def __init__(self) -> None:
        # (when it was due, [1920], its peak)
        self._frames: deque[tuple[float, np.ndarray, float]] = deque()
        self._begun, self._filled = np.empty(FRAME_SAMPLES, np.float32), 0
        self._last_due = 0.0
        self._early: list[float] = []  # by how many seconds the last pushes came before their time

    def __len__(self) -> int:
        """Whole frames."""
        return len(self._frames)

    @property
    def due(self) -> float:
        """When the oldest frame was due; there must be one."""
        return self._frames[0][0]

    @property
    def missing_seconds(self) -> float:
        """Of speech, until the frame that has begun is whole."""
        return (FRAME_SAMPLES - self._filled) / SAMPLE_RATE

    def push(self, pcm: np.ndarray, now: float) -> int:
        """Take samples [n]; the number of frames they complete."""
        before, at = len(self._frames), 0
        while at < len(pcm):
            piece = pcm[at : at + FRAME_SAMPLES - self._filled]
            self._begun[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            at += len(piece)
            if self._filled == FRAME_SAMPLES:
                self._last_due = self._date(now, is_first=len(self._frames) == before)
                frame = self._take_begun()
                self._frames.append((self._last_due, frame, find_peak(frame)))
        return len(self._frames) - before

    def _date(self, now: float, is_first: bool) -> float:
        """When the frame was due that is whole now, as the first of its push or as another."""
        due = self._last_due + FRAME_SECONDS
        if is_first:
            if due > now and not self._frames:
                self._early.append(due - now)
            else:  # it is on time, or belongs to a backlog
                self._early.clear()
        if len(self._early) == EARLY_FRAMES:
            due -= min(self._early)
            self._early.clear()
        return max(now, due)

    def shift(self, seconds: float) -> None:
        """All of it was due this much later."""
        self._frames = deque((due + seconds, *rest) for due, *rest in self._frames)
        self._last_due += seconds

    def pop(self) -> tuple[np.ndarray, float]:
        """The oldest 1920 samples and their peak; what is missing is silence."""
        if self._frames:
            return self._frames.popleft()[1:]
        empty, frame = not self._filled, self._take_begun()
        return frame, 0.0 if empty else find_peak(frame)

    def _take_begun(self) -> np.ndarray:
        frame = self._begun
        frame[self._filled :] = 0
        self._begun, self._filled = np.empty(FRAME_SAMPLES, np.float32), 0
        return frame

    def drop(self, kept: int, only_quiet: bool) -> int:
        """Drop the oldest frames until `kept` are left; the number.

        only_quiet: of those in which nobody speaks, as far as there are any.
        """
        before, excess, waiting = len(self._frames), len(self._frames) - kept, deque()
        if excess <= 0:
            return 0
        for due, frame, peak in self._frames:
            if excess > 0 and (peak < QUIET_PEAK or not only_quiet):
                excess -= 1
            else:
                waiting.append((due, frame, peak))
        self._frames = waiting
        return before - len(waiting)


def find_peak(frame: np.ndarray) -> float:
    """The largest sample of [1920], without its sign."""
    return float(max(frame.max(), -frame.min()))
