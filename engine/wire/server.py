"""The engine's routes: `/api`, `/api/chat`, `/healthz`, `/voices`, `/metrics`, and who may talk.

They are added to an aiohttp application, which `commands.serve` or `demo.app` runs.
"""

import hmac
import logging
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, web, web_response

from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.errors import EndError, EngineError, UnauthorizedError
from engine.wire.protocol import parse_query
from engine.wire.socket import ChatSocket, say_goodbye

logger = logging.getLogger(__name__)

# The Server header of every answer, also of those that aiohttp makes itself: it names no versions.
web_response.SERVER_SOFTWARE = "PersonaPlex"

SERVICE = web.AppKey("service", Service)
CONFIG = web.AppKey("config", ServerConfig)
READ_LIMIT_BYTES = 4 * 1024 * 1024  # above it aiohttp hangs up by itself; ours is 256 KiB
WRITE_LIMIT_BYTES = 16 * 1024  # 0.3 s of pcm16: an unread client is noticed, not buffered for


def add_routes(app: web.Application, service: Service, config: ServerConfig) -> None:
    app[SERVICE], app[CONFIG] = service, config
    for path in ("/api", "/api/chat"):
        app.router.add_get(path, chat)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/voices", voices)
    app.router.add_get("/metrics", metrics)


async def chat(request: web.Request) -> web.StreamResponse:
    """One conversation. Every fault is told on the socket, because proxies hide HTTP errors."""
    ws = web.WebSocketResponse(
        compress=False, max_msg_size=READ_LIMIT_BYTES, writer_limit=WRITE_LIMIT_BYTES
    )
    if not ws.can_prepare(request):
        return web.Response(status=426, text="this is a WebSocket: connect with wss://HOST/api\n")
    await ws.prepare(request)
    try:
        authorize(request)
        await ChatSocket(ws, request.app[SERVICE], parse_query(request.query)).run()
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


async def healthz(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    if service.stuck:
        body = {"status": "stuck", "reason": service.stuck}
        return web.json_response(body, status=503, headers=make_cors_headers(request))
    if (waking := service.waking) is not None:
        body = {"status": "waking", "phase": waking.phase, "percent": waking.percent}
        return web.json_response(body, status=503, headers=make_cors_headers(request))
    body = {
        "status": "closing" if service.closing else "ok",
        "model": service.model,
        "slots": service.slots,
        "free": service.free,
        "limited_by": service.limited_by,
        "hears": service.hears,
    }
    status = 503 if service.closing else 200
    return web.json_response(body, status=status, headers=make_cors_headers(request))


async def voices(request: web.Request) -> web.Response:
    names = list(request.app[SERVICE].voices)
    return web.json_response(names, headers=make_cors_headers(request))


async def metrics(request: web.Request) -> web.Response:
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return web.Response(body=request.app[SERVICE].metrics.text(), headers=headers)


# -- access: one shared token, in the query, as a bearer, or in the page's cookie ------------------

COOKIE = "personaplex_token"


def is_same_token(given: str, token: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


def authorize(request: web.Request) -> None:
    """Raises UnauthorizedError unless the server is open or the token is right.

    Browsers send a cookie along by themselves, so it counts only if the Origin is ours.
    """
    config = request.app[CONFIG]
    if not config.token:
        return
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    for given in (request.query.get("token", ""), bearer):
        if given and is_same_token(given, config.token):
            return
    cookie = request.cookies.get(COOKIE, "")
    if not cookie or not is_same_token(cookie, config.token):
        raise UnauthorizedError("the token is wrong or missing; connect with ?token=…")
    origin = request.headers.get("Origin")  # browsers always send it; others have the token itself
    hosts = {request.host, request.headers.get("X-Forwarded-Host", request.host)}
    ours = origin is not None and urlsplit(origin).netloc in hosts
    if not ours and origin not in config.allowed_origins:
        raise UnauthorizedError("this page's origin may not use the cookie; connect with token=")


def make_cors_headers(request: web.Request) -> dict[str, str]:
    """Headers that let pages of the allowed origins read an answer."""
    origin, allowed = request.headers.get("Origin", ""), request.app[CONFIG].allowed_origins
    if "*" in allowed:
        return {"Access-Control-Allow-Origin": "*"}
    if origin in allowed:
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
    return {}
