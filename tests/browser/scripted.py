"""A socket that does what a test tells it to: for the page's behaviour when the server is unkind.

It is not a server: no rules of the protocol are kept here. The real one is used wherever the
conversation itself is tested.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable

from aiohttp import WSMsgType, web

FRAME_BYTES = 3840  # 80 ms of PCM16


class Conversation:
    """One socket from the page, as a script sees it."""

    def __init__(self, ws: web.WebSocketResponse, request: web.Request) -> None:
        self.ws = ws
        self.request = request
        self.go_on = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.query = dict(request.query)
        self.takes = True  # `echo` says that a text has come
        self.controls: list[int] = []
        self.says: list[str] = []
        self.metadata: list[dict] = []
        self.close_code: int | None = None

    def resume(self) -> None:
        """Set `go_on` from the test's thread."""
        self._loop.call_soon_threadsafe(self.go_on.set)

    async def send(self, kind: int, payload: bytes = b"") -> None:
        await self.ws.send_bytes(bytes([kind]) + payload)

    async def event(self, **event: object) -> None:
        await self.send(4, json.dumps({"t": 0.0, **event}).encode())

    async def ready(self, transcript: bool = False) -> None:
        await self.event(type="ready", transcript=transcript, model="scripted", voice="NATF2")
        await self.send(0)

    async def fail(self, sentence: str, code: int) -> None:
        await self.send(5, sentence.encode())
        await self.ws.close(code=code)

    async def echo(self) -> None:
        """Ping for ping, and each 80 ms of the user's audio back as they come, until the end."""
        audio = bytearray()
        async for message in self.ws:
            if message.type is not WSMsgType.BINARY:
                continue
            kind, payload = message.data[0], message.data[1:]
            self._note(kind, payload)
            await self._take(kind)
            if kind == 6:
                await self.send(6, payload)
            if kind == 1:
                audio += payload
                while len(audio) >= FRAME_BYTES:
                    await self.send(1, bytes(audio[:FRAME_BYTES]))
                    del audio[:FRAME_BYTES]

    async def _take(self, kind: int) -> None:
        """Say, as the server does, that a text has come."""
        if not self.takes:
            return
        if kind == 7:
            await self.event(
                type="say", id=1000 + len(self.says), state="queued", text=self.says[-1]
            )
        if kind == 4 and (asked := self.metadata[-1])["type"] == "ask":
            route = {"id": 1000 + len(self.metadata), "question": asked["text"]}
            await self.event(type="route", state="asking", source="client", **route)

    def _note(self, kind: int, payload: bytes) -> None:
        if kind == 3:
            self.controls.append(payload[0])
        if kind == 4:
            self.metadata.append(json.loads(payload))
        if kind == 7:
            self.says.append(payload.decode())


Script = Callable[[Conversation], Awaitable[None]]


async def talk(conversation: Conversation) -> None:
    """The plain script: in, and the user's own voice back."""
    await conversation.ready()
    await conversation.echo()


class ScriptedApi:
    """`script` decides what happens with the next socket; `conversations` are all there were."""

    def __init__(self) -> None:
        self.script: Script = talk
        self.conversations: list[Conversation] = []

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/api", self._chat)
        app.router.add_get("/voices", self._voices)

    async def _voices(self, _: web.Request) -> web.Response:
        return web.json_response(["NATF2", "NATM0", "VARF1"])

    async def _chat(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        conversation = Conversation(ws, request)
        self.conversations.append(conversation)
        try:
            await self.script(conversation)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            conversation.close_code = ws.close_code
        return ws
