"""The engine's routes: `/api`, `/api/chat`, `/healthz`, `/voices`, `/metrics`, and who may talk.

They are added to an aiohttp application, for which `listening` opens the port.
"""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, web, web_response

from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.errors import EndError, EngineError, UnauthorizedError
from engine.wire import openai, realtime
from engine.wire.limits import IDLE_SECONDS, Connection, Doors
from engine.wire.protocol import parse_query
from engine.wire.socket import ChatSocket, say_goodbye

logger = logging.getLogger(__name__)

# The Server header of every answer, also of those that aiohttp makes itself: it names no versions.
web_response.SERVER_SOFTWARE = "PersonaPlex"

SERVICE = web.AppKey("service", Service)
CONFIG = web.AppKey("config", ServerConfig)
DOORS = web.AppKey("doors", Doors)
READ_LIMIT_BYTES = 4 * 1024 * 1024  # above it aiohttp hangs up by itself; ours is 256 KiB
WRITE_LIMIT_BYTES = 16 * 1024  # 0.3 s of pcm16: an unread client is noticed, not buffered for


def add_routes(app: web.Application, service: Service, config: ServerConfig) -> None:
    app[SERVICE], app[CONFIG], app[DOORS] = service, config, Doors(config)
    app.middlewares.append(note_request)
    for path in ("/api", "/api/chat"):
        app.router.add_get(path, chat)
    app.router.add_get("/v1/realtime", chat_realtime)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/voices", voices)
    app.router.add_get("/metrics", metrics)


@web.middleware
async def note_request(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Tell a connection when its request has begun and is answered; let it wait for its turn."""
    connection = find_connection(request)
    refusal = connection.begin(request)
    try:
        await connection.doors.take_turn()
        return await handler(request) if refusal is None else refusal
    finally:
        connection.end()


def find_connection(request: web.BaseRequest) -> Connection:
    connection = request.protocol
    assert isinstance(connection, Connection), "serve the application by `listening`"
    return connection


@contextlib.asynccontextmanager
async def listening(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve an application on a port (0: any that is free) while the block runs; the port.

    Raises OSError if the port cannot be had.
    """
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=2)
    await runner.setup()
    loop, doors = asyncio.get_running_loop(), app[DOORS]

    def connect() -> Connection:
        return Connection(
            doors, runner.server, loop=loop, access_log=None, keepalive_timeout=IDLE_SECONDS
        )

    try:
        server = await loop.create_server(connect, host, port, backlog=128)
        doors.pulse.beat()
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            doors.pulse.stop()
    finally:
        await runner.cleanup()


async def open_socket(
    request: web.Request, protocols: tuple[str, ...] = ()
) -> tuple[web.WebSocketResponse | None, web.StreamResponse]:
    """(the socket, itself once more), or (None, the answer of HTTP where there is none)."""
    ws = web.WebSocketResponse(
        compress=False,
        autoping=False,  # it answers pings without end, and no other conversation has a turn
        max_msg_size=READ_LIMIT_BYTES,
        writer_limit=WRITE_LIMIT_BYTES,
        protocols=protocols,
    )
    if request.method != "GET" or not ws.can_prepare(request):  # a HEAD may ask for one, too
        text = f"this is a WebSocket: connect with wss://HOST{request.path}\n"
        return None, web.Response(status=426, text=text)
    connection = find_connection(request)
    connection.limit_send_buffer()
    connection.probe_when_idle()
    try:
        await ws.prepare(request)
    except ConnectionError:
        return None, web.Response(status=400)  # nobody reads it: its client has left
    return ws, ws


async def chat(request: web.Request) -> web.StreamResponse:
    """One conversation. Every fault is told on the socket, because proxies hide HTTP errors."""
    ws, answer = await open_socket(request)
    if ws is None:
        return answer
    try:
        authorize(request)
        query, service = parse_query(request.query), request.app[SERVICE]
        service.check_open()
        before = await service.ghosts.find(query.resume) if query.resume else None
        await ChatSocket(ws, service, query, find_connection(request), before).run()
    except EngineError as error:
        await end_chat(ws, error, say_goodbye)
    finally:
        await hang_up(ws, request)
    return ws


async def chat_realtime(request: web.Request) -> web.StreamResponse:
    """One conversation in OpenAI's Realtime protocol (docs/realtime.md)."""
    ws, answer = await open_socket(request, (openai.SUBPROTOCOL,))
    if ws is None:
        return answer
    try:
        authorize(request)
        service = request.app[SERVICE]
        service.check_open()
        beta = openai.is_beta(request.headers)
        await realtime.RealtimeSocket(ws, service, find_connection(request), beta).run()
    except EngineError as error:
        await end_chat(ws, error, realtime.say_goodbye)
    finally:
        await hang_up(ws, request)
    return ws


async def end_chat(
    ws: web.WebSocketResponse,
    error: EngineError,
    say: Callable[[web.WebSocketResponse, EndError], Awaitable[None]],
) -> None:
    """Log why a conversation ended, and tell its client. Raises what is our own fault."""
    if not isinstance(error, EndError):
        raise error
    logger.info("conversation ended: %s", error.prefix.rstrip(": "))
    await say(ws, error)


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
    if not request.app[CONFIG].open_metrics:
        try:
            authorize(request)
        except UnauthorizedError as error:
            may_try = request.app[DOORS].guesses.may_take(find_address(request))
            return web.Response(status=401 if may_try else 429, text=f"{error}\n")
    await request.app[DOORS].take_report()
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return web.Response(body=request.app[SERVICE].metrics.text(), headers=headers)


# -- access: one shared token, in the query, as a bearer, or in the page's cookie ------------------

COOKIE = "personaplex_token"


def is_same_token(given: str, token: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


def find_address(request: web.Request) -> str:
    """Whom wrong tokens are counted for."""
    return find_connection(request).address or ""


def is_right_token(request: web.Request, given: str) -> bool:
    """Look at one given token. Raises UnauthorizedError while its address must wait.

    Then the right one is refused, too: or who guesses would learn which it is.
    """
    guesses, address = request.app[DOORS].guesses, find_address(request)
    if not guesses.may_take(address):
        raise UnauthorizedError("too many wrong tokens came from your address; wait a minute")
    if is_same_token(given, request.app[CONFIG].token):
        return True
    guesses.take(address)
    return False


def authorize(request: web.Request) -> None:
    """Raises UnauthorizedError unless the server is open or the token is right.

    Browsers send a cookie along by themselves, so it counts only if the Origin is ours.
    """
    config = request.app[CONFIG]
    if not config.token:
        return
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        bearer = ""
    key = openai.find_key(request.headers)
    for given in (request.query.get("token", ""), bearer.strip(), key):
        if given and is_right_token(request, given):
            return
    cookie = request.cookies.get(COOKIE, "")
    if not cookie or not is_right_token(request, cookie):
        raise UnauthorizedError("the token is wrong or missing; connect with ?token=…")
    if not is_ours(request):
        raise UnauthorizedError("this page's origin may not use the cookie; connect with token=")


def is_ours(request: web.Request) -> bool:
    """Whether our own page or a named origin's sent this, as a browser says in Origin."""
    origin = request.headers.get("Origin", "")  # others than browsers have the token itself
    hosts = {request.host, request.headers.get("X-Forwarded-Host", request.host)}
    try:
        host = urlsplit(origin).netloc
    except ValueError:
        return False
    named = [allowed for allowed in request.app[CONFIG].allowed_origins if allowed != "*"]
    return (bool(host) and host in hosts) or origin in named


def make_cors_headers(request: web.Request) -> dict[str, str]:
    """Headers that let pages of the allowed origins read an answer."""
    origin, allowed = request.headers.get("Origin", ""), request.app[CONFIG].allowed_origins
    if "*" in allowed:
        return {"Access-Control-Allow-Origin": "*"}
    if origin in allowed:
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
    return {}
