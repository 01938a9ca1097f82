"""A stranger's first minute with what `make run` serves: one press, one sentence, its answer."""

import re

import numpy as np
import pytest
import soundfile
import soxr
from playwright.sync_api import expect

from engine.config import SAMPLE_RATE
from tests.browser.driver import FLAGS, MICROPHONE_FLAGS
from tests.browser.sound import MIC_RATE, Matches, alike, espeak

SENTENCE = "Good morning! Could you tell me which bicycle would suit a tall person?"


@pytest.fixture
def stranger(playwright, chromium, tmp_path):
    """Chromium whose user says one sentence three seconds after the microphone is on, and waits."""
    said = espeak.synthesize(SENTENCE, "en-us", 45, 160) * 0.8
    quiet = np.zeros(SAMPLE_RATE, np.float32)
    wav = np.concatenate([*[quiet] * 3, said, *[quiet] * 60])
    soundfile.write(tmp_path / "mic.wav", soxr.resample(wav, SAMPLE_RATE, MIC_RATE), MIC_RATE)
    flags = [*FLAGS, *MICROPHONE_FLAGS]
    flags.append(f"--use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}")
    made = playwright.chromium.launch(executable_path=chromium, args=flags)
    yield made, said
    made.close()


def test_one_press_and_one_sentence_get_an_answer_to_that_sentence(
    stranger, server, backend, open_tab
):
    browser, said = stranger
    tab = open_tab(browser, f"{server.url}?raw=1")
    # what is real here is said before anything is pressed
    expect(tab.page.get_by_text("demo voice, not PersonaPlex")).to_be_visible()
    expect(tab.page.get_by_text("plays back what you say")).to_be_visible()
    expect(tab.page.locator(".pill")).to_contain_text("places free")
    # one press, and nothing else to do: the next thing that happens is the conversation
    tab.connect()
    presses = 1
    greeting = tab.page.locator(".turn.agent.own .said").first
    expect(greeting).to_contain_text(re.compile("Hello!|Hi"), timeout=30_000)
    # the sentence is heard, and what the demo voice answers is that sentence and no other
    hears, says = Matches(0.9), Matches(0.9)
    tab.until(lambda: hears.count(backend.heard_in_newest(), said) >= 3, every=0.5)
    tab.until(lambda: says.count(backend.said_in_newest(), said) >= 3, every=0.5)
    heard, answer = backend.heard_in_newest(), backend.said_in_newest()
    assert first_second(answer, said) > first_second(heard, said)  # an answer, no echo of ahead
    # the clock by events: from the press to the first word that was heard, in the call's own time
    assert presses == 1
    assert first_second(heard, said) < 10


def first_second(pcm: np.ndarray, said: np.ndarray) -> float:
    """Seconds of the call after which the sentence begins in it."""
    for start in range(0, len(pcm) - SAMPLE_RATE, SAMPLE_RATE // 2):
        if alike(pcm[start : start + SAMPLE_RATE], said, 0.9):
            return start / SAMPLE_RATE
    raise AssertionError("the sentence is not there")
