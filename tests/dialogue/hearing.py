"""Scripted users: tokens, pause heads and loudness of a recogniser that does not exist."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from engine.config import EPAD, PAD
from engine.runtime.backend import HeardRow, Transcription
from tests.dialogue.turns import SPELLING

STT_TINY = Path(__file__).parents[1] / "golden" / "stt_tiny"
WANT = load_file(STT_TINY / "expected" / "stt.safetensors")
EXPECTED = json.loads((STT_TINY / "expected" / "stt.json").read_text())
DELAY = 6


TRANSCRIPTION = Transcription(SPELLING, DELAY)


@dataclass(frozen=True)
class Heard:
    """One frame of a script."""

    peak: float = 0.0
    token: int = PAD
    done: float = 1.0  # P(the user is done)

    @property
    def row(self) -> HeardRow:
        pause = np.array([1, 1, self.done, self.done], np.float32)
        return HeardRow(stt_text=self.token, pause=pause)


def spoken(text: str, frames_a_word: int = 4) -> Iterator[Heard]:
    """Speech: loud, not done, and its words written as they are said."""
    for word in text.split():
        tokens = [EPAD, SPELLING.id(f"▁{word}")]
        for at in range(frames_a_word):
            yield Heard(0.3, tokens[at] if at < len(tokens) else PAD, 0.02)


def quiet(frames: int, peak: float = 0.0, done: float = 1.0) -> list[Heard]:
    return [Heard(peak, PAD, done)] * frames
