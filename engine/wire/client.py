"""A client of `/api`, through which `talk`, `check` and the benchmarks hold conversations."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import aiohttp
import numpy as np

from engine.config import SAMPLE_RATE
from engine.errors import ConfigError, EngineError
from engine.weights.voices import read_audio
from engine.wire.audio import make_codec
from engine.wire.protocol import MAX_MESSAGE_BYTES, SOCKETS, Kind, decode, encode
from engine.wire.tls import own_certificate

CHUNK_SAMPLES = SAMPLE_RATE // 50  # 20 ms, as browsers send
CONNECT_SECONDS = 30.0
RESUME_SECONDS, RETRY_SECONDS = 30.0, 0.5  # for a dropped line; between two tries
PING_SECONDS = 8.0  # without a message: is the line dead?


DROPS = (aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)


def api_url(url: str, **query: Any) -> str:
    """The WebSocket address that any common form of a server's URL means, with a query.

    A path is kept: a proxy may show the server under one.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path.rstrip("/")
    path = path if path.endswith(SOCKETS) else f"{path}/api"
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    joined = "&".join(part for part in (parts.query, asked) if part)
    return urlunsplit((scheme, parts.netloc, path, joined, ""))


def base_url(url: str) -> str:
    """The plain address of the same server, above /api: the page's."""
    parts = urlsplit(api_url(url))
    path = parts.path.removesuffix("/chat").removesuffix("/api")
    return urlunsplit((parts.scheme.replace("ws", "http", 1), parts.netloc, path, "", ""))


def trust_own(url: str) -> ssl.SSLContext | bool:
    """For aiohttp: TLS as usual; the certificate that --tls self has made here is trusted, too.

    Without TLS nothing is read: the system's certificates take a moment.
    """
    if urlsplit(url).scheme in ("http", "ws"):
        return True
    context = ssl.create_default_context()
    if (own := own_certificate()).is_file():
        context.load_verify_locations(own)
    return context


@dataclass
class Message:
    """One message from the server, decoded."""

    kind: Kind
    at: float  # time.monotonic() of arrival
    pcm: np.ndarray | None = None  # [n] float32, of AUDIO
    text: str = ""  # of TEXT and ERROR
    data: dict[str, Any] = field(default_factory=dict)  # of METADATA


class Client:
    """One conversation with a server. `async with Client(url) as client`.

    returns: where the line drops it connects again and goes on; the server must send events.
    """

    def __init__(
        self,
        url: str,
        fmt: str = "pcm16",
        events: bool = True,
        returns: bool = False,
        **query: Any,
    ) -> None:
        self.url = api_url(url, format=fmt, events=int(events), **query)
        self._format, self._codec = fmt, make_codec(fmt)
        self._returns = returns
        self._secret = ""  # of a conversation that can be gone on with
        self._heard = 0  # samples
        self.close_code: int | None = None

    async def __aenter__(self) -> "Client":
        self._http = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._ws = await self._connect(self.url)
        except (aiohttp.ClientError, TimeoutError) as error:
            await self._http.close()
            address = self.url.split("?")[0]  # a query holds tokens and personas
            why = str(error)
            if isinstance(error, aiohttp.ClientResponseError):  # its own words have the query
                why = f"HTTP {error.status} {error.message}"
            raise EngineError(f"no conversation at {address}: {why}") from None
        return self

    async def _connect(self, url: str) -> aiohttp.ClientWebSocketResponse:
        heartbeat = PING_SECONDS if self._returns else None
        return await self._http.ws_connect(
            url, max_msg_size=16 * MAX_MESSAGE_BYTES, heartbeat=heartbeat, ssl=trust_own(url)
        )

    async def __aexit__(self, *_exc: object) -> None:
        self._secret = ""
        await self._ws.close()
        await self._http.close()

    async def vanish(self) -> None:
        """Cut the line without a goodbye, as a lost network does."""
        await self._http.close()

    async def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send one message; nothing once the server hung up (`messages` has its reason)."""
        with contextlib.suppress(aiohttp.ClientConnectionResetError):
            await self._ws.send_bytes(encode(kind, payload))

    async def send_audio(self, pcm: np.ndarray) -> None:
        """Send user samples [n] float32."""
        if data := self._codec.encode(pcm):
            await self.send(Kind.AUDIO, data)

    async def say(self, text: str) -> None:
        await self.send(Kind.SAY, text.encode())

    async def send_metadata(self, **fields: Any) -> None:
        """Send one 0x04 object."""
        await self.send(Kind.METADATA, json.dumps(fields).encode())

    async def messages(self) -> AsyncIterator[Message]:
        """Everything from the server until the conversation ends."""
        while True:
            raw = await self._ws.receive()
            if raw.type is aiohttp.WSMsgType.BINARY:
                yield self._message(raw.data)
            elif raw.type is aiohttp.WSMsgType.CLOSE or (
                raw.type in DROPS and not await self._go_on()
            ):
                self.close_code = self._ws.close_code
                return

    async def _go_on(self) -> bool:
        """The line has dropped: go on with the conversation on another, if that can be."""
        until = time.monotonic() + RESUME_SECONDS
        while self._returns and self._secret and time.monotonic() < until:
            query = {"resume": self._secret, "heard": self._heard / SAMPLE_RATE}
            joined = "&".join((urlsplit(self.url).query, urlencode(query)))
            try:
                async with asyncio.timeout(RETRY_SECONDS + until - time.monotonic()):
                    self._ws = await self._connect(f"{self.url.partition('?')[0]}?{joined}")
                self._codec = make_codec(self._format)
                return True
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
        return False

    def _message(self, raw: bytes) -> Message:
        kind, payload = decode(raw)
        message = Message(kind, time.monotonic())
        if kind is Kind.AUDIO:
            parts = list(self._codec.decode(payload))
            message.pcm = np.concatenate(parts) if parts else np.zeros(0, np.float32)
            self._heard += len(message.pcm)
        elif kind is Kind.METADATA:
            message.data = json.loads(payload)
            if message.data.get("type") == "ready":
                self._secret = message.data.get("resume", "")
                if message.data.get("resumed"):  # half a frame that it had comes again
                    self._heard = round(message.data["t"] * SAMPLE_RATE)
        elif kind in (Kind.TEXT, Kind.ERROR):
            message.text = payload.decode()
            if message.text.startswith("gone: "):
                self._secret = ""
        return message


def read_wav(path: str | Path) -> np.ndarray:
    """A sound file as mono float32 [n] at 24 kHz. Raises ConfigError."""
    return read_audio(path, ConfigError)


async def send_wav(client: Client, pcm: np.ndarray) -> None:
    """Send samples at the pace of speech, 20 ms at a time."""
    start = time.monotonic()
    for i in range(0, len(pcm), CHUNK_SAMPLES):
        await client.send_audio(pcm[i : i + CHUNK_SAMPLES])
        ahead = start + (i + CHUNK_SAMPLES) / SAMPLE_RATE - time.monotonic()
        await asyncio.sleep(max(0.0, ahead))
