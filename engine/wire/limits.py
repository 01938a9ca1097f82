"""What one connection, one address and all of them together may take of the server.

First the arithmetic, on any clock; then aiohttp's connections, counted and kept to their time.
Nobody is judged here by how long the server took: only by what came from the other side, and when.
"""

import asyncio
import fcntl
import ipaddress
import logging
import socket
import struct
import termios
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from aiohttp import web

from engine.config import SAMPLE_RATE, ServerConfig
from engine.errors import TooFastError

logger = logging.getLogger(__name__)

MESSAGES_PER_SECOND = 1500.0  # audio in pieces of 1 ms is 1000
MESSAGES_AT_ONCE = 4000.0  # 30 s of audio in pieces of 10 ms is 3000
CALM_MESSAGES = 400.0  # who has so many left again is no longer above the rate
TOO_FAST_SECONDS = 5.0  # above the rate
MOST_EXCUSED_SECONDS = 20.0  # of our loop's standing still: what came then may come at once
PIECE_SAMPLES = SAMPLE_RATE / 1200  # a message that brings this much audio is excused
REST_SECONDS = 0.01  # the shortest wait: timers for single messages would cost more than these
GUESSES_PER_MINUTE = 10  # wrong tokens from one address
MOST_ADDRESSES = 10_000  # whose wrong tokens are remembered
UNREAD_SECONDS = 20.0  # a network may stall for this long, and the call goes on
SEND_BUFFER_BYTES = 64 * 1024  # of the kernel, which doubles it
REQUEST_SECONDS = 20.0  # from the first byte of a request to the last of its headers, or body
IDLE_SECONDS = 75.0  # a kept connection between two requests
READ_BYTES = 16 * 1024  # of one connection in one turn of the loop: 2700 messages at most
MAX_FRAGMENTS = 1024  # of one WebSocket message
PULSE_SECONDS = 0.1
LOG_SECONDS = 60.0  # between two lines about the same thing


class Bucket:
    """Tokens that come back at a rate, up to a burst. Taking may leave a debt."""

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self.burst, self._clock = rate, burst, clock
        self._level, self._at = burst, clock()

    @property
    def level(self) -> float:
        now = self._clock()
        if self._level < self.burst:
            self._level = min(self.burst, self._level + (now - self._at) * self.rate)
        self._at = now
        return self._level

    def give(self, tokens: float, most: float) -> None:
        """Add tokens beyond the burst, up to `most` in all."""
        self._level = max(self.level, min(self.level + tokens, most))

    def take(self, cost: float) -> float:
        """Take tokens; the seconds after which the debt is paid (0: there is none)."""
        self._level = self.level - cost
        return max(0.0, -self._level / self.rate)


class Pace:
    """How fast one client may send: who is above the rate waits, who stays above it is sent away.

    A client whose messages came late and all at once is not above the rate for long: its audio
    excuses its messages, and so does the time in which our own loop stood still.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        stood_still: Callable[[], float] = lambda: 0.0,  # seconds so far, of our loop
    ) -> None:
        self._bucket = Bucket(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE, clock)
        self._clock, self._stood_still = clock, stood_still
        self._still = stood_still()
        self._over_since: float | None = None
        self._excess = 0.0  # what came since then and no audio excuses

    def take(self, cost: float, samples: int = 0) -> float:
        """Count a message and its audio; the seconds to wait before the next is read.

        Raises TooFastError.
        """
        still = self._stood_still()
        if still > self._still:
            most = MESSAGES_AT_ONCE + MOST_EXCUSED_SECONDS * MESSAGES_PER_SECOND
            self._bucket.give((still - self._still) * MESSAGES_PER_SECOND, most)
            self._still = still
        if self._bucket.level > CALM_MESSAGES:
            self._over_since = None
        wait = self._bucket.take(cost)
        if not wait and self._over_since is None:
            return 0.0
        now = self._clock()
        if self._over_since is None:
            self._over_since, self._excess = now, 0.0
        self._excess += cost - samples / PIECE_SAMPLES
        if now - self._over_since > TOO_FAST_SECONDS:
            if self._excess > 0:
                raise TooFastError(
                    f"more than {MESSAGES_PER_SECOND:.0f} messages a second for "
                    f"{TOO_FAST_SECONDS:.0f} s; a text, a setting or a restart counts for several"
                )
            self._over_since, self._excess = now, 0.0
        return max(wait, REST_SECONDS) if wait else 0.0


class Unread:
    """For how long the oldest byte has waited that a client has not taken from us."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.written = 0  # bytes, ever
        self._marks: deque[tuple[float, int]] = deque()  # (when, bytes written by then)

    def look(self, unsent: int) -> float:
        """Note the bytes that are still on our side; seconds. Call it about once a second."""
        now, taken = self._clock(), self.written - unsent
        self._marks.append((now, self.written))
        while self._marks and self._marks[0][1] <= taken:
            self._marks.popleft()
        return now - self._marks[0][0] if self._marks else 0.0


class Guesses:
    """Wrong tokens by address: who has given ten in a minute must wait before the next."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}  # the oldest first

    def may_try(self, address: str) -> bool:
        bucket = self._buckets.get(address)
        return bucket is None or bucket.level >= 1

    def note_wrong(self, address: str) -> None:
        bucket = self._buckets.pop(address, None)
        if bucket is None:
            bucket = Bucket(GUESSES_PER_MINUTE / 60, GUESSES_PER_MINUTE, self._clock)
        self._buckets[address] = bucket
        bucket.take(1)
        if len(self._buckets) > MOST_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]


class MinuteLog:
    """One line a minute about each kind of thing that may happen thousands of times."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}

    def note(self, what: str) -> None:
        now = self._clock()
        self._counts[what] += 1
        if now - self._logged_at.get(what, float("-inf")) >= LOG_SECONDS:
            logger.warning("%s (%d times since the last such line)", what, self._counts.pop(what))
            self._logged_at[what] = now


# -- addresses -------------------------------------------------------------------------------------


def find_address(peer: str, forwarded: str, proxies: tuple[str, ...]) -> str:
    """Who asks: the peer, or whom a proxy that we trust names last in X-Forwarded-For.

    What stands before the last entry came from the client itself, who may write anything.
    """
    own = _parse_address(peer)
    if own and any(own in ipaddress.ip_network(proxy, strict=False) for proxy in proxies):
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
    """The connections of one server: how many from where, and for how long its loop stood still."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._open: Counter[str] = Counter()
        self.log = MinuteLog()
        self.guesses = Guesses()
        self.stood_still = 0.0  # seconds

    def find_address(self, peer: str, forwarded: str = "") -> str:
        return find_address(peer, forwarded, self._config.trusted_proxies)

    def enter(self, address: str) -> bool:
        """Count a connection, unless there are too many."""
        if self._open.total() >= self._config.max_sockets_total:
            self.log.note(f"a connection was refused: {self._config.max_sockets_total} are open")
            return False
        if self._open[address] >= self._config.max_sockets_per_address:
            most = self._config.max_sockets_per_address
            self.log.note(f"a connection was refused: {most} are open from its address")
            return False
        self._open[address] += 1
        return True

    def leave(self, address: str) -> None:
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    def beat(self, due: float | None = None) -> None:
        """Notice every 100 ms how late this loop is. Event loop only."""
        loop = asyncio.get_running_loop()
        if due is not None:
            self.stood_still += max(0.0, loop.time() - due - PULSE_SECONDS)
        due = loop.time() + PULSE_SECONDS
        self._pulse = loop.call_at(due, self.beat, due)

    def stop(self) -> None:
        self._pulse.cancel()


FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 60\r\n"
    b"Connection: close\r\nContent-Length: 44\r\n\r\ntoo many connections are open; close some of"
)


class Connection(web.RequestHandler):
    """One TCP connection: counted, read in small pieces, and closed when a request never ends."""

    def __init__(self, doors: Doors, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.doors = doors
        self.address: str | None = None  # under which it is counted
        self._refused = False
        self._peer = ""
        self._busy = False  # with a request that is read
        self._held = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._peer = (transport.get_extra_info("peername") or ("",))[0]
        address = self.doors.find_address(self._peer)
        if not self.doors.enter(address):
            self._refused = True
            transport.write(FULL)
            transport.close()
            return
        self.address = address
        if hasattr(transport, "max_size"):  # of one read, in asyncio's own transports
            transport.max_size = READ_BYTES
        super().connection_made(transport)
        self._start_timer("headers", lambda: True)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        if self.address is not None:
            self.doors.leave(self.address)
            self.address = None
        if not self._refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._busy and self._timer is None:
            self._start_timer("headers", lambda: True)
        super().data_received(data)

    def begin(self, request: web.BaseRequest) -> bool:
        """A request's headers are there; False: too many connections are its client's."""
        self._stop_timer()
        self._busy = True
        if not request.content.is_eof():
            self._start_timer("body", lambda: not request.content.is_eof())
        forwarded = request.headers.get("X-Forwarded-For", "")
        address = self.doors.find_address(self._peer, forwarded)
        if address == self.address:
            return True
        if self.address is not None:
            self.doors.leave(self.address)
        self.address = address if self.doors.enter(address) else None
        return self.address is not None

    def end(self) -> None:
        self._busy = False

    def hold(self) -> None:
        """Read nothing any more, whatever aiohttp thinks: the connection is about to end."""
        self._held = True
        self.pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        if not self._held:
            super().resume_reading(resume_parser)

    def limit_send_buffer(self) -> None:
        """Keep what a client does not read where it can be counted, and little of it."""
        sock = self.transport and self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def count_unsent(self) -> int:
        """Bytes that the other side's kernel has not confirmed: in the transport and in ours."""
        if self.transport is None:
            return 0
        unsent = self.transport.get_write_buffer_size()
        sock = self.transport.get_extra_info("socket")
        try:  # Linux; elsewhere only what the transport holds is known
            answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            return unsent
        return unsent + struct.unpack("i", answer)[0]

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        super().set_parser(FrameGuard(parser, self.doors.log), data_received_cb)

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


class FrameGuard:
    """Looks at WebSocket frames before aiohttp's reader, which takes some that it should not.

    Unmasked ones (RFC 6455, 5.1, has them closed), and messages of endless pieces, of which the
    receive loop would never hear. It hands the reader a frame that this refuses with code 1002.
    """

    REFUSED = b"\xf0\x80"  # reserved bits

    def __init__(self, reader: Any, log: MinuteLog) -> None:
        self._reader, self._log = reader, log
        self._head = b""  # of a frame, not complete
        self._skip = 0  # bytes of payload still to come
        self._pieces = 0  # of the message that has begun
        self._refused = False

    def feed_eof(self) -> None:
        self._reader.feed_eof()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        if self._refused:
            return False, b""
        whole = self._head + data
        at, refused = self._walk(whole)
        passed = whole[: min(at, len(whole))]
        self._head, self._skip = whole[len(passed) :], max(0, at - len(whole))
        if refused:
            self._refused = True
            self._log.note("a connection was closed: its frames are unmasked or endless")
            passed += self.REFUSED
        return self._reader.feed_data(passed) if passed else (False, b"")

    def _walk(self, whole: bytes) -> tuple[int, bool]:
        """Go from frame to frame: where the first one begins whose head is not complete, or that is
        refused. Beyond the end: some of the last one's payload is still to come.
        """
        at, end = self._skip, len(whole)
        while at + 2 <= end:
            first, second = whole[at], whole[at + 1]
            length, size = second & 0x7F, 6
            if length > 125:
                size = 8 if length == 126 else 14
                if at + size - 4 > end:
                    break
                length = int.from_bytes(whole[at + 2 : at + size - 4], "big")
            if first & 0x0F < 8:  # a piece of a message; control frames may stand between them
                self._pieces = 0 if first & 0x80 else self._pieces + 1
            if second < 0x80 or self._pieces > MAX_FRAGMENTS:
                return at, True
            at += size + length
        return at, False
