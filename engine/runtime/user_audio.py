"""User samples on their way to ticks, and when each whole frame was complete.

A box of one seat, without a lock of its own: the seat (seat.py) holds one.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE

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
