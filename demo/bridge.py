"""Serves an ASGI application's plain HTTP from inside an aiohttp server, in its event loop.

It carries requests, responses and the lifespan. WebSockets stay aiohttp's own.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from aiohttp import ClientConnectionError, web
from starlette.requests import ClientDisconnect

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
AsgiApp = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ASGI = {"version": "3.0", "spec_version": "2.4"}  # 2.4: a lost client shows as OSError in send
LIFESPAN_SECONDS = 10  # for start-up, and again for shutdown
CHUNK_BYTES = 64 * 1024
BODILESS = (204, 304)  # these never carry a body, so they get no chunked encoding


class Bridge:
    """One ASGI application. `handle` is a catch-all route, `lifespan` a cleanup context."""

    def __init__(self, app: AsgiApp) -> None:
        self.app = app

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one HTTP request with the application's response."""
        exchange = Exchange(request)
        try:
            await self.app(build_scope(request), exchange.receive, exchange.send)
        except (ClientDisconnect, ClientGoneError):
            logger.debug("client left during %s %s", request.method, request.path)
        finally:
            exchange.over.set()
        return exchange.response or web.Response(status=500, text="no response")

    async def lifespan(self, _: web.Application) -> AsyncIterator[None]:
        """Start the application, serve, shut it down. Raises RuntimeError if it cannot start."""
        inbox: asyncio.Queue[Message] = asyncio.Queue()
        answers: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": ASGI, "state": {}}
        task = asyncio.create_task(self.app(scope, inbox.get, answers.put))

        async def ask(phase: str) -> None:
            await inbox.put({"type": f"lifespan.{phase}"})
            answer = asyncio.create_task(answers.get())
            done, _ = await asyncio.wait(
                {answer, task}, timeout=LIFESPAN_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if answer not in done:
                answer.cancel()
                cause = task.exception() if task.done() else None
                raise RuntimeError(f"the page's {phase} gave no answer") from cause
            if answer.result()["type"] != f"lifespan.{phase}.complete":
                why = answer.result().get("message", "")
                raise RuntimeError(f"the page's {phase} failed: {why}")

        try:
            await ask("startup")
            yield
            await ask("shutdown")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class ClientGoneError(OSError):
    """The client left while its response was being written (what Starlette expects of `send`)."""


class Exchange:
    """One request and its response, seen from the ASGI application."""

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.response: web.StreamResponse | None = None
        self.over = asyncio.Event()  # the response ended, or the client left
        self._body_read = False

    async def receive(self) -> Message:
        """The next piece of the body. After the last one it waits until the exchange is over."""
        if self._body_read:
            await self.over.wait()  # aiohttp-asgi answers at once, again and again, and hangs
            return {"type": "http.disconnect"}
        try:
            piece = await self.request.content.read(CHUNK_BYTES)
        except ClientConnectionError:
            self.over.set()
            return {"type": "http.disconnect"}
        self._body_read = self.request.content.at_eof()
        return {"type": "http.request", "body": piece, "more_body": not self._body_read}

    async def send(self, message: Message) -> None:
        """Pass one message of the response on. Raises ClientGoneError (an OSError)."""
        try:
            if message["type"] == "http.response.start":
                await self._start(message)
            elif message["type"] == "http.response.body":
                assert self.response is not None, "body before start"
                # Gradio answers HEAD with a body, which would corrupt the next response.
                if message.get("body") and self.request.method != "HEAD":
                    await self.response.write(message["body"])
                if not message.get("more_body", False):
                    await self.response.write_eof()
                    self.over.set()
        except (ConnectionError, ClientConnectionError) as error:
            self.over.set()
            raise ClientGoneError("the client left") from error

    async def _start(self, message: Message) -> None:
        self.response = web.StreamResponse(status=message["status"])
        for name, value in message.get("headers", ()):
            self.response.headers.add(name.decode("latin-1"), value.decode("latin-1"))  # cookies!
        sized = "Content-Length" in self.response.headers
        if not sized and message["status"] not in BODILESS and self.request.method != "HEAD":
            self.response.enable_chunked_encoding()
        await self.response.prepare(self.request)


def build_scope(request: web.Request) -> Message:
    """The ASGI scope of one request. A proxy in front is believed about https."""
    raw_path, _, query = request.raw_path.partition("?")
    peer = request.transport.get_extra_info("peername") if request.transport else None
    here = request.transport.get_extra_info("sockname") if request.transport else None
    return {
        "type": "http",
        "asgi": ASGI,
        "http_version": "1.1",
        "method": request.method,
        "scheme": find_scheme(request),
        "path": request.path,
        "raw_path": raw_path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        "client": tuple(peer[:2]) if peer else None,
        "server": tuple(here[:2]) if here else None,
    }


def find_scheme(request: web.Request) -> str:
    """`https` if the browser came by https, even if a proxy in front took it off."""
    if "MODAL_TASK_ID" in os.environ:  # always behind https there, and not known to say so
        return "https"
    forwarded = request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip().lower()
    return forwarded if forwarded in ("http", "https") else request.scheme
