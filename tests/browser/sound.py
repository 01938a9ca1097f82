"""Sound for browser tests: a wav that is the microphone, and how alike two recordings are."""

from pathlib import Path

import numpy as np
import soundfile
import soxr

from engine.config import SAMPLE_RATE
from engine.runtime import embedded as espeak

SPEECH = (
    "The quick brown fox jumps over the lazy dog, while seven wizards quietly mix potions "
    "behind a green door and somebody counts slowly from one to ten."
)
PAUSE_SECONDS = 1.2  # long enough for the embedded backend to take its turn
MIC_RATE = 48_000
LOUD = 0.01  # root mean square of a window that is worth comparing


def speech() -> np.ndarray:
    """About eight seconds of one sentence and a pause, float32 at 24 kHz."""
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
    length = 1 << (len(within) + size).bit_length()
    spectrum = np.fft.rfft(within, length) * np.conj(np.fft.rfft(piece, length))
    products = np.fft.irfft(spectrum, length)[: len(within) - size + 1]
    squares = np.concatenate([[0.0], np.cumsum(np.square(within, dtype=np.float64))])
    energy = np.sqrt(np.maximum(squares[size:] - squares[:-size], 1e-9))
    scores = products / energy / max(1e-9, float(np.linalg.norm(piece)))
    at = int(np.argmax(scores))
    return float(scores[at]), at


def alike(heard: np.ndarray, source: np.ndarray, score: float, seconds: float = 1.0) -> int:
    """How many loud windows of `heard` match some part of `source` with at least that score.

    A count and not a share: a machine with too much to do loses pieces of sound, and the windows
    that hold such a gap say nothing about our code.
    """
    size, matching = int(seconds * SAMPLE_RATE), 0
    for start in range(0, len(heard) - size + 1, size // 2):
        window = heard[start : start + size]
        if np.sqrt(np.mean(np.square(window))) > LOUD:
            matching += best_match(window, source)[0] >= score
    return matching


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
