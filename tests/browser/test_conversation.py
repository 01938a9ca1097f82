"""A real browser, the real server, and a wav for a microphone: one whole conversation."""

import re

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect

from engine.config import SAMPLE_RATE
from engine.dialogue.persona import load_personas
from tests.browser.driver import Tab
from tests.browser.sound import Matches, alike, speech

SENTENCE = "Hello from Modal, this is a sentence that somebody typed."


@pytest.fixture(scope="module")
def spoken():
    """What comes out of the microphone, over and over: each second of it is somewhere in here."""
    return np.concatenate([speech(), speech()[:SAMPLE_RATE]])


@pytest.fixture(scope="module")
def real_tab(browser, server):
    tab = Tab(browser, f"{server.url}?raw=1&tap=1")
    yield tab
    tab.close()


@pytest.fixture
def talking(real_tab, engine):
    """In a call."""
    real_tab.rest()
    real_tab.others = set(engine.sessions)  # the server keeps for a while who has left
    real_tab.connect()
    yield real_tab
    assert real_tab.errors == [], "the console has errors"


def test_a_conversation_from_connect_to_disconnect(talking, spoken, backend, engine, artifacts):
    tab = talking
    after_connect = len(tab.requests)
    tab.until(lambda: tab.level("mic") > 20)
    tab.until(lambda: tab.level("agent") > 20)
    greeting = tab.page.locator(".turn.agent.own").first  # it yields to a user who speaks at once
    expect(greeting).to_contain_text(re.compile("Hello!|Hi"), timeout=30_000)
    # half seconds: a busy machine loses pieces of sound, and hardly a whole second is without a gap
    hears, plays = Matches(0.95, 0.5), Matches(0.95, 0.5)
    tab.until(lambda: hears.count(backend.heard_in_newest(), spoken) >= 8, 120, every=1)
    tab.until(lambda: plays.count(tab.tap("playback"), backend.said_in_newest()) >= 6, 120, every=1)
    tab.mute()  # else our own voice interrupts it
    tab.say(SENTENCE)
    given = tab.page.locator(".turn.agent.given")
    expect(given.locator(".said")).to_have_text(SENTENCE, timeout=30_000)
    expect(tab.page.locator(".demo-badge")).to_be_visible()
    tab.page.screenshot(path=artifacts / "conversation-desktop.png", full_page=True)
    assert tab.requests[after_connect:] == []
    tab.end()
    expect(tab.page.locator("#pp-start")).to_have_text("Talk again")
    tab.until(lambda: engine.sessions <= tab.others)

    def asked() -> list[str]:
        """All but the recording, which is a blob of the page's own."""
        urls = tab.requests[after_connect:]
        return [url.rsplit("/", 1)[1] for url in urls if not url.startswith("blob:")]

    tab.until(lambda: len(asked()) > 1)  # how many places are free now
    assert asked() == ["healthz", "voices"]


def test_what_was_chosen_reaches_the_engine(browser, server, backend, open_tab):
    tab = open_tab(browser, server.url)
    page = tab.page
    page.get_by_role("button", name="All 18 voices").click()
    page.get_by_text("Varied male 3").click()
    page.get_by_text("Astronaut in trouble", exact=True).click()
    expect(page.locator("#pp-persona")).to_have_value(persona("Astronaut"))
    tab.tuning()
    tab.sets("#pp-temp", "0.31")
    tab.connect()
    opening = backend.opened[-1]
    assert opening.voice == "VARM3"
    assert opening.sampling.text_temperature == 0.31
    assert bytes_of(opening.text_ids, backend).startswith("<system>")
    tab.sets("#pp-temp", "0.5")
    tab.until(lambda: backend.tuned and backend.tuned[-1].text_temperature == 0.5)


def persona(title):
    return next(one.text for one in load_personas() if title in one.title)


def bytes_of(ids, backend):
    return b"".join(backend.tokenizer.data(token)[1] for token in ids).decode()


def test_mute_sends_silence_and_pause_silences_the_agent(talking, backend):
    tab, page = talking, talking.page
    tab.until(lambda: tab.level("mic") > 20)
    tab.mute()
    muted_at = len(backend.heard_in_newest())
    tab.until(lambda: len(backend.heard_in_newest()) > muted_at + 3 * 24_000)
    assert not backend.heard_in_newest()[muted_at + 24_000 :].any()
    page.click("#pp-mic")
    expect(page.locator("#pp-mic")).to_have_text("Mute")
    page.click("#pp-pause")
    tab.see("Paused")
    tab.until(lambda: tab.level("mic") > 20)
    paused_at = len(backend.said_in_newest())
    tab.until(lambda: len(backend.said_in_newest()) > paused_at + 2 * 24_000)
    assert not backend.said_in_newest()[paused_at + 24_000 :].any()
    page.click("#pp-pause")
    expect(page.locator("#pp-pause")).to_have_text("Pause")


def test_a_queue_of_texts_is_shown_and_can_be_stopped(talking):
    tab, page = talking, talking.page
    tab.mute()
    tab.say("One two three four five six seven eight nine ten eleven twelve.")
    tab.say("This waits for its turn.")
    expect(page.locator(".queued")).to_have_count(1, timeout=30_000)  # the first is being said
    expect(page.locator(".queued")).to_have_text("This waits for its turn.")
    expect(page.locator(".turn.given .said")).to_contain_text("two", timeout=30_000)
    page.click("#pp-quiet")
    expect(page.locator(".queued")).to_have_count(0)
    expect(page.locator(".turn.given .cut")).to_contain_text("twelve")
    assert "twelve" not in page.locator(".turn.given .said").inner_text()


def test_recording_and_transcript_can_be_saved(talking, spoken, tmp_path):
    tab, page = talking, talking.page
    greeting = page.locator(".turn.agent.own .said").first
    expect(greeting).to_contain_text(re.compile("Hello!|Hi"), timeout=30_000)
    tab.until(lambda: tab.seconds() > 5)
    tab.end()
    files = {}
    for ending in ("wav", "txt", "srt", "vtt", "json"):
        with page.expect_download() as download:
            tab.save(ending)
        files[ending] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[ending])
    sound, rate = soundfile.read(files["wav"])
    assert rate == 24_000
    assert sound.shape[1] == 2
    assert len(sound) > 4 * rate
    assert np.abs(sound[:, 0]).max() > 0.05  # the agent
    assert alike(sound[:, 1].astype(np.float32), spoken, 0.95) >= 2
    for ending in ("txt", "srt", "vtt", "json"):
        assert greeting.inner_text().split()[0] in files[ending].read_text()


def test_low_bandwidth_speaks_opus_both_ways(browser, server, backend, spoken, open_tab):
    tab = open_tab(browser, f"{server.url}?raw=1&tap=1&codec=opus")
    tab.connect()
    hears, plays = Matches(0.8), Matches(0.8)
    tab.until(lambda: hears.count(backend.heard_in_newest(), spoken) >= 4, every=1)
    tab.until(lambda: plays.count(tab.tap("playback"), backend.said_in_newest()) >= 3, every=1)
    tab.say("Hello.")
    expect(tab.page.locator(".turn.given .said")).to_have_text("Hello.", timeout=30_000)


def test_the_low_bandwidth_box_chooses_opus(tab, api):
    tab.tuning()
    tab.page.get_by_label("Data", exact=True).select_option("Low: a tenth of the data")
    tab.connect()
    assert api.conversations[-1].query["format"] == "opus"
