"""One browser, one real server with the embedded backend, and one with a scripted socket."""

import shutil
from pathlib import Path

import pytest
from aiohttp import web
from playwright.sync_api import sync_playwright

from demo.app import build_app
from engine.config import ServerConfig
from engine.dialogue.service import Service
from tests.browser.driver import FLAGS, MICROPHONE_FLAGS, SHELF, Tab
from tests.browser.recording import RecordingBackend
from tests.browser.scripted import ScriptedApi
from tests.browser.serving import Served, rendered_once, warm
from tests.browser.sound import write_microphone
from tests.demo import lazy_page

ARTIFACTS = Path(__file__).parents[2] / "artifacts"


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="package")
def artifacts():
    ARTIFACTS.mkdir(exist_ok=True)
    return ARTIFACTS


@pytest.fixture(scope="package")
def chromium():
    """The path of Chromium without windows, which does the same for less work, or of the whole."""
    path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is missing (apt install chromium): browser tests are skipped")
    return path


@pytest.fixture(scope="package")
def playwright(chromium):
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="package")
def browser(playwright, chromium, tmp_path_factory):
    """Chromium whose microphone is our speech."""
    wav = write_microphone(tmp_path_factory.mktemp("mic") / "speech.wav")
    flags = [*FLAGS, *MICROPHONE_FLAGS, f"--use-file-for-fake-audio-capture={wav}"]
    made = playwright.chromium.launch(executable_path=chromium, args=flags)
    yield made
    made.close()


@pytest.fixture(scope="package")
def bare_browser(playwright, chromium):
    """Chromium without a microphone and without anyone who would allow one."""
    made = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
    yield made
    made.close()


@pytest.fixture(scope="package")
def shy_browser(playwright):
    """Chromium with a microphone that nobody allows it to use: the whole one, which would ask."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is missing (apt install chromium): nothing asks for a microphone")
    flags = [*FLAGS, "--use-fake-device-for-media-stream"]
    made = playwright.chromium.launch(executable_path=path, args=flags)
    yield made
    made.close()


@pytest.fixture(scope="package", autouse=True)
def _rendered_once():
    with rendered_once():
        yield


@pytest.fixture(scope="package")
def backend():
    return RecordingBackend(4)


@pytest.fixture(scope="package")
def engine(backend):
    made = warm(Service(lambda _progress: backend))
    yield made
    made.stop()


@pytest.fixture(scope="package")
def server(chromium, engine):
    with Served(lambda: build_app(engine, ServerConfig())) as served:
        yield served


@pytest.fixture(scope="package")
def scripted_server(chromium):
    api = ScriptedApi()

    def make() -> web.Application:
        app = web.Application()
        api.add_to(app)
        lazy_page.add_page(app, lazy_page.page_config(routing=True))
        return app

    with Served(make) as served:
        served.api = api
        yield served


@pytest.fixture
def api(scripted_server):
    """The scripted socket, as it was at the beginning."""
    scripted_server.api.reset()
    return scripted_server.api


@pytest.fixture(scope="package")
def one_tab(browser, scripted_server):
    """One page for most tests: loading it is what costs most."""
    tab = Tab(browser, scripted_server.url)
    yield tab
    tab.close()


@pytest.fixture
def tab(one_tab, api):
    """That page, as it was when it was loaded."""
    one_tab.rest()
    yield one_tab
    errors = list(one_tab.errors)
    one_tab.rest()  # a call that goes on takes a third of a core until somebody needs the page
    assert errors == [], "the console has errors"


@pytest.fixture
def bare_page(browser):
    """An empty page, for a test that brings its own scripts."""
    page = SHELF.take(browser)
    yield page
    SHELF.put_back(page)


@pytest.fixture
def open_tab():
    """open_tab(browser, url, **options) -> Tab; closed after the test, without errors."""
    tabs = []

    def opened(browser, url, **options):
        tabs.append(Tab(browser, url, **options))
        return tabs[-1]

    yield opened
    for tab in tabs:
        tab.close()
    for tab in tabs:
        assert tab.errors == [], "the console has errors"
