"""User samples on their way to ticks, and when each whole frame was complete.

A box of one seat, without a lock of its own: the seat (seat.py) holds one.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, LATE_SECONDS, SAMPLE_RATE, SamplingConfig
from engine.errors import EngineError, RefusedError, TooFastError
from engine.runtime.backend import HeardRow, Opening
from engine.runtime.metrics import Dropped, Metrics

QUIET_PEAK = 0.01  # of full scale: below it a frame is quiet


@dataclass(eq=False)
class AudioRing:
    """The samples that wait.

    A burst is dated on the 80 ms clock, not on its arrival: its frames are due one after another.
    """

    chunks: deque[np.ndarray] = field(default_factory=deque)
    samples: int = 0
    due: deque[float] = field(default_factory=deque)
    last_due: float = 0.0

    def push(self, pcm: np.ndarray, now: float) -> None:
        before = self.samples // FRAME_SAMPLES
        self.chunks.append(pcm)
        self.samples += len(pcm)
        for _ in range(self.samples // FRAME_SAMPLES - before):
            self.last_due = max(now, self.last_due + FRAME_SECONDS)
            self.due.append(self.last_due)

    def pop(self) -> np.ndarray:
        """The oldest 1920 samples; what is missing is silence."""
        frame = np.zeros(FRAME_SAMPLES, np.float32)
        filled = 0
        while self.chunks and filled < FRAME_SAMPLES:
            chunk = self.chunks.popleft()
            taken = chunk[: FRAME_SAMPLES - filled]
            frame[filled : filled + len(taken)] = taken
            filled += len(taken)
            if len(taken) < len(chunk):
                self.chunks.appendleft(chunk[len(taken) :])
        self.samples -= filled
        if self.due and filled == FRAME_SAMPLES:
            self.due.popleft()
        return frame

    def drop(self, kept: int) -> int:
        """Drop the oldest frames, whatever is in them, until `kept` are left; how many."""
        dropped = max(0, self.frames - kept)
        for _ in range(dropped):
            self.pop()
        return dropped

    def drop_quiet(self, kept: int) -> int:
        """Drop the oldest frames in which nobody speaks, until `kept` are left; how many."""
        excess, dropped = self.frames - kept, 0
        if excess <= 0:
            return 0
        due, frames = list(self.due), [self.pop() for _ in range(self.frames)]
        waiting = []
        for when, frame in zip(due, frames, strict=True):
            if dropped < excess and np.abs(frame).max() < QUIET_PEAK:
                dropped += 1
            else:
                waiting.append((when, frame))
        self.due = deque(when for when, _ in waiting)
        self.chunks.extendleft(frame for _, frame in reversed(waiting))
        self.samples += len(waiting) * FRAME_SAMPLES
        return dropped

    @property
    def frames(self) -> int:
        return self.samples // FRAME_SAMPLES

    @property
    def missing_seconds(self) -> float:
        """Of speech, until the frame that has begun is whole."""
        return (FRAME_SAMPLES - self.samples % FRAME_SAMPLES) / SAMPLE_RATE


# -- seat ------------------------------------------------------------------------------------------
#
# One conversation's place at the scheduler: its bounded boxes and its frame clock.
#
# A session's threads write into the boxes (`hear`, `post`), the scheduler's thread empties them.
# What a seat may not do is decide anything about other seats.

MAX_AHEAD_SECONDS = 30  # of audio that waits for its ticks
INBOX_LIMIT = 64  # commands waiting for the next tick
SILENT_AFTER_SECONDS = 0.24  # without audio for this long, a client counts as silent
FORGIVE_SECONDS = 1.0  # after a gap, late audio may come for so long; then invented silence stays
HOPE_SECONDS = 5.0  # for quiet frames that may go in place of silence that was invented
MOMENT = 1e-6  # seconds: what rounding may take from 80 ms


class FrameDirector(Protocol):
    """What the scheduler needs of `dialogue.director`, which lies above it."""

    @property
    def wants_frames(self) -> bool: ...

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
    ) -> None:
        self.deliver = deliver  # thread-safe; called in the scheduler's thread
        self.slot = -1
        self.joined = 0  # the how many-th of its scheduler
        self.left = False
        self.dropped_frames = 0
        self._wake, self._metrics = wake, metrics
        self._lock = threading.Lock()
        self._inbox: deque[Any] = deque()
        self._restarts = 0  # asked for and not carried out yet
        self.start(opening, director)

    def start(self, opening: Opening, director: FrameDirector) -> None:
        """Begin a conversation on this seat (again, for a restart)."""
        self.opening, self.director = opening, director
        self.work: Iterator[None] | None = None  # the rest of its prompts; set by the scheduler
        self.tuned: SamplingConfig | None = None  # came while its prompts were going in
        self.bootstrapping = False
        self.live = False
        self.chosen: list[Any] = []  # events of the frame whose text is fed already
        self.peak_out = 0.0
        self._audio = AudioRing()
        self._last_heard: float | None = None  # when audio came last
        self._next_silence = 0.0
        self._owed = 0  # frames of silence invented in the gap before the last audio
        self._forgive_until = 0.0
        self._ticked_at = self._ticked_before = float("-inf")  # its last tick, and the one before
        self._was_late = False  # its last frame

    # -- any thread --------------------------------------------------------------------------------

    def hear(self, pcm: np.ndarray, now: float) -> int:
        """Take user samples [n] float32; how many frames they complete.

        Raises TooFastError beyond 30 s ahead of real time.
        """
        with self._lock:
            if not self.live:
                return 0  # spoken before the handshake: there is nobody to hear it yet
            before = self._audio.frames
            self._audio.push(pcm, now)
            complete = self._audio.frames - before
            self._forget_late_audio(now, before)
            waiting = self._audio.samples / SAMPLE_RATE
        if waiting > MAX_AHEAD_SECONDS:
            raise TooFastError(
                f"{waiting:.1f} s of audio are waiting; send at most real time, "
                f"{MAX_AHEAD_SECONDS} s ahead"
            )
        self._wake()
        return complete

    def post(self, command: Any) -> None:
        """Queue a command for the director. Raises RefusedError when 64 are waiting."""
        with self._lock:
            if len(self._inbox) >= INBOX_LIMIT:
                raise RefusedError(f"{INBOX_LIMIT} commands are waiting; send them slower")
            self._inbox.append(command)
        self._wake()

    def forget(self) -> None:
        """A restart is on its way: what waits is void, what comes from now on is for after it."""
        with self._lock:
            self._inbox.clear()
            self._restarts += 1

    # -- scheduler's thread ------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the backend holds anything of this conversation."""
        return self.work is not None or self.bootstrapping or self.live

    def restart(self, opening: Opening, director: FrameDirector) -> None:
        """Carry out a restart that was announced by `forget`."""
        with self._lock:
            self._restarts -= 1
        self.start(opening, director)

    @property
    def flushing(self) -> bool:
        """Whether steps of the recogniser between two frames would help its director."""
        return self.live and self.opening.transcribe and self.director.flushing

    def commands(self) -> list[Any]:
        with self._lock:
            if self._restarts:
                return []  # they are for the next director
            commands, self._inbox = list(self._inbox), deque()
        return commands

    def obey(self) -> list[Any]:
        """Let the director take what was posted; its events of no frame."""
        return [event for command in self.commands() for event in self.director.take(command)]

    def next_tick_at(self, now: float) -> float | None:
        """When this seat's next frame may run (<= now: at once); None: nothing to wait for."""
        if self.bootstrapping:
            return now
        if not self.live:
            return None
        with self._lock:
            if self._audio.frames:
                return self._catch_up_at(now)
            if not self.director.wants_frames:
                return None
            if self._last_heard is None:
                return self._next_silence
            return max(self._next_silence, self._last_heard + SILENT_AFTER_SECONDS)

    def take_frame(self, now: float) -> tuple[np.ndarray, float]:
        """The user frame [1920] of this tick and when it was due."""
        with self._lock:
            whole = self._audio.frames > 0
            due = self._audio.due[0] if whole else max(self._next_silence, now - FRAME_SECONDS)
            if not whole:
                self._owed += self._last_heard is not None
            late = now - self._next_silence > FRAME_SECONDS
            on_clock = not late and (not whole or self._owed)
            self._next_silence = (self._next_silence if on_clock else now) + FRAME_SECONDS
            self._ticked_before, self._ticked_at = self._ticked_at, now
            return self._audio.pop(), due

    def expected_at(self, now: float) -> float:
        """When the next user frame is or will be complete, at the pace of speech.

        Of a client that is silent nobody knows: it may be at any moment, so 0.
        """
        with self._lock:
            if self._audio.frames:
                return self._audio.due[0]
            if self._is_heard(now):
                return self._last_heard + self._audio.missing_seconds
            return self._next_silence if self.director.wants_frames else 0.0

    def catches_up(self, now: float) -> bool:
        """Whether a tick now would be an extra one: of a backlog, not 80 ms after the last."""
        with self._lock:
            return self._audio.frames > 1 and now < self._ticked_at + FRAME_SECONDS - MOMENT

    def answered(self, due: float, now: float) -> None:
        """The agent's frame for the user frame of `due` was made."""
        self._was_late = now - due > LATE_SECONDS

    def is_late(self, now: float) -> bool:
        """Whether this conversation's frames come too late at present."""
        with self._lock:
            overdue = self._audio.frames and now - self._audio.due[0] > LATE_SECONDS
            return bool(overdue or (self._was_late and self._is_heard(now)))

    def drop_quiet(self, kept: int) -> int:
        """In overload: drop the oldest quiet frames beyond `kept`; how many were dropped."""
        with self._lock:
            dropped = self._audio.drop_quiet(kept)
            self.dropped_frames += dropped
            return dropped

    def frames_waiting(self) -> int:
        with self._lock:
            return self._audio.frames

    def _is_heard(self, now: float) -> bool:
        return self._last_heard is not None and now - self._last_heard <= SILENT_AFTER_SECONDS

    def _catch_up_at(self, now: float) -> float:
        """A steady client is never held back; a backlog gets two ticks in any 80 ms, one is extra.

        What came late gets none: with the silence that was answered in its place, the agent would
        run ahead of real time (wire.md 5).
        """
        if self._owed and self._audio.frames > 1:
            return max(now, self._next_silence)
        return max(now, self._ticked_before + FRAME_SECONDS - MOMENT)

    def _forget_late_audio(self, now: float, waited: int) -> None:
        """After a gap that was filled with silence, quiet frames that come late only add delay.

        Whoever speaks is heard, however late; the delay goes with the next quiet frames, and with
        the oldest of any kind where no quiet ones come for long: there is noise.
        """
        if not self._is_heard(now):
            self._forgive_until = now + FORGIVE_SECONDS
        elif now > self._forgive_until and waited < 2:
            self._owed = 0
        self._last_heard, waiting = now, self._audio.frames
        if self._owed and waiting > 1:
            hopes = now <= self._forgive_until + HOPE_SECONDS
            drop = self._audio.drop_quiet if hopes else self._audio.drop
            dropped = drop(max(1, waiting - self._owed))
            self._owed -= dropped
            self.dropped_frames += dropped
            self._metrics.dropped(dropped, Dropped.LATE)
