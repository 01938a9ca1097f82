"""The web application of port 8998: the engine's routes first, the page for all other paths.

Gradio takes seconds to load, so the page is made in a thread of its own while the port is open
already. Until it is there a small page of ours waits in its place and loads itself again.
"""

import asyncio
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.errors import describe_fault
from engine.weights.voices import choose_voice
from engine.wire.server import add_routes, expect_nothing, find_path, send_unread

if TYPE_CHECKING:
    from demo.page.routes import PageRoutes

logger = logging.getLogger(__name__)

NO_KEY = "Nothing can be looked up: this server has no key for it."
PAGE = web.AppKey("page", asyncio.Event)  # set when the page is there
WAITING = Path(__file__).with_name("waiting.html")
WAITING_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'",
}
BROKEN = "The page could not be made: the server's log says why. Programs can talk all the same.\n"


def build_app(service: Service, config: ServerConfig) -> web.Application:
    """`/api`, `/healthz` and the others natively, then the page."""
    app = web.Application()
    add_routes(app, service, config)
    page = LatePage(service, config)
    app[PAGE] = page.there
    app.on_startup.append(page.start)
    app.on_response_prepare.append(page.protect)
    app.router.add_route("*", "/{path:.*}", page.handle, expect_handler=expect_nothing)
    return app


class LatePage:
    """The page's routes, once Gradio is there. Belongs to one event loop."""

    def __init__(self, service: Service, config: ServerConfig) -> None:
        self._service, self._config = service, config
        self._waiting = WAITING.read_text(encoding="utf-8")
        self._routes: PageRoutes | None = None
        self._is_broken = False
        self.there = asyncio.Event()

    async def start(self, app: web.Application) -> None:
        loop = asyncio.get_running_loop()
        make = threading.Thread(target=self._make, args=(app, loop), name="page", daemon=True)
        loop.call_soon(make.start)

    def _make(self, app: web.Application, loop: asyncio.AbstractEventLoop) -> None:
        """Thread of its own: load Gradio and render the page."""
        try:
            routes = make_routes(self._service, self._config)
            asyncio.run(routes.start(app))
        except Exception as error:  # the thread's boundary: /api goes on without a page
            logger.error("the page could not be made: %s", describe_fault(error))
            self._is_broken = True  # a page that loads itself again would keep a GPU awake for good
            return
        self._routes = routes
        if not loop.is_closed():
            loop.call_soon_threadsafe(self.there.set)

    async def protect(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._routes:
            await self._routes.protect(request, response)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self._routes:
            return await self._routes.handle(request)
        if self._is_broken:
            response = web.Response(status=500, text=BROKEN, headers=WAITING_HEADERS)
        else:
            is_page = find_path(request) == "/"
            response = web.Response(
                status=503,
                text=self._waiting if is_page else "the page is not there yet\n",
                content_type="text/html" if is_page else "text/plain",
                headers=WAITING_HEADERS | {"Retry-After": "1"},
            )
        return await send_unread(request, response)


def make_routes(service: Service, config: ServerConfig) -> "PageRoutes":
    from demo.page.routes import PageRoutes  # Gradio, in seconds
    from demo.page.ui import PageConfig

    answers = service.answers
    page = PageConfig(
        voices=service.voices,
        personas=service.personas,
        voice=choose_voice(None, config.voice, service.voices),
        routing=answers.on if answers else None,
        why_not="" if answers and answers.answerer.has_key else NO_KEY,
    )
    return PageRoutes(page, config)
