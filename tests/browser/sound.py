"""Sound for browser tests: a wav that is the microphone, and how alike two recordings are."""

from pathlib import Path

import numpy as np
import soundfile
import soxr

from engine.config import SAMPLE_RATE
from engine.runtime import embedded as espeak

SPEECH = "The quick brown fox jumps over the lazy dog, while seven wizards quietly mix potions."
PAUSE_SECONDS = 1.2  # long enough for the embedded backend to take its turn
MIC_RATE = 48_000
LOUD = 0.01  # root mean square of a window that is worth comparing


def speech() -> np.ndarray:
    """About five seconds of one sentence and a pause, float32 at 24 kHz."""
    words = espeak.synthesize(SPEECH, "en-us", 45, 160) * 0.8
    return np.concatenate([words, np.zeros(int(PAUSE_SECONDS * SAMPLE_RATE), np.float32)])


def write_microphone(path: Path) -> Path:
    """The speech as the wav that Chromium plays as a microphone, over and over."""
    soundfile.write(path, soxr.resample(speech(), SAMPLE_RATE, MIC_RATE), MIC_RATE, "PCM_16")
    return path


def best_match(piece: np.ndarray, within: np.ndarray) -> tuple[float, int]:
    """The highest normalised correlation of `piece` with any part of `within`, and where."""
    size = len(piece)
    if len(within) < size:
        return 0.0, 0
    length = 1 << (len(within) - 1).bit_length()  # around the end nothing is looked at
    spectrum = np.fft.rfft(within, length) * np.conj(np.fft.rfft(piece, length))
    products = np.fft.irfft(spectrum, length)[: len(within) - size + 1]
    squares = np.concatenate([[0.0], np.cumsum(np.square(within, dtype=np.float64))])
    energy = np.sqrt(np.maximum(squares[size:] - squares[:-size], 1e-9))
    scores = products / energy / max(1e-9, float(np.linalg.norm(piece)))
    at = int(np.argmax(scores))
    return float(scores[at]), at


class Matches:
    """How many loud windows of a growing recording match some part of a source that may grow, too.

    A count and not a share: a machine with too much to do loses pieces of sound, and the windows
    that hold such a gap say nothing about our code. What was compared once is not compared again.
    """

    def __init__(self, score: float, seconds: float = 1.0) -> None:
        self._score = score
        self._size = int(seconds * SAMPLE_RATE)
        self._found: set[int] = set()  # where windows begin that match
        self._compared: dict[int, int] = {}  # the others, with how long the source was

    def count(self, heard: np.ndarray, source: np.ndarray) -> int:
        for start in range(0, len(heard) - self._size + 1, self._size // 2):
            if start in self._found or self._compared.get(start) == len(source):
                continue
            window = heard[start : start + self._size]
            loud = np.sqrt(np.mean(np.square(window))) > LOUD
            if loud and best_match(window, source)[0] >= self._score:
                self._found.add(start)
            else:
                self._compared[start] = len(source)
        return len(self._found)


def alike(heard: np.ndarray, source: np.ndarray, score: float) -> int:
    """How many loud seconds of `heard` match some part of `source` with at least that score."""
    return Matches(score).count(heard, source)


def lags(later: np.ndarray, earlier: np.ndarray, seconds: float = 0.5) -> list[tuple[float, float]]:
    """(time, lag in s) of each window of `earlier` that is found again in `later` within 2 s."""
    size, found = int(seconds * SAMPLE_RATE), []
    for start in range(0, len(earlier) - size - 2 * SAMPLE_RATE, size):
        window = earlier[start : start + size]
        if np.sqrt(np.mean(np.square(window))) < LOUD:
            continue
        score, at = best_match(window, later[start : start + size + 2 * SAMPLE_RATE])
        if score > 0.8:
            found.append((start / SAMPLE_RATE, at / SAMPLE_RATE))
    return found
