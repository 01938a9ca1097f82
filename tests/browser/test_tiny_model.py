"""The tiny checkpoint behind the real page: three conversations at once, on a CPU."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from demo.app import build_app
from engine.config import ServerConfig
from engine.dialogue.service import Service
from tests.browser.serving import Served, warm
from tests.runtime.conftest import make_thin

TINY = Path(__file__).parents[1] / "golden" / "tiny"
CONVERSATIONS = 3


@pytest.fixture
def tiny_server(chromium, never_overloaded, tmp_path):
    from engine.runtime.starting import load_personaplex

    model = str(make_thin(tmp_path))
    engine = warm(
        Service(
            lambda _progress: load_personaplex(
                ServerConfig(model=model, device="cpu", slots=CONVERSATIONS)
            )
        )
    )
    with Served(lambda: build_app(engine, ServerConfig(model=model))) as served:
        served.engine = engine
        yield served
    engine.stop()


@pytest.fixture
def cold_server(chromium, never_overloaded):
    """The README's own command; its page is there before the model, which `go` lets come."""
    from engine.commands.serve import build_service

    stt = TINY.with_name("stt_tiny")
    config = ServerConfig(model=str(TINY), transcribe=str(stt), device="cpu", slots=1)
    service = build_service(config)
    with Served(lambda: build_app(service, config)) as served:
        served.go = lambda: warm(service)
        yield served
    service.stop()


def test_the_page_opens_cold_and_talks_in_the_models_own_voice(browser, cold_server, open_tab):
    """Before the model is there nobody knows its voices, and the checkpoint's are not its own."""
    tab = open_tab(browser, cold_server.url)
    assert not tab.page.locator(".voice :checked").evaluate_all(
        "(all) => all.some((one) => !one.value)"
    )
    cold_server.go()
    tab.connect()
    expect(tab.page.locator(".folded")).to_be_visible()
    tab.until(lambda: tab.seconds() > 1)
    assert "bad parameter" not in tab.page.locator(".stage").inner_text()
    tab.errors = [error for error in tab.errors if "503" not in error]  # /healthz: it was waking


def test_three_tabs_talk_with_the_model_at_once(browser, tiny_server, open_tab, artifacts):
    tabs = [open_tab(browser, tiny_server.url) for _ in range(CONVERSATIONS)]
    for tab in tabs:
        tab.connect()
    for tab in tabs:
        tab.until(lambda tab=tab: tab.seconds() > 2)
        expect(tab.page.locator(".turn.agent.own").first).to_be_visible()
    assert len(tiny_server.engine.sessions) == CONVERSATIONS
    tabs[0].page.screenshot(path=artifacts / "tiny-model.png", full_page=True)
    for tab in tabs:
        tab.end()
    tabs[0].until(lambda: not tiny_server.engine.sessions)
