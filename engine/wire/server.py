"""The HTTP side of the engine: `/api`, `/api/chat`, `/healthz`, `/voices`, `/metrics`.

Adds routes to an aiohttp application; what runs the application is `engine.serve` or `demo.app`.
"""

import logging
from collections.abc import Awaitable, Callable

from aiohttp import WSCloseCode, web

from engine.config import ServerConfig
from engine.dialogue.engine import Engine
from engine.errors import EndError, EngineError
from engine.wire.auth import authorize, cors
from engine.wire.conversation import Conversation, say_goodbye
from engine.wire.protocol import PATHS
from engine.wire.query import parse

logger = logging.getLogger(__name__)

ENGINE = web.AppKey("engine", Engine)
CONFIG = web.AppKey("config", ServerConfig)
READ_LIMIT_BYTES = 4 * 1024 * 1024  # above it aiohttp hangs up by itself; ours is 256 KiB
WRITE_LIMIT_BYTES = 16 * 1024  # 0.3 s of pcm16: an unread client is noticed, not buffered for
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_routes(app: web.Application, engine: Engine, config: ServerConfig) -> None:
    """Put the engine's routes on an application."""
    app[ENGINE], app[CONFIG] = engine, config
    for path in PATHS:
        app.router.add_get(path, chat)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/voices", voices)
    app.router.add_get("/metrics", metrics)


async def chat(request: web.Request) -> web.StreamResponse:
    """One conversation. Whatever is wrong is said on the socket: proxies hide HTTP errors."""
    ws = web.WebSocketResponse(
        compress=False, max_msg_size=READ_LIMIT_BYTES, writer_limit=WRITE_LIMIT_BYTES
    )
    if not ws.can_prepare(request):
        return web.Response(status=426, text="this is a WebSocket: connect with wss://HOST/api\n")
    await ws.prepare(request)
    config = request.app[CONFIG]
    try:
        authorize(request, config.token, config.allowed_origins)
        await Conversation(ws, request.app[ENGINE], parse(request.query)).run()
    except EngineError as error:
        if not isinstance(error, EndError):
            raise
        logger.info("conversation ended: %s", error.prefix.rstrip(": "))
        await say_goodbye(ws, error)
    finally:
        await hang_up(ws, request)
    return ws


async def hang_up(ws: web.WebSocketResponse, request: web.Request) -> None:
    """Close what is still open; a client that reads nothing is cut off."""
    if not ws.closed and request.transport is not None:
        if request.transport.get_write_buffer_size() == 0:
            await ws.close(code=WSCloseCode.OK)
        else:
            request.transport.abort()


def readable_from_elsewhere(
    handler: Callable[[web.Request], Awaitable[web.Response]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Let pages of the allowed origins read this answer."""

    async def answer(request: web.Request) -> web.Response:
        response = await handler(request)
        response.headers.update(cors(request, request.app[CONFIG].allowed_origins))
        return response

    return answer


@readable_from_elsewhere
async def healthz(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    if (waking := engine.waking) is not None:
        body = {"status": "waking", "phase": waking.phase, "percent": waking.percent}
        return web.json_response(body, status=503)
    status = "closing" if engine.closing else "ok"
    body = {"status": status, "model": engine.model, "slots": engine.slots, "free": engine.free}
    body["limited_by"] = engine.limited_by
    return web.json_response(body, status=503 if engine.closing else 200)


@readable_from_elsewhere
async def voices(request: web.Request) -> web.Response:
    return web.json_response(list(request.app[ENGINE].voices))


async def metrics(request: web.Request) -> web.Response:
    body = request.app[ENGINE].metrics.text()
    return web.Response(body=body, headers={"Content-Type": METRICS_TYPE})
