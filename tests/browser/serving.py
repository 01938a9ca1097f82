"""An aiohttp application in a thread of its own, on a free port, for tests that drive a browser."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any
from unittest.mock import patch

from aiohttp import web

from demo.app import PAGE
from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.wire.limits import Doors
from engine.wire.server import DOORS, listening


def warm(engine: Service) -> Service:
    """The engine, loaded. On a machine of whatever speed no tick of it counts as overload."""
    engine.start()
    engine.wait(60)
    # A patch, because it fails where the name has changed and nobody would be asked any more.
    patch.object(engine.scheduler.overload, "add_tick", lambda _seconds: None).start()
    return engine


def rendered_once() -> AbstractContextManager[object]:
    """Within it Gradio renders the same page once, for all servers: that takes it 0.4 s."""
    from demo.page import files  # here, because it loads Gradio: two seconds, and few need it
    from demo.page.files import PageFiles

    render, kept = PageFiles.render, {}

    async def render_or_take(self: Any) -> None:
        key = (self._config, self._address, files.build_page)
        if key not in kept:
            await render(self)
            kept[key] = (self._files, self.script_hashes)
        self._files, self.script_hashes = kept[key]

    return patch.object(PageFiles, "render", render_or_take)


class Served:
    """`with Served(make_app) as served:` … `served.url`. The application is made in the thread."""

    def __init__(self, make_app: Callable[[], web.Application], port: int = 0) -> None:
        self._make_app = make_app
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.port = port  # 0: any that is free

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._ready.wait(60), "the server did not start"
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = self._make_app()
        if DOORS not in app:  # a page without our own routes, before a scripted socket
            app[DOORS] = Doors(ServerConfig())
        async with listening(app, "127.0.0.1", self.port) as self.port:
            if PAGE in app:
                await app[PAGE].wait()
            self._ready.set()
            await self._stop.wait()
