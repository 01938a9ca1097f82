"""One conversation of the embedded backend, frame by frame: what the scheduler does, without it."""

from typing import Any

import numpy as np

from engine.config import FRAME_SAMPLES, SAMPLE_RATE
from engine.dialogue import events as ev
from engine.dialogue.director import Director
from engine.dialogue.speech import prepare_command
from engine.runtime.backend import HeardRow, Opening
from engine.runtime.embedded import EmbeddedBackend

SILENCE = np.zeros(FRAME_SAMPLES, np.float32)


class Call:
    """`frame` runs a tick; `pcm` and `events` are what was said, by frame."""

    def __init__(
        self,
        seed: int = 0,
        voice: str = "NATF2",
        backend: EmbeddedBackend | None = None,
        slot: int = 0,
        first: str = "",
    ) -> None:
        self.backend = backend or EmbeddedBackend(1)
        self.slot = slot
        self.director = Director(self.backend.tokenizer)
        self.frames: list[np.ndarray] = []
        self.events: list[tuple[int, Any]] = []  # (the frame they belong to, the event)
        self.sampled: list[int] = []
        self._peak_out = 0.0
        list(self.backend.open(slot, Opening(voice, seed=seed)))
        if first:
            self.say(first)
        self._tick(SILENCE)  # the bootstrap
        self.frames.clear()

    def say(self, text: str, id: int = 1) -> None:
        self.director.take(prepare_command(ev.Say(id, text), self.backend.tokenizer))

    def frame(self, pcm: np.ndarray = SILENCE) -> np.ndarray:
        self._tick(pcm)
        return self.frames[-1]

    def _tick(self, pcm: np.ndarray) -> None:
        size = self.backend.slots
        active = np.arange(size) == self.slot
        rows = np.zeros((size, FRAME_SAMPLES), np.float32)
        rows[self.slot] = pcm
        heard = self.backend.listen(rows, active)
        self.sampled.append(int(heard.text[self.slot]))
        peak_in = float(np.abs(pcm).max())
        token, hush = self.director.step(self.sampled[-1], HeardRow(), peak_in, self._peak_out)
        self.events += [(len(self.frames) + 1, event) for event in self.director.events()]
        spoken = self.backend.speak(np.full(size, token), np.full(size, hush))
        self.frames.append(spoken.pcm[self.slot].copy())
        self._peak_out = float(np.abs(self.frames[-1]).max())

    def silence(self, frames: int) -> np.ndarray:
        return np.concatenate([self.frame() for _ in range(frames)])

    def hear(self, pcm: np.ndarray) -> None:
        """The user's speech, filled up to whole frames."""
        whole = np.zeros(-(-len(pcm) // FRAME_SAMPLES) * FRAME_SAMPLES, np.float32)
        whole[: len(pcm)] = pcm
        for part in whole.reshape(-1, FRAME_SAMPLES):
            self.frame(part)

    def until_said(self, limit: int = 2000) -> None:
        """Go on in silence until what was to be said is done."""
        for _ in range(limit):
            self.frame()
            if not self.director.agenda.current and not self.director.agenda.queue:
                return
        raise AssertionError(f"still speaking after {limit} frames")

    @property
    def pcm(self) -> np.ndarray:
        return np.concatenate(self.frames)

    @property
    def seconds(self) -> float:
        return len(self.frames) * FRAME_SAMPLES / SAMPLE_RATE

    @property
    def text(self) -> str:
        return "".join(e.text for _, e in self.events if isinstance(e, ev.Text))
