"""The embedded backend, keeping what each slot heard and said since it was opened."""

from collections.abc import Iterator

import numpy as np

from engine.config import SamplingConfig
from engine.runtime.backend import Heard, Opening, Spoken
from engine.runtime.embedded import EmbeddedBackend


class RecordingBackend(EmbeddedBackend):
    """`heard[slot]` and `said[slot]` are lists of frames [1920]."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.heard: list[list[np.ndarray]] = [[] for _ in range(slots)]
        self.said: list[list[np.ndarray]] = [[] for _ in range(slots)]
        self.newest = 0  # the slot opened last
        self.opened: list[Opening] = []
        self.tuned: list[SamplingConfig] = []

    def open(self, slot: int, opening: Opening) -> Iterator[None]:
        self.heard[slot], self.said[slot] = [], []
        self.newest = slot
        self.opened.append(opening)
        return super().open(slot, opening)

    def tune(self, slot: int, sampling: SamplingConfig) -> None:
        self.tuned.append(sampling)
        super().tune(slot, sampling)

    def listen(self, pcm: np.ndarray, active: np.ndarray) -> Heard:
        for slot in np.flatnonzero(active):
            self.heard[slot].append(pcm[slot].copy())
        return super().listen(pcm, active)

    def speak(self, text: np.ndarray, hush: np.ndarray) -> Spoken:
        spoken = super().speak(text, hush)
        for slot in self._active:
            self.said[slot].append(spoken.pcm[slot].copy())
        return spoken

    def heard_in_newest(self) -> np.ndarray:
        """Everything the newest conversation's user said, float32 at 24 kHz."""
        return np.concatenate([np.zeros(0, np.float32), *self.heard[self.newest]])

    def said_in_newest(self) -> np.ndarray:
        """Everything the agent said to the newest conversation."""
        return np.concatenate([np.zeros(0, np.float32), *self.said[self.newest]])
