"""The synthesiser behind ctypes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engine.config import SAMPLE_RATE
from engine.runtime import embedded as espeak


def test_a_word_is_24_khz_float_without_silence_around_it():
    samples = espeak.synthesize("umbrella")
    assert samples.dtype == np.float32
    assert 0.2 < len(samples) / SAMPLE_RATE < 1.0
    assert 0.05 < np.abs(samples).max() <= 1
    for edge in (samples[:480], samples[-480:]):
        assert np.abs(edge).max() > 0.005


def test_words_begin_and_end_without_a_click():
    samples = espeak.synthesize("umbrella")
    assert abs(samples[0]) < 1e-3
    assert abs(samples[-1]) < 1e-3


def test_a_word_is_remembered_and_cannot_be_changed_by_who_gets_it():
    samples = espeak.synthesize("umbrella")
    assert espeak.synthesize("umbrella") is samples
    with pytest.raises(ValueError, match="read-only"):
        samples[0] = 1


@pytest.mark.parametrize("text", ["", " ", "...", "\0", "▁", "\x1b[31m", "🎉"])
def test_text_without_words_is_no_trouble(text):
    assert espeak.synthesize(text).ndim == 1


def test_a_higher_rate_is_shorter_and_voices_and_pitch_are_heard():
    plain = espeak.synthesize("umbrella", "en-us", 50, 150)
    assert len(espeak.synthesize("umbrella", "en-us", 50, 300)) < len(plain)
    assert not np.array_equal(espeak.synthesize("umbrella", "en-us+f3", 50, 150), plain)
    assert not np.array_equal(espeak.synthesize("umbrella", "en-us", 80, 150), plain)


def test_threads_do_not_get_each_others_words():
    words = [f"number {n}" for n in range(40)]
    synthesizer = espeak.load_synthesizer()
    alone = [synthesizer.say(text, "en-us", 50, 175) for text in words]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: synthesizer.say(text, "en-us", 50, 175), words))
    # eSpeak lets its pitch flutter on from word to word, so a word is never twice the same sample
    # for sample; its length and loudness are.
    for mine, theirs in zip(alone, together, strict=True):
        assert abs(len(mine) - len(theirs)) < 600
        assert np.linalg.norm(theirs) == pytest.approx(np.linalg.norm(mine), rel=0.1)
