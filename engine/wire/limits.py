"""Limits of connections and requests: how many, for how long, and how often one may guess a token.

They hold for each address; connections also for all together. `socket` limits messages.
"""

import asyncio
import ipaddress
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import web

from engine.config import ServerConfig
from engine.wire.socket import Bucket, FrameGuard, Pulse, count_unsent

logger = logging.getLogger(__name__)

GUESSES_PER_MINUTE = 10  # wrong tokens from one address
# Of one address. A page is 7 requests at once, and thirty people may sit behind one address.
REQUESTS_PER_SECOND = 100.0
REQUESTS_AT_ONCE = 4000.0
MOST_ADDRESSES = 10_000  # whose wrong tokens or requests are remembered
SEND_BUFFER_BYTES = 64 * 1024  # of the kernel, which doubles it
KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds; probes
REQUEST_SECONDS = 20.0  # from the first byte of a request to the last of its headers, or body
IDLE_SECONDS = 75.0  # a kept connection between two requests
READ_BYTES = 16 * 1024  # of one connection in one turn of the loop: 2700 messages at most
LOG_SECONDS = 60.0  # between two lines about the same thing
READ_OUT_SECONDS, READ_OUT_LOOKS = 0.2, 25  # between two looks whether more comes; how many
TURNS = 4  # requests that begin in one round of the loop
ADDRESS_BYTES = 64 * 1024  # of a request's line: 4000 characters of any script take 48 000
REPORT_SECONDS = 0.05  # between two answers of /metrics: one takes 5 ms


class AddressBuckets:
    """A bucket for each address; the least recently used ones are forgotten."""

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[str, Bucket] = {}  # the oldest first

    def may_take(self, address: str) -> bool:
        bucket = self._buckets.get(address)
        return bucket is None or bucket.level >= 1

    def take(self, address: str) -> None:
        bucket = self._buckets.pop(address, None)
        if bucket is None:
            bucket = Bucket(self._rate, self._burst, self._clock)
        self._buckets[address] = bucket
        bucket.take(1)
        if len(self._buckets) > MOST_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]


class MinuteLog:
    """One line a minute about each kind of thing that may happen thousands of times."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: Counter[tuple[str, str]] = Counter()
        self._logged_at: dict[tuple[str, str], float] = {}

    def note(self, what: str, of: str = "", level: int = logging.WARNING) -> None:
        """of: whom it is counted for; the line does not say it."""
        now, key = self._clock(), (what, of)
        self._counts[key] += 1
        if now - self._logged_at.get(key, float("-inf")) >= LOG_SECONDS:
            count = self._counts.pop(key)
            logger.log(level, "%s (%d times since the last such line)", what, count)
            self._logged_at.pop(key, None)
            self._logged_at[key] = now  # the oldest first
            if len(self._logged_at) > MOST_ADDRESSES:
                oldest = next(iter(self._logged_at))
                del self._logged_at[oldest]
                self._counts.pop(oldest, None)


# -- addresses -------------------------------------------------------------------------------------


Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


def parse_networks(texts: Iterable[str]) -> Networks:
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def find_address(peer: str, forwarded: str, proxies: Networks) -> str:
    """Who asks: the peer, or whom a proxy that we trust names last in X-Forwarded-For.

    What stands before the last entry came from the client itself, who may write anything.
    """
    own = _parse_address(peer)
    if own and any(own in network for network in proxies):
        named = _parse_address(forwarded.rpartition(",")[2].strip())
        own = named or own
    if own is None:
        return peer
    if own.version == 6:  # one customer has a whole network of them
        return str(ipaddress.ip_network((own, 64), strict=False))
    return str(own)


def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


# -- connections -----------------------------------------------------------------------------------


class Doors:
    """The connections of one server: how many from where, and who has guessed."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._proxies = parse_networks(config.trusted_proxies)
        self._open: Counter[str] = Counter()
        self.idle: dict[Connection, None] = {}  # between two requests, the longest first
        self.log = MinuteLog()
        self.guesses = AddressBuckets(GUESSES_PER_MINUTE / 60, GUESSES_PER_MINUTE)
        self.requests = AddressBuckets(REQUESTS_PER_SECOND, REQUESTS_AT_ONCE)
        self.pulse = Pulse()
        self._turns = asyncio.Semaphore(TURNS)
        self._reports = Bucket(1 / REPORT_SECONDS, 1)

    def find_address(self, peer: str, forwarded: str = "") -> str:
        return find_address(peer, forwarded, self._proxies)

    def enter(self, address: str) -> bool:
        """Count a connection, unless there are too many. An idle one makes room.

        A browser keeps six for each page: thirty people behind one address have 180.
        """
        most = self._config.max_sockets_per_address
        if self._open[address] >= most and not self._close_idle(address):
            self.log.note(f"a connection was refused: {most} are open from its address")
            return False
        most = self._config.max_sockets_total
        if self._open.total() >= most and not self._close_idle():
            self.log.note(f"a connection was refused: {most} are open")
            return False
        self._open[address] += 1
        return True

    def _close_idle(self, address: str | None = None) -> bool:
        """Close the connection that is idle for longest; False: none is. None: of any address."""
        ours = [one for one in self.idle if address in (None, one.address)]
        return any(one.close_idle() for one in ours)

    async def take_turn(self) -> None:
        """Wait until a request may begin: requests come in floods, and sockets do not wait."""
        async with self._turns:
            await asyncio.sleep(0)  # keep the turn until the sockets' next round

    async def take_report(self) -> None:
        """Wait until it is the turn of one more answer that takes long to make."""
        await asyncio.sleep(self._reports.take(1))

    def admit(self, address: str) -> bool:
        """Count a request, unless there were too many."""
        if not self.requests.may_take(address):
            self.log.note("a request was refused: too many came from its address")
            return False
        self.requests.take(address)
        return True

    def leave(self, address: str) -> None:
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


TOO_MANY = "too many connections are open; close some\n"
AGAIN_SOON, AGAIN_LATER = {"Retry-After": "1"}, {"Retry-After": "60"}
TOO_OFTEN = "too many requests came from your address; send fewer\n"
FULL = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 60\r\n"
    f"Connection: close\r\nContent-Length: {len(TOO_MANY)}\r\n\r\n{TOO_MANY}"
).encode()

TLS_HELLO = b"\x16\x03"  # how a client begins that wants https or wss
SPEAKS_TLS = "TLS came to a port without it: clients use http:// or ws://, or start with --tls self"


def refuse(status: int, text: str, **headers: str) -> web.Response:
    response = web.Response(status=status, text=text, headers=headers)
    response.force_close()
    return response


class Connection(web.RequestHandler):
    """One TCP connection: counted, read in small pieces, and closed when a request never ends."""

    def __init__(self, doors: Doors, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, max_line_size=ADDRESS_BYTES, **kwargs)
        self.doors = doors
        self.address: str | None = None  # under which it is counted
        self._forwarded = ""  # what X-Forwarded-For said when that was found
        self._refused = False
        self._peer = ""
        self._busy = False  # with a request that is read
        self._held = False
        self.guard: FrameGuard | None = None  # of a WebSocket
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self.address is None and not self.enter(transport):
            self._refused = True
            transport.write(FULL)
            transport.close()
            return
        if hasattr(transport, "max_size"):  # of one read, in asyncio's own transports
            transport.max_size = READ_BYTES
        super().connection_made(transport)
        self._start_timer("headers", lambda: True)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        vars(self).pop("data_received", None)  # it would keep this object until the next collection
        self.leave()
        if not self._refused:
            super().connection_lost(exc)

    def enter(self, transport: asyncio.BaseTransport) -> bool:
        """Count it under its peer's address; False: there are too many. With TLS it is counted
        before its handshake.
        """
        self._peer = (transport.get_extra_info("peername") or ("",))[0]
        address = self.doors.find_address(self._peer)
        self.address = address if self.doors.enter(address) else None
        return self.address is not None

    def leave(self) -> None:
        """Count it no more."""
        self.doors.idle.pop(self, None)
        if self.address is not None:
            self.doors.leave(self.address)
            self.address = None

    def close_idle(self) -> bool:
        """Close it, unless its client is still to get some of the last answer."""
        if self.transport is None or count_unsent(self.transport):
            return False
        self.leave()
        self.transport.abort()
        return True

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self.doors.idle.pop(self, None)
        if not self._busy and data.startswith(TLS_HELLO):
            self.doors.log.note(SPEAKS_TLS)
            self.transport.abort()
            return
        if not self._busy and self._timer is None:
            self._start_timer("headers", lambda: True)
        super().data_received(data)

    def begin(self, request: web.BaseRequest) -> web.Response | None:
        """A request's headers are there; the answer where it is one too many."""
        self._stop_timer()
        self.doors.idle.pop(self, None)
        self._busy = True
        if not request.content.is_eof():
            self._start_timer("body", lambda: not request.content.is_eof())
        forwarded = request.headers.get("X-Forwarded-For", "")
        if forwarded != self._forwarded:
            self._move(self.doors.find_address(self._peer, forwarded))
            self._forwarded = forwarded
        if self.address is None:
            return refuse(503, TOO_MANY, **AGAIN_LATER)
        if not self.doors.admit(self.address):
            return refuse(429, TOO_OFTEN, **AGAIN_SOON)
        return None

    def _move(self, address: str) -> None:
        """From now on it is counted under another address, if there is room."""
        if address == self.address:
            return
        if self.address is not None:
            self.doors.leave(self.address)
        self.address = address if self.doors.enter(address) else None

    def end(self) -> None:
        self._busy = False

    async def finish_response(self, *args: Any) -> tuple[web.StreamResponse, bool]:
        """Send an answer; then the connection is idle, unless it is a WebSocket's."""
        sent = await super().finish_response(*args)
        if self.address is not None and self.guard is None:
            self.doors.idle[self] = None
        return sent

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what cannot be read, and log its kind: aiohttp's line names the address."""
        if status >= 500 or request.writer.output_size:
            return super().handle_error(request, status, exc, message)
        if not self.doors.admit(self.address or ""):
            return refuse(429, TOO_OFTEN, **AGAIN_SOON)
        self.doors.log.note(f"a request could not be read ({type(exc).__name__})")
        return refuse(status, f"{status}: this request cannot be read\n")

    def hold(self) -> None:
        """Read nothing any more, whatever aiohttp thinks: the connection is about to end."""
        self._held = True
        self.pause_reading()

    async def read_out(self) -> None:
        """Wait until a client has sent what it was sending, or its system throws our reason away.

        Nobody keeps what it sends.
        """
        for _ in range(READ_OUT_LOOKS):
            before = self.guard.dropped
            await asyncio.sleep(READ_OUT_SECONDS)
            if self.guard.dropped == before:
                return

    def resume_reading(self, resume_parser: bool = True) -> None:
        if not self._held:
            super().resume_reading(resume_parser)

    def limit_send_buffer(self) -> None:
        """Keep what a client does not read where it can be counted, and little of it."""
        sock = self.transport and self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    @property
    def said_goodbye(self) -> bool:
        """Whether its client has closed its WebSocket, or broken its rules."""
        return self.guard is not None and self.guard.said_goodbye

    def probe_when_idle(self) -> None:
        """Let the kernel find out that the other side is gone, while nothing is sent to it."""
        sock = self.transport and self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEP_ALIVE.items():
                if hasattr(socket, name):  # Linux has all of them
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        self.guard = FrameGuard(parser, self.doors.log.note)
        super().set_parser(self.guard, data_received_cb)
        self.data_received = super().data_received  # a socket's bytes are no request's

    def _start_timer(self, what: str, is_late: Callable[[], bool]) -> None:
        def close() -> None:
            self._timer = None
            if is_late() and self.transport is not None:
                self.doors.log.note(
                    f"a connection was closed: its {what} did not end in {REQUEST_SECONDS:.0f} s"
                )
                self.transport.abort()

        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(REQUEST_SECONDS, close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
