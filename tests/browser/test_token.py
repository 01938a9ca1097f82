"""A server with a token: the page asks for it once, and then page and socket are open."""

import pytest
from playwright.sync_api import expect

from demo.app import build_app
from engine.config import ServerConfig
from tests.browser.serving import Served

TOKEN = "open sesame"


@pytest.fixture(scope="module")
def locked_server(chromium, engine):
    with Served(lambda: build_app(engine, ServerConfig(token=TOKEN))) as served:
        yield served


def test_the_token_opens_page_and_socket(bare_page, locked_server):
    page = bare_page
    page.goto(locked_server.url)
    page.get_by_label("Access token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("not the right one")).to_be_visible()
    page.get_by_label("Access token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator(".state-word")).to_have_text("Ready", timeout=30_000)
    assert page.url == locked_server.url  # the token is not left in the address
    page.click("#pp-start")
    expect(page.locator(".stage[data-phase=live]")).to_be_attached(timeout=30_000)


def test_a_tab_that_lost_its_cookie_is_told_what_to_do(browser, locked_server, open_tab):
    tab = open_tab(browser, f"{locked_server.url}?token=open+sesame")
    tab.page.reload()  # the token of the address was kept in memory only
    tab.phase("ready")
    tab.context.clear_cookies()
    tab.connect("Ended")
    expect(tab.sentence).to_contain_text("needs an access token")
