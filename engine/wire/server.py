"""The engine's routes: `/api`, `/api/chat`, `/healthz`, `/voices`, `/metrics`, and who may talk.

They are added to an aiohttp application, for which `listening` opens the port.
"""

import asyncio
import contextlib
import hmac
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web, web_response

from engine.config import ServerConfig, is_root_path
from engine.dialogue.service import Service
from engine.errors import (
    BadParameterError,
    EndError,
    ProtocolError,
    TooFastError,
    UnauthorizedError,
)
from engine.wire import openai
from engine.wire.limits import IDLE_SECONDS, Connection, Doors
from engine.wire.protocol import SOCKETS, Kind, decode, encode, parse_opening, parse_query
from engine.wire.realtime import RealtimeSocket
from engine.wire.socket import REST_SECONDS, ChatSocket, ClientLeftError, say_goodbye
from engine.wire.tls import CountedTls

logger = logging.getLogger(__name__)

# The Server header of every answer, also of those that aiohttp makes itself: it names no versions.
web_response.SERVER_SOFTWARE = "PersonaPlex"

SERVICE = web.AppKey("service", Service)
CONFIG = web.AppKey("config", ServerConfig)
DOORS = web.AppKey("doors", Doors)
READ_LIMIT_BYTES = 4 * 1024 * 1024  # above it aiohttp hangs up by itself; ours is 256 KiB
WRITE_LIMIT_BYTES = 16 * 1024  # 0.3 s of pcm16: an unread client is noticed, not buffered for
WARM_SECONDS = 1.2  # so long the public web client throws away what it hears
OPEN_SECONDS = 20.0  # for the first message, where the client says that it sends one


def add_routes(app: web.Application, service: Service, config: ServerConfig) -> None:
    """All of the engine's paths, and each below --root-path too: some proxies keep the prefix."""
    app[SERVICE], app[CONFIG], app[DOORS] = service, config, Doors(config)
    app.middlewares.append(note_request)
    answers = dict.fromkeys(SOCKETS, chat)
    answers[openai.PATH] = chat_realtime
    answers |= {"/healthz": healthz, "/voices": voices, "/metrics": metrics}
    for path, answer in answers.items():
        for root in {"", config.base_path}:
            app.router.add_get(root + path, answer)
            app.router.add_route("*", root + path, refuse_method, expect_handler=expect_nothing)


def find_root(request: web.Request) -> str:
    """Under which path browsers see this server: "" or such as /voice.

    A proxy says it in X-Forwarded-Prefix; else it is --root-path. A client that makes it up
    misleads only itself.
    """
    given = request.headers.get("X-Forwarded-Prefix", "").strip().rstrip("/")
    return given if is_root_path(given) else request.app[CONFIG].base_path


def find_path(request: web.Request) -> str:
    """The path that is asked for, below the root."""
    for root in (find_root(request), request.app[CONFIG].base_path):
        if root and (request.path + "/").startswith(root + "/"):
            return request.path[len(root) :] or "/"
    return request.path


@web.middleware
async def note_request(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Tell a connection when its request has begun and is answered; let it wait for its turn."""
    connection = find_connection(request)
    refusal = connection.begin(request)
    try:
        await connection.doors.take_turn()
        if refusal is not None:
            return refusal
        if wants_socket(request) and find_path(request) not in (*SOCKETS, openai.PATH):
            return refuse_socket(request)
        return await handler(request)
    finally:
        connection.end()


def find_connection(request: web.BaseRequest) -> Connection:
    connection = request.protocol
    assert isinstance(connection, Connection), "serve the application by `listening`"
    return connection


def wants_socket(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").strip().lower() == "websocket"


def refuse_socket(request: web.Request) -> web.Response:
    """A WebSocket is asked for where none is: say where it is, in a form that programs read."""
    ours = openai.PATH if "realtime" in request.path else SOCKETS[0]
    right = f"{find_root(request)}{ours}"
    known = f"{request.app[CONFIG].base_path}{ours}"  # the log repeats no header
    told = f"a WebSocket was asked for at a path that has none: clients connect to {known}"
    request.app[DOORS].log.note(told)
    told = {"error": f"there is no WebSocket at this path; connect to {right}", "socket": right}
    return web.json_response(told, status=404, headers=make_cors_headers(request))


async def refuse_method(request: web.Request) -> web.StreamResponse:
    """One of the paths above is asked for in another way: say in which."""
    is_socket = find_path(request) in (*SOCKETS, openai.PATH)
    how = "a WebSocket" if is_socket else "GET"
    text = f"405: {request.path} is no place for {request.method}; use {how}\n"
    response = web.Response(status=405, text=text, headers={"Allow": "GET, HEAD"})
    return await send_unread(request, response)


async def expect_nothing(_: web.Request) -> None:
    """A client that asks whether it may send a body (100-continue) is not told to go on."""


async def send_unread(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Answer without reading the request's body; where there is one, the line is cut."""
    if request.body_exists:
        await response.prepare(request)
        await response.write_eof()
        request.protocol.force_close()  # else aiohttp reads on for 10 s, for nothing
    return response


# Of the event loop, until who came in the last moment has a connection, which can be closed:
# asyncio forgets the socket of one that is accepted while its server closes.
ACCEPTING_TURNS = 5


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve an application on a port (0: any that is free) while the block runs; the port.

    `::` is both families. Raises OSError if the port cannot be had.
    """
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=2)
    await runner.setup()
    loop, doors = asyncio.get_running_loop(), app[DOORS]

    def connect() -> asyncio.BaseProtocol:
        connection = Connection(
            doors, runner.server, loop=loop, access_log=None, keepalive_timeout=IDLE_SECONDS
        )
        return CountedTls(connection, tls) if tls else connection

    try:
        if host == "::":  # asyncio would take IPv6 only
            both = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
            server = await loop.create_server(connect, sock=both, backlog=128)
        else:
            server = await loop.create_server(connect, host, port, backlog=128)
        doors.pulse.beat()
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            for door in server.sockets:
                loop.remove_reader(door.fileno())  # nobody else comes in
            for _ in range(ACCEPTING_TURNS):
                await asyncio.sleep(0)
            server.close()
            doors.pulse.stop()
    finally:
        await runner.cleanup()


class ApiSocket(web.WebSocketResponse):
    """A socket whose every end is told: a message that is too large, the client's own code."""

    connection: Connection
    most = "256 KiB"  # of one message

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True):
        """Close it. By itself aiohttp does so for messages over 4 MiB, and when the client has."""
        if self.close_code and not self.closed and code == WSCloseCode.OK:
            code = self.close_code if is_sendable(self.close_code) else code
        elif code == WSCloseCode.MESSAGE_TOO_BIG and not self.closed:
            with contextlib.suppress(ConnectionError):
                await self.tell(TooFastError(f"{TOO_LARGE}; send at most {self.most}"))
            await self.connection.read_out()
        return await super().close(code=code, message=message, drain=drain)

    async def tell(self, error: EndError) -> None:
        await self.send_bytes(encode(Kind.ERROR, str(error).encode()))


class OpenAISocket(ApiSocket):
    """The same, in the form of the other protocol."""

    most = "2 MiB"

    async def tell(self, error: EndError) -> None:
        await self.send_str(openai.encode_error(error))


TOO_LARGE = f"a message has more than {READ_LIMIT_BYTES >> 20} MiB"


def is_sendable(code: int) -> bool:
    """Whether a close frame may carry a code (RFC 6455, 7.4); others say that there was none."""
    return 1000 <= code < 5000 and code not in (1004, 1005, 1006, 1015)


async def open_socket(
    request: web.Request, kind: type[ApiSocket] = ApiSocket
) -> tuple[ApiSocket | None, web.StreamResponse]:
    """(the socket, itself once more), or (None, the answer of HTTP where there is none).

    A client that offers sub-protocols hangs up without one: it gets the first, or OpenAI's.
    """
    names = openai.list_protocols(request.headers)
    offered = openai.SUBPROTOCOL if openai.SUBPROTOCOL in names else names[0]
    ws = kind(
        compress=False,
        autoping=False,  # it answers pings without end, and no other conversation has a turn
        max_msg_size=READ_LIMIT_BYTES,
        protocols=(offered,) if offered else (),  # a client that offers some hangs up without one
        writer_limit=WRITE_LIMIT_BYTES,
    )
    if request.method != "GET" or not ws.can_prepare(request):  # a HEAD may ask for one, too
        text = f"this is a WebSocket: connect with wss://HOST{request.path}\n"
        return None, web.Response(status=426, text=text)
    connection = find_connection(request)
    connection.limit_send_buffer()
    ws.connection = connection
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
    async with telling_its_end(request, ws):
        authorize(request)
        asked = dict(request.query)
        if asked.get("open") == "1":
            asked |= await read_opening(ws)
        query, service = parse_query(asked), request.app[SERVICE]
        service.check_open()
        before = await service.ghosts.find(query.resume) if query.resume else None
        if find_path(request) == "/api/chat" and not (query.events or before) and query.warm:
            query = replace(query, start_at=time.monotonic() + WARM_SECONDS)
        await ChatSocket(ws, service, query, ws.connection, before).run()
    return ws


async def chat_realtime(request: web.Request) -> web.StreamResponse:
    """One conversation in OpenAI's Realtime protocol (docs/realtime.md)."""
    ws, answer = await open_socket(request, OpenAISocket)
    if ws is None:
        return answer
    async with telling_its_end(request, ws):
        authorize(request, "API key", "give this server's token as the key")
        service = request.app[SERVICE]
        service.check_open()
        beta = openai.is_beta(request.headers)
        await RealtimeSocket(ws, service, ws.connection, beta).run()
    return ws


@contextlib.asynccontextmanager
async def telling_its_end(request: web.Request, ws: ApiSocket) -> AsyncIterator[None]:
    """Tell a client why its conversation ends, then close the socket."""
    try:
        yield
    except EndError as error:
        note_end(request, error)
        await say_goodbye(ws, error)
    except ClientLeftError:
        pass  # before it said what it wants
    finally:
        await hang_up(ws, request)


async def read_opening(ws: web.WebSocketResponse) -> dict[str, str]:
    """What a client asks for in its first message. Raises BadParameterError."""
    sent = '{"type":"open", …} as the first message (kind 0x04), because of open=1'
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            while (message := await ws.receive()).type in (WSMsgType.PING, WSMsgType.PONG):
                if message.type is WSMsgType.PING:
                    await ws.pong(message.data)
                await asyncio.sleep(REST_SECONDS)  # thousands may wait to be answered
    except TimeoutError:
        raise BadParameterError(
            f"no message came in {OPEN_SECONDS:.0f} s; send {sent}", "open: no message"
        ) from None
    if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
        raise ClientLeftError
    try:
        kind, payload = decode(message.data) if message.type is WSMsgType.BINARY else (None, b"")
    except ProtocolError:
        kind, payload = None, b""
    if kind is not Kind.METADATA:
        raise BadParameterError(f"another message came first; send {sent}", "open: not first")
    return parse_opening(payload)


def note_end(request: web.Request, error: EndError) -> None:
    """Log why a conversation ends: its client may show nothing."""
    reason = error.prefix.rstrip(": ") + (f" ({error.told})" if error.told else "")
    peer = describe_peer(request.headers.get("User-Agent", ""))
    line = f"conversation ended: {reason}, of {peer}"
    request.app[DOORS].log.note(line, find_asker(request), logging.INFO)


PEERS = (  # how a User-Agent begins, and whose it is
    ("Mozilla/", "a browser"),
    ("Python/", "a Python client"),
    ("python-", "a Python client"),
    ("node", "a Node client"),
    ("undici", "a Node client"),
    ("Go-http-client/", "a Go client"),
    ("okhttp/", "an Android client"),
    ("Dart/", "a Dart client"),
    ("curl/", "curl"),
)


def describe_peer(agent: str) -> str:
    """What kind of program connects; nothing of what it wrote itself."""
    for begin, kind in PEERS:
        if agent.startswith(begin):
            return kind
    return "another client" if agent else "a client without User-Agent"


async def hang_up(ws: web.WebSocketResponse, request: web.Request) -> None:
    """Close what is still open; a client that reads nothing is cut off."""
    if not ws.closed and request.transport is not None:
        if request.transport.get_write_buffer_size() == 0:
            await ws.close(code=WSCloseCode.OK)
        else:
            request.transport.abort()


async def healthz(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    if service.failed or service.stuck:
        status = "failed" if service.failed else "stuck"
        body = {"status": status, "reason": service.failed or service.stuck}
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
            may_try = request.app[DOORS].guesses.may_take(find_asker(request))
            return web.Response(status=401 if may_try else 429, text=f"{error}\n")
    await request.app[DOORS].take_report()
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    body = await asyncio.to_thread(request.app[SERVICE].metrics.text)
    return web.Response(body=body, headers=headers)


# -- access: one shared token, in the query, as a bearer, or in the page's cookie ------------------

COOKIE = "personaplex_token"


def is_same_token(given: str, token: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


def find_asker(request: web.Request) -> str:
    """The address for which wrong tokens are counted."""
    return find_connection(request).address or ""


def is_right_token(request: web.Request, given: str, name: str = "token") -> bool:
    """Look at one given token. Raises UnauthorizedError while its address must wait.

    Meanwhile the right one is refused, too: else a guesser would learn which it is.
    """
    guesses, address = request.app[DOORS].guesses, find_asker(request)
    if not guesses.may_take(address):
        raise UnauthorizedError(
            f"too many wrong {name}s came from your address; wait a minute", "too many wrong tokens"
        )
    if is_same_token(given, request.app[CONFIG].token):
        return True
    guesses.take(address)
    return False


def authorize(
    request: web.Request, name: str = "token", fix: str = "connect with ?token=…"
) -> None:
    """Raises UnauthorizedError unless the server is open or the token is right.

    name, fix: what its client calls it, and what it should do.
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
        if given and is_right_token(request, given, name):
            return
    cookie = request.cookies.get(COOKIE, "")
    if not cookie or not is_right_token(request, cookie, name):
        given = cookie or bearer or request.query.get("token")
        told = "a wrong token" if given else "no token"
        raise UnauthorizedError(f"the {name} is wrong or missing; {fix}", told)
    if not is_ours(request):
        raise UnauthorizedError(
            f"this page's origin may not use the cookie; {fix}", "another origin"
        )


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
