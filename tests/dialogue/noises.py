"""Sounds that are no speech, and speech, made here: nothing is recorded. Mono float32, 24 kHz."""

import numpy as np

from engine.config import SAMPLE_RATE
from engine.runtime.embedded import load_synthesizer


def set_level(samples: np.ndarray, dbfs: float) -> np.ndarray:
    """The samples at this level: RMS of what is not silent."""
    sounding = samples[np.abs(samples) > 1e-4]
    return (samples * (10 ** (dbfs / 20) / np.sqrt(np.mean(sounding**2)))).astype(np.float32)


def say(text: str, voice: str = "en-us", rate: int = 160) -> np.ndarray:
    """A sentence in eSpeak's voice."""
    return load_synthesizer().say(text, voice, 50, rate)


def silence(seconds: float) -> np.ndarray:
    return np.full(int(seconds * SAMPLE_RATE), 1e-5, np.float32)


def _shape(noise: np.ndarray, gain) -> np.ndarray:
    """Noise with another spectrum; gain is a function of Hz."""
    spectrum = np.fft.rfft(noise) * gain(np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE))
    return np.fft.irfft(spectrum, len(noise)).astype(np.float32)


def cough(seconds: float, seed: int) -> np.ndarray:
    """A burst around 700 Hz that dies away."""
    count = int(seconds * SAMPLE_RATE)
    burst = np.random.default_rng(seed).standard_normal(count)
    burst *= np.exp(-np.arange(count) / (count / 3)) * np.minimum(1, np.arange(count) / 120)
    return _shape(burst, lambda hz: 1 / (1 + ((hz - 700) / 600) ** 2))


def fan(seconds: float, seed: int) -> np.ndarray:
    """Low noise and a hum, without end."""
    count = int(seconds * SAMPLE_RATE)
    noise = _shape(
        np.random.default_rng(seed).standard_normal(count), lambda hz: 1 / (1 + (hz / 400) ** 2)
    )
    hum = np.sin(2 * np.pi * 100 * np.arange(count) / SAMPLE_RATE)
    return (noise / np.std(noise) + 0.3 * hum).astype(np.float32)


def typing(seconds: float, seed: int, strokes: int = 10) -> np.ndarray:
    """Clicks, `strokes` a second, at no regular time."""
    random = np.random.default_rng(seed)
    sound = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    for at in random.integers(0, len(sound) - 600, int(seconds * strokes)):
        length = int(random.integers(120, 450))
        sound[at : at + length] += random.standard_normal(length) * np.exp(-np.arange(length) / 60)
    return sound


def music(seconds: float, seed: int) -> np.ndarray:
    """Major chords of plucked strings, two a second."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = np.zeros_like(time)
    for start in np.arange(0, seconds, 0.5):
        at = (time >= start) & (time < start + 0.5)
        root = 220 * 2 ** (random.integers(0, 12) / 12)
        for hz in (root, root * 1.26, root * 1.5):
            for overtone in (1, 2, 3):
                wave = np.sin(2 * np.pi * hz * overtone * time[at]) / overtone
                sound[at] += wave * np.exp(-3 * (time[at] - start))
    return sound.astype(np.float32)


def door(seed: int) -> np.ndarray:
    """A slam."""
    noise = np.random.default_rng(seed).standard_normal(SAMPLE_RATE // 3)
    bang = _shape(noise, lambda hz: 1 / np.sqrt(np.maximum(hz, 20)))
    return (bang * np.exp(-np.arange(len(bang)) / 1800)).astype(np.float32)
