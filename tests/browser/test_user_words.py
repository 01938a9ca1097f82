"""The page before the tiny model and its recogniser: (random) words of the user, live."""

import json

import pytest
from playwright.sync_api import expect

from demo.app import build_app
from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.runtime.choose import load_backend
from tests.browser.serving import Served, warm
from tests.model.listening import STT_TINY
from tests.runtime.conftest import make_thin


@pytest.fixture(scope="module")
def hearing_server(chromium, never_overloaded, tmp_path_factory):
    model = str(make_thin(tmp_path_factory.mktemp("thin")))
    config = ServerConfig(model=model, transcribe=str(STT_TINY), slots=2, device="cpu")
    engine = warm(Service(lambda progress: load_backend(config, progress)))
    with Served(lambda: build_app(engine, config)) as served:
        yield served
    engine.stop()


def test_the_users_words_appear_as_they_are_spoken_and_can_be_saved(
    browser, hearing_server, open_tab, tmp_path, artifacts
):
    tab = open_tab(browser, hearing_server.url)
    tab.connect()
    said = tab.page.locator(".turn.user .said").first
    expect(said).not_to_be_empty(timeout=30_000)
    first = said.inner_text()
    tab.until(lambda: said.inner_text() != first)
    assert said.inner_text().startswith(first[:1])
    expect(tab.page.locator(".hint")).to_be_hidden()
    tab.until(lambda: tab.page.locator(".turn.agent").count())
    tab.page.screenshot(path=artifacts / "user-words.png")
    tab.end()  # both files are then of the same words
    turns = {}
    for ending in ("srt", "json"):
        with tab.page.expect_download() as download:
            tab.save(ending)
        download.value.save_as(tmp_path / ending)
        turns[ending] = (tmp_path / ending).read_text(encoding="utf-8")
    heard = [turn for turn in json.loads(turns["json"])["turns"] if turn["who"] == "user"]
    assert heard
    assert all(turn["text"] and turn["start"] <= turn["end"] for turn in heard)
    assert heard[0]["text"].split()[0] in turns["srt"]
