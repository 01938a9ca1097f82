"""The client's end of one raw socket: knows bytes and kinds, and deliberately no more."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np

from engine.config import FRAME_SAMPLES
from engine.wire.protocol import Kind, encode

PATIENCE_SECONDS = 60.0  # a test that waits longer than this has failed
FRAME = np.zeros(FRAME_SAMPLES, "<i2").tobytes()  # 80 ms of silence as PCM16


class Peer:
    """What one socket got, in order, as (kind, payload)."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.heard: list[tuple[Kind, bytes]] = []

    async def send(self, kind: int, payload: bytes = b"") -> None:
        await self.ws.send_bytes(encode(kind, payload))

    async def say(self, text: str) -> None:
        await self.send(Kind.SAY, text.encode())

    async def tell(self, **fields: Any) -> None:
        await self.send(Kind.METADATA, json.dumps(fields).encode())

    async def next(self) -> tuple[Kind, bytes] | None:
        """The next message, or None once the socket is closed."""
        message = await self.ws.receive(PATIENCE_SECONDS)
        if message.type is not aiohttp.WSMsgType.BINARY:
            return None
        self.heard.append((Kind(message.data[0]), message.data[1:]))
        return self.heard[-1]

    async def until(self, kind: Kind, wanted: Callable[[bytes], bool] | None = None) -> bytes:
        """The payload of the next message of a kind for which `wanted` holds."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (message := await self.next()) is not None:
                if message[0] is kind and (wanted is None or wanted(message[1])):
                    return message[1]
        raise AssertionError(f"closed with {self.ws.close_code} before {kind.name}: {self.errors}")

    async def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """The next 0x04 of a type with these fields."""

        def wanted(payload: bytes) -> bool:
            data = json.loads(payload)
            return data["type"] == name and fields.items() <= data.items()

        return json.loads(await self.until(Kind.METADATA, wanted))

    async def end(self) -> tuple[str, int | None]:
        """Read until the server hangs up: its last 0x05 and its close code."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.next() is not None:
                pass
        return (self.errors or [""])[-1], self.ws.close_code

    async def is_alive(self) -> bool:
        """Whether the server still answers on this socket."""
        mark = f"alive {len(self.heard)}".encode()
        await self.send(Kind.PING, mark)
        return await self.until(Kind.PING, lambda payload: payload == mark) == mark

    def of(self, kind: Kind) -> list[bytes]:
        return [payload for got, payload in self.heard if got is kind]

    @property
    def errors(self) -> list[str]:
        return [payload.decode() for payload in self.of(Kind.ERROR)]

    @property
    def text(self) -> str:
        return b"".join(self.of(Kind.TEXT)).decode()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in self.of(Kind.METADATA)]

    @property
    def pcm(self) -> np.ndarray:
        """All agent audio of a pcm16 conversation, float32 [n]."""
        return np.frombuffer(b"".join(self.of(Kind.AUDIO)), "<i2").astype(np.float32) / 32768


@asynccontextmanager
async def connected(
    url: str, path: str = "/api", headers: dict[str, str] | None = None, **query: Any
) -> AsyncIterator[Peer]:
    """A socket that has sent and read nothing yet."""
    asked = {name: str(value) for name, value in query.items()}
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(url + path, params=asked, headers=headers, max_msg_size=0) as ws,
    ):
        yield Peer(ws)


@asynccontextmanager
async def talking(url: str, **query: Any) -> AsyncIterator[Peer]:
    """A pcm16 conversation after its handshake."""
    async with connected(url, **{"format": "pcm16", **query}) as peer:
        await peer.until(Kind.HANDSHAKE)
        yield peer


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds; fail if patience ends first."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - it is the server's thread that makes it true
            await asyncio.sleep(0.01)
