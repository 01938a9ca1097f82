"""What the page asks for, it gets: in every way of use no request is refused, no rule is broken."""

import pytest
from playwright.sync_api import expect

from demo.app import build_app
from engine.config import ServerConfig
from tests.browser.driver import Tab
from tests.browser.serving import Served
from tests.modal.rehearsal import free_port
from tests.modal.test_proxy import SETTINGS, certificate, needs_nginx
from tests.nginx import running_nginx

TOKEN = "open sesame"
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
    (event) => window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
"""


@pytest.fixture(scope="module")
def locked_server(chromium, engine):
    with Served(lambda: build_app(engine, ServerConfig(token=TOKEN))) as served:
        yield served


@pytest.fixture(scope="module")
def proxied(locked_server, tmp_path_factory):
    """The page under /talk/ behind nginx and TLS."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    certificate(folder)
    upstream = f"{locked_server.port}/"
    settings = SETTINGS.format(folder=folder, port=port, upstream=upstream)
    with running_nginx(folder, settings.replace("location /", "location /talk/")):
        yield f"https://localhost:{port}/talk/"


class WatchedTab(Tab):
    """A tab that also notes what was refused, and what the page's policy forbade."""

    ALONE = True  # a script that begins with the page stays in it

    def _listen(self):
        super()._listen()
        self.refused = []
        self.page.add_init_script(VIOLATIONS)
        self.hear("response", lambda a: a.status >= 400 and self.refused.append(a.url))

    def check(self):
        assert self.refused == []
        assert self.errors == []
        assert self.page.evaluate("window.violations") == []


def use_everything(tab: WatchedTab) -> None:
    """Every control, a call with Opus, and every file that can be saved."""
    page = tab.page
    page.get_by_text("Casual talk", exact=True).click()
    page.get_by_text("Natural male 0").click()
    page.locator(".role summary").click()
    page.fill("#pp-persona", "You are kind.")
    tab.tuning()
    page.select_option("#pp-bandwidth", "low")
    page.keyboard.press("Escape")
    tab.connect()
    tab.tuning()
    tab.sets("#pp-temp", "0.5")
    page.keyboard.press("Escape")
    tab.say("One two three.")
    expect(page.locator(".log")).to_contain_text("three", timeout=30_000)
    page.click("#pp-mic")
    page.click("#pp-pause")
    tab.end()
    for ending in ("wav", "txt", "srt", "vtt", "json"):
        with page.expect_download():
            tab.save(ending)


WIDE = {"width": 1280, "height": 900}


def test_a_tab_that_uses_everything_is_refused_nothing(browser, locked_server, artifacts):
    """In the dark; the next test does the same in the light."""
    tab = WatchedTab(
        browser, f"{locked_server.url}?token=open+sesame", color_scheme="dark", viewport=WIDE
    )
    use_everything(tab)
    tab.page.screenshot(path=artifacts / "closed-page-dark.png")
    tab.check()
    tab.page.goto(f"{locked_server.url}favicon.ico")
    assert tab.refused == []
    tab.close()


def test_pages_of_gradios_own_ask_for_nothing_that_is_open(browser, locked_server):
    """A stranger adds what Gradio's address line knows: the page is the same, or says nothing."""
    tab = WatchedTab(browser, f"{locked_server.url}?token=open+sesame")
    for query in ("?__theme=light", "?deep_link=abc", "?__lang=de", "?view=settings"):
        tab.page.goto(locked_server.url + query)
        tab.see("Ready")
    tab.check()
    tab.close()


@needs_nginx
def test_under_a_path_and_https_the_page_talks(browser, proxied, artifacts):
    tab = WatchedTab(
        browser, f"{proxied}?token=open+sesame", viewport=WIDE, ignore_https_errors=True
    )
    assert tab.page.url == proxied  # the token is not left in the address
    use_everything(tab)
    tab.page.screenshot(path=artifacts / "closed-page-light.png")
    assert all(url.startswith((proxied, "blob:", "data:")) for url in tab.requests)
    tab.check()
    tab.close()
