"""Comparing sounds: what a test means by "the same words are in there"."""

import numpy as np

from engine.runtime import embedded as espeak
from engine.runtime.embedded import RATE_WPM, espeak_voice


def word(text: str, voice: str = "NATF2") -> np.ndarray:
    """A word as the embedded backend says it, straight from the synthesiser."""
    name, pitch = espeak_voice(voice)
    return espeak.synthesize(text, name, pitch, RATE_WPM)


def speech(text: str) -> np.ndarray:
    """A user's sentence, float32 [n] at 24 kHz."""
    gap = np.zeros(1200, np.float32)
    return np.concatenate([part for spoken in text.split() for part in (word(spoken), gap)])


def likeness(heard: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Correlation (-1 to 1) of `wanted` with every place in `heard`."""
    size = 1 << int(len(heard) + len(wanted)).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(wanted, size))
    products = np.fft.irfft(spectrum, size)[: len(heard) - len(wanted) + 1]
    energy = np.concatenate([[0], np.cumsum(heard.astype(np.float64) ** 2)])
    windows = np.sqrt(np.maximum(energy[len(wanted) :] - energy[: -len(wanted)], 1e-6))
    return products / (windows * np.linalg.norm(wanted) + 1e-9)


def best_match(heard: np.ndarray, wanted: np.ndarray) -> tuple[float, int]:
    """(correlation, position) of the place in `heard` that is most like `wanted`."""
    scores = likeness(heard, wanted)
    return float(scores.max()), int(scores.argmax())


def loud_seconds(pcm: np.ndarray, level: float = 0.01) -> float:
    """How long there is something to hear, in steps of 10 ms."""
    blocks = pcm[: len(pcm) // 240 * 240].reshape(-1, 240)
    return float((np.abs(blocks).max(axis=1) > level).sum() * 0.01)


def assert_says(pcm: np.ndarray, words: list[str], voice: str = "NATF2", at_least: float = 0.95):
    """Each word is heard, one after the other."""
    end = 0
    for text in words:
        wanted = word(text, voice)
        scores = likeness(pcm[end:], wanted)
        found = np.flatnonzero(scores > at_least)
        assert found.size, f"{text!r} is not heard after {end / 24000:.2f} s: {scores.max():.2f}"
        end += int(found[0]) + len(wanted) // 2
