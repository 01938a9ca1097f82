"""The page's door: who guesses tokens must wait, like on the socket."""

import aiohttp
from aiohttp import web

from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.runtime.embedded import EmbeddedBackend
from engine.wire.server import COOKIE, add_routes, listening
from tests.demo import lazy_page

TOKEN = "open-sesame"


async def page(request):
    return lazy_page.ask_for_token(request) or web.Response(text="the page")


async def test_the_eleventh_wrong_token_of_a_minute_is_429_and_so_is_the_right_one():
    app = web.Application()
    service = Service(lambda _progress: EmbeddedBackend(1))
    add_routes(app, service, ServerConfig(token=TOKEN))
    app.router.add_get("/", page)
    async with (
        listening(app, "127.0.0.1", 0) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        for n in range(10):
            query, cookies = ({"token": f"guess{n}"}, {}) if n % 2 else ({}, {COOKIE: f"guess{n}"})
            async with client.get("/", params=query, cookies=cookies) as answer:
                assert answer.status == 401
        for token in ("another guess", TOKEN):
            async with client.get("/", params={"token": token}, allow_redirects=False) as answer:
                assert answer.status == 429
                assert "Wait a minute" in await answer.text()
                assert "Set-Cookie" not in answer.headers
        async with client.get("/") as answer:  # no guess: the form, and no word of waiting
            assert answer.status == 401
