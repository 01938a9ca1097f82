"""The page as it is served: Gradio behind the bridge, our scripts, the token. No browser needed."""

import asyncio
import json
import re

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from demo.app import build_app
from demo.page.routes import STATIC, add_page
from demo.page.ui import PageConfig, build_page, mount
from engine.config import VOICE_NAMES, ServerConfig
from engine.dialogue.persona import Persona, load_personas
from engine.dialogue.service import Service
from engine.runtime.embedded import EmbeddedBackend
from tests.browser.serving import warm

CONFIG = PageConfig(VOICE_NAMES, load_personas(), VOICE_NAMES[0])


@pytest.fixture(scope="module")
def page():
    """The page, mounted; in a running loop, as outside of one Gradio leaves loops open."""

    async def build():
        made = build_page(CONFIG)
        mount(made)
        return made

    return asyncio.run(build())


async def client_of(token=""):
    app = web.Application()
    add_page(app, CONFIG, token)
    client = TestClient(TestServer(app))
    await client.start_server()
    return client


@pytest.fixture
async def client():
    made = await client_of()
    yield made
    await made.close()


def test_an_idle_page_keeps_no_heartbeat_open(page):
    assert page.config["connect_heartbeat"] is False


def test_no_listener_runs_on_the_server_or_shows_in_an_api(page):
    assert page.fns
    for function in page.fns.values():
        assert function.fn is None
        assert function.js
        assert function.queue is False
        assert function.api_visibility == "private"


def test_what_the_script_updates_is_what_the_widgets_are(page):
    """widgets() in main.js answers in the order of Widgets.changing()."""
    source = (STATIC / "main.js").read_text()
    body = re.search(r"  widgets\(\) \{(.*?)\n  \}", source, re.S)[1]
    assert "...[live, live, live, live, live].map(enabled)" in body
    refresh = next(f for f in page.fns.values() if "widgets()" in str(f.js))
    ids = [
        page.blocks[output._id].elem_id or page.blocks[output._id].label
        for output in refresh.outputs
    ]
    assert ids == [
        *("pp-connect", "pp-mute", "pp-pause", "pp-say", "pp-say-now", "pp-cancel"),
        *("pp-ask", "pp-ask-now", "pp-preset", "pp-persona", "pp-voice", "Seed (−1: random)"),
        *("Low bandwidth", "Record in this browser", "pp-save-wav"),
        *("pp-save-txt", "pp-save-srt", "pp-save-vtt", "pp-save-json"),
    ]


async def test_the_page_is_served_with_its_settings(client):
    config = await (await client.get("/config")).json()
    panel = next(
        part for part in config["components"] if part["props"].get("elem_id") == "pp-state"
    )
    script = panel["props"]["js_on_load"]
    given = json.loads(re.search(r"const config = (\{.*\});", script)[1])
    assert given["voices"][0] == VOICE_NAMES[0]
    assert len(given["personas"]) == len(load_personas())


def test_a_persona_cannot_break_out_of_the_page():
    nasty = Persona("x", "T", "</script><script>alert(1)</script>")
    text = PageConfig(VOICE_NAMES, (nasty,), VOICE_NAMES[0]).json()
    assert "<" not in text
    assert json.loads(text)["personas"][0]["text"] == nasty.text


async def test_nothing_is_loaded_from_elsewhere(client):
    text = await (await client.get("/")).text()
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', text)
    assert [url for url in loaded if "127.0.0.1" not in url] == []


async def test_behind_a_tls_proxy_the_page_names_its_https_root(client):
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "talk.example"}
    config = await (await client.get("/config", headers=headers)).json()
    assert config["root"] == "https://talk.example"


async def test_assets_come_whole_and_with_an_etag(client):
    text = await (await client.get("/")).text()
    asset = re.search(r'src="\.?(/?assets/[^"]+\.js)"', text)[1]
    async with client.get("/" + asset.lstrip("/")) as response:
        assert response.status == 200
        assert len(await response.read()) > 1000
        assert response.headers["ETag"]


async def test_a_head_request_to_gradio_does_not_spoil_the_connection(client):
    async with client.head("/config") as response:
        assert await response.read() == b""
    async with client.get("/config") as response:
        assert response.status == 200
        assert "components" in await response.json()


async def test_scripts_are_asked_for_each_time_and_are_javascript(client):
    for file in STATIC.glob("*.js"):
        async with client.get(f"/pp/{file.name}") as response:
            assert response.status == 200
            assert "javascript" in response.headers["Content-Type"]
            assert response.headers["Cache-Control"] == "no-cache"
            headers = {"If-None-Match": response.headers["ETag"]}
        async with client.get(f"/pp/{file.name}", headers=headers) as again:
            assert again.status == 304
            assert again.headers["Cache-Control"] == "no-cache"


async def test_no_file_outside_the_scripts_is_served(client):
    for path in ("/pp/../ui.py", "/pp/%2e%2e/ui.py", "/pp/"):
        async with client.get(path) as response:
            assert "gradio as gr" not in await response.text()


async def test_the_pages_own_requests_work_at_the_same_time(client):
    paths = ["/", "/config", "/theme.css", "/pp/main.js"] * 5
    statuses = await asyncio.gather(*(status_of(client, path) for path in paths))
    assert set(statuses) == {200}


async def status_of(client, path):
    async with client.get(path) as response:
        await response.read()
        return response.status


# -- the whole application -------------------------------------------------------------------------


@pytest.fixture
async def whole():
    engine = warm(Service(lambda _progress: EmbeddedBackend(2)))
    client = TestClient(TestServer(build_app(engine, ServerConfig(token="open sesame"))))
    await client.start_server()
    yield client
    await client.close()
    engine.stop()


async def test_the_engines_routes_come_before_the_page(whole):
    async with whole.get("/healthz") as response:
        assert (await response.json())["status"] == "ok"
    async with whole.get("/voices") as response:
        assert await response.json() == list(VOICE_NAMES)


async def test_without_the_token_the_page_asks_for_it(whole):
    for path in ("/", "/config", "/gradio_api/info"):
        async with whole.get(path) as response:
            assert response.status == 401
            assert "Access token" in await response.text()
            assert response.headers["Cache-Control"] == "no-store"


async def test_the_token_in_the_address_becomes_a_cookie(whole):
    async with whole.get("/?token=open+sesame", allow_redirects=False) as response:
        assert response.status == 303
        assert response.headers["Location"] == "/"
        cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    async with whole.get("/") as response:
        assert response.status == 200
        assert "gradio_config" in await response.text()


async def test_over_https_the_cookie_is_secure(whole):
    headers = {"X-Forwarded-Proto": "https"}
    async with whole.get("/?token=open+sesame", headers=headers, allow_redirects=False) as response:
        assert "Secure" in response.headers["Set-Cookie"]


@pytest.mark.parametrize("token", ["wrong", "", "open sesam\u00e9"])
async def test_a_wrong_token_opens_nothing(whole, token):
    async with whole.get("/", params={"token": token}) as response:
        assert response.status == 401
        assert "Set-Cookie" not in response.headers
