"""The tiny checkpoint behind the real page: three conversations at once, on a CPU."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from demo.app import build_app
from engine.config import ServerConfig
from engine.dialogue.service import Service
from tests.browser.serving import Served, warm

TINY = Path(__file__).parents[1] / "golden" / "tiny"
CONVERSATIONS = 3


@pytest.fixture
def tiny_server(chromium, never_overloaded):
    from engine.runtime.starting import load_personaplex

    engine = warm(
        Service(
            lambda _progress: load_personaplex(
                ServerConfig(model=str(TINY), device="cpu", slots=CONVERSATIONS)
            )
        )
    )
    with Served(lambda: build_app(engine, ServerConfig(model=str(TINY)))) as served:
        served.engine = engine
        yield served
    engine.stop()


def test_three_tabs_talk_with_the_model_at_once(browser, tiny_server, open_tab, artifacts):
    tabs = [open_tab(browser, tiny_server.url) for _ in range(CONVERSATIONS)]
    for tab in tabs:
        tab.connect()
    for tab in tabs:
        tab.until(lambda tab=tab: tab.seconds() > 4)
        expect(tab.page.locator(".turn.agent.own").first).to_be_visible()
    assert len(tiny_server.engine.sessions) == CONVERSATIONS
    tabs[0].page.screenshot(path=artifacts / "tiny-model.png", full_page=True)
    for tab in tabs:
        tab.end()
    tabs[0].until(lambda: not tiny_server.engine.sessions)
