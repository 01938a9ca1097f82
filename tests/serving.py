"""`/api` in a thread of its own on a free port, behind real sockets."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web

from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.dialogue.session import Limits
from engine.lookup.routing import Answers
from engine.runtime.backend import Backend
from engine.runtime.embedded import EmbeddedBackend
from engine.wire.server import add_routes
from tests.browser.serving import Served, warm


class ApiServer:
    """`with ApiServer(slots=2) as server:` … `server.url`, `server.engine`."""

    def __init__(
        self,
        slots: int = 4,
        limits: Limits | None = None,
        load: Callable[[Callable[[str, float], None]], Backend] | None = None,
        wait: bool = True,
        answers: Answers | None = None,
        **config: Any,
    ) -> None:
        load = load or (lambda _progress: EmbeddedBackend(slots))
        self.engine = Service(load, limits=limits, answers=answers)
        self.config = ServerConfig(**config)
        self._wait = wait
        self._served = Served(self._app)

    def _app(self) -> web.Application:
        app = web.Application()
        add_routes(app, self.engine, self.config)
        return app

    @property
    def url(self) -> str:
        return self._served.url.rstrip("/")

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the server's own event loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._served.loop).result(60)

    def __enter__(self) -> "ApiServer":
        self.engine.start()
        if self._wait:
            warm(self.engine)
        self._served.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._served.__exit__(*exc)
        self.engine.stop()
