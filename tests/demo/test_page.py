"""The page as it is served: what Gradio made of it, our scripts, the token. No browser needed."""

import asyncio
import json
import re
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web

from demo.app import PAGE, LatePage, build_app
from engine.config import VOICE_NAMES, ServerConfig
from engine.dialogue.persona import Persona, load_personas
from engine.dialogue.service import Service
from engine.errors import ConfigError
from engine.runtime.embedded import EmbeddedBackend
from engine.wire.limits import Doors
from engine.wire.server import CONFIG as SERVER_CONFIG
from engine.wire.server import DOORS, listening
from tests.browser.serving import rendered_once, warm
from tests.demo import lazy_page


@pytest.fixture(scope="module", autouse=True)
def _rendered_once():
    with rendered_once():
        yield


@pytest.fixture(scope="module")
def page():
    """The page, mounted; in a running loop, as outside of one Gradio leaves loops open."""

    async def build():
        made = lazy_page.build_page(lazy_page.page_config())
        lazy_page.mount(made)
        return made

    return asyncio.run(build())


class Visitor:
    """Requests to an application as it is really served."""

    @classmethod
    async def to(cls, app: web.Application) -> "Visitor":
        self = cls()
        self._stack = AsyncExitStack()
        port = await self._stack.enter_async_context(listening(app, "127.0.0.1", 0))
        jar = aiohttp.CookieJar(unsafe=True)  # an address in numbers may have cookies, too
        session = aiohttp.ClientSession(f"http://127.0.0.1:{port}", cookie_jar=jar)
        self.session = await self._stack.enter_async_context(session)
        self.get, self.request = self.session.get, self.session.request
        return self

    async def close(self) -> None:
        await self._stack.aclose()


async def client_of(**settings):
    app = web.Application()
    config = ServerConfig(**settings)
    app[SERVER_CONFIG], app[DOORS] = config, Doors(config)
    lazy_page.add_page(app, lazy_page.page_config(), config)
    return await Visitor.to(app)


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


def test_every_place_of_the_page_has_its_script(page):
    """What ui.py calls a place is what `#fill` in main.js knows."""
    source = (lazy_page.STATIC / "main.js").read_text()
    scripts = [
        str(block.js_on_load) for block in page.blocks.values() if hasattr(block, "js_on_load")
    ]
    places = [re.search(r"mount\('(\w+)'", script)[1] for script in scripts]
    assert {"bar", "stage", "cast", "conversation", "summary", "tools"} <= set(places)
    filled = re.findall(r'name === "(\w+)"', source)
    assert set(filled) <= set(places)


async def test_the_page_is_served_with_its_settings(client):
    config = read_config(await (await client.get("/")).text())
    panel = next(part for part in config["components"] if part["props"].get("elem_id") == "pp-bar")
    script = panel["props"]["js_on_load"]
    given = json.loads(re.search(r"element, (\{.*\})\)", script)[1])
    assert given["voices"][0] == VOICE_NAMES[0]
    assert len(given["personas"]) == len(load_personas())


def test_a_persona_cannot_break_out_of_the_page():
    nasty = Persona("x", "T", "</script><script>alert(1)</script>")
    text = lazy_page.PageConfig(VOICE_NAMES, (nasty,), VOICE_NAMES[0]).json()
    assert "<" not in text
    assert json.loads(text)["personas"][0]["text"] == nasty.text


async def test_nothing_is_loaded_from_elsewhere(client):
    text = await (await client.get("/")).text()
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', text)
    assert [url for url in loaded if "127.0.0.1" not in url] == []


async def test_the_page_finds_its_address_in_the_browser(client):
    """Whatever host, scheme and path a proxy in front has: the server need not know them."""
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "talk.example"}
    text = await (await client.get("/", headers=headers)).text()
    assert f'"root":{lazy_page.OWN_ADDRESS}' in text
    assert "page.invalid" not in text
    assert "talk.example" not in text


async def test_a_page_that_needs_a_file_of_gradios_does_not_start(monkeypatch):
    """Its address would hold the name of a host that does not exist."""
    import gradio as gr

    def build(config):
        with gr.Blocks() as made:
            gr.Image(str(lazy_page.FRONTEND / "favicon.png"))
        return made

    monkeypatch.setattr("demo.page.files.build_page", build)
    with pytest.raises(RuntimeError, match="put it into demo/page/static"):
        await lazy_page.PageFiles(lazy_page.page_config()).render()


async def test_assets_come_whole_and_with_an_etag(client):
    asset = next(lazy_page.FRONTEND.glob("assets/index-*.js")).name
    async with client.get(f"/assets/{asset}") as response:
        assert response.status == 200
        assert response.headers["Content-Encoding"] == "gzip"
        assert len(await response.read()) > 1000
        assert response.headers["ETag"]
        assert "immutable" in response.headers["Cache-Control"]  # the name holds a hash
    headers = {"Accept-Encoding": "identity"}
    async with client.get(f"/assets/{asset}", headers=headers) as plain:
        assert "Content-Encoding" not in plain.headers
        assert len(await plain.read()) > 1000


async def test_scripts_are_asked_for_each_time_and_are_javascript(client):
    for file in lazy_page.STATIC.glob("*.js"):
        async with client.get(f"/pp/{file.name}") as response:
            assert response.status == 200
            assert "javascript" in response.headers["Content-Type"]
            assert response.headers["Cache-Control"] == "no-cache"
            headers = {"If-None-Match": response.headers["ETag"]}
        async with client.get(f"/pp/{file.name}", headers=headers) as again:
            assert again.status == 304
            assert again.headers["Cache-Control"] == "no-cache"


def read_config(text):
    """Gradio's description of the page, out of the page."""
    script = re.search(r"window\.gradio_config = (\{.*?\});</script>", text, re.S)[1]
    return json.loads(script.replace(lazy_page.OWN_ADDRESS, '""'))


# -- the whole application -------------------------------------------------------------------------


@pytest.fixture
async def whole():
    engine = warm(Service(lambda _progress: EmbeddedBackend(2)))
    app = build_app(engine, ServerConfig(token="open sesame"))
    client = await Visitor.to(app)
    await app[PAGE].wait()
    yield client
    await client.close()
    engine.stop()


async def test_the_engines_routes_come_before_the_page(whole):
    async with whole.get("/healthz") as response:
        assert (await response.json())["status"] == "ok"
    async with whole.get("/voices") as response:
        assert await response.json() == list(VOICE_NAMES)


@pytest.mark.parametrize(("path", "status"), [("/", 401), ("/config", 404)])
async def test_without_the_token_the_page_asks_for_it(whole, path, status):
    for method in ("GET", "HEAD"):
        async with whole.request(method, path) as response:
            assert response.status == status
            assert "Content-Security-Policy" in response.headers
            if status == 401:
                assert response.headers["Cache-Control"] == "no-store"
    async with whole.get("/") as response:
        assert "Access token" in await response.text()


async def test_without_the_token_the_scripts_and_the_icon_are_open(whole):
    """They are no secret, and a frame that keeps no cookie needs them."""
    for path in ("/pp/main.js", "/theme.css", "/favicon.ico", "/healthz", "/voices"):
        async with whole.get(path) as response:
            assert response.status == 200


async def test_who_may_show_the_page_in_a_frame_is_a_setting():
    client = await client_of(frame_ancestors="'self' https://shop.example")
    async with client.get("/") as response:
        policy = response.headers["Content-Security-Policy"]
    assert policy.endswith("frame-ancestors 'self' https://shop.example")
    await client.close()


@pytest.mark.parametrize("value", ["'self'; script-src *", "a, b", "'self'\nSet-Cookie: x=1"])
def test_a_frame_setting_cannot_change_the_rest_of_the_policy(value):
    with pytest.raises(ConfigError, match="use addresses with blanks between"):
        ServerConfig(frame_ancestors=value)


async def test_the_engines_answers_have_the_headers_too_and_name_no_versions(whole):
    for path in ("/healthz", "/voices", "/metrics", "/api"):
        async with whole.get(path) as response:
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Server"] == "PersonaPlex"


async def test_the_token_in_the_address_opens_the_page_and_becomes_a_cookie(whole):
    async with whole.get("/?token=open+sesame") as response:
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-store"
        assert "gradio_config" in await response.text()
        cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Path=/;" in f"{cookie};"
    assert "Secure" not in cookie
    async with whole.get("/") as response:  # by the cookie
        assert response.status == 200
        assert "Set-Cookie" not in response.headers


async def test_over_https_the_cookie_is_secure(whole):
    headers = {"X-Forwarded-Proto": "https"}
    async with whole.get("/?token=open+sesame", headers=headers) as response:
        assert "Secure" in response.headers["Set-Cookie"]
        assert "SameSite=Lax" in response.headers["Set-Cookie"]  # no other site may show it


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_where_other_sites_may_show_the_page_the_cookie_goes_along(scheme):
    client = await client_of(token="open", frame_ancestors="'self' https://shop.example")
    async with client.get("/?token=open", headers={"X-Forwarded-Proto": scheme}) as response:
        cookie = response.headers["Set-Cookie"]
    framed = ("SameSite=None" in cookie, "Secure" in cookie, "Partitioned" in cookie)
    assert framed == ((True,) * 3 if scheme == "https" else (False,) * 3)
    await client.close()


@pytest.mark.parametrize(
    ("told", "path"),
    [("/talk", "/talk/"), ("/a/b-c/", "/a/b-c/"), ("//evil", "/"), ("/x; Path=/", "/"), ("", "/")],
)
async def test_the_cookie_keeps_to_the_path_that_a_proxy_tells(told, path):
    client = await client_of(token="open")
    async with client.get("/?token=open", headers={"X-Forwarded-Prefix": told}) as response:
        assert re.findall(r"Path=([^;]*)", response.headers["Set-Cookie"]) == [path]
    await client.close()


async def test_under_a_path_too_who_comes_early_gets_a_page_that_loads_itself_again(monkeypatch):
    async def never(*_):
        pass

    monkeypatch.setattr(LatePage, "start", never)
    engine = warm(Service(lambda _progress: EmbeddedBackend(2)))
    client = await Visitor.to(build_app(engine, ServerConfig(root_path="/voice")))
    for path in ("/", "/voice/"):
        async with client.get(path) as response:
            assert (response.status, response.content_type) == (503, "text/html"), path
    await client.close()
    engine.stop()


async def test_a_proxy_may_leave_its_path_in_the_request():
    engine = warm(Service(lambda _progress: EmbeddedBackend(2)))
    config = ServerConfig(root_path="https://talk.example/voice", token="open")
    app = build_app(engine, config)
    client = await Visitor.to(app)
    await app[PAGE].wait()
    for path in ("/voice/healthz", "/healthz", "/voice/voices", "/voice/pp/icon.svg"):
        async with client.get(path) as response:
            assert response.status == 200, path
    async with client.get("/voice/?token=open") as response:
        assert "Path=/voice/" in response.headers["Set-Cookie"]
        assert 'og:image" content="https://talk.example/voice/pp/preview.png"' in (
            await response.text()
        )
    for asked in ("/voice", "/voice?token=open"):
        async with client.get(asked, allow_redirects=False) as response:
            assert response.headers["Location"] == asked.replace("/voice", "/voice/")
    async with client.get("/voice?token=open") as response:
        assert response.status == 200
    async with client.get("/voicemail/healthz") as response:
        assert response.status == 404
    await client.close()
    engine.stop()


@pytest.mark.parametrize("value", ["//evil.example", "/a b", "ftp://x/", '/"><script>', "/.."])
def test_a_root_path_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="use /talk or https://HOST/talk"):
        ServerConfig(root_path=value)


@pytest.mark.parametrize("token", ["wrong", "", "open sesam\u00e9"])
async def test_a_wrong_token_opens_nothing(whole, token):
    async with whole.get("/", params={"token": token}) as response:
        assert response.status == 401
        assert "Set-Cookie" not in response.headers
