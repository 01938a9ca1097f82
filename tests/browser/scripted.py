"""A socket that does what a test tells it to: for the page's behaviour when the server is unkind.

It is not a server: no rules of the protocol are kept here. The real one is used wherever the
conversation itself is tested.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable

import numpy as np
from aiohttp import WSMsgType, web

HEALTHY = {"status": "ok", "model": "scripted", "slots": 16, "free": 14}
FRAME_BYTES = 3840  # 80 ms of PCM16


class Conversation:
    """One socket from the page, as a script sees it."""

    def __init__(self, ws: web.WebSocketResponse, request: web.Request) -> None:
        self.ws = ws
        self.request = request
        self._go_on = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.query = dict(request.query)
        self.takes = True  # `echo` says that a text has come
        self.controls: list[int] = []
        self.says: list[str] = []
        self.metadata: list[dict] = []
        self.close_code: int | None = None

    def resume(self) -> None:
        """Let a script go on that waits to be told so. From the test's thread."""
        self.loop.call_soon_threadsafe(self._go_on.set)

    async def told(self) -> None:
        """Wait until the test says `resume`, once."""
        await self._go_on.wait()
        self._go_on.clear()

    async def send(self, kind: int, payload: bytes = b"") -> None:
        await self.ws.send_bytes(bytes([kind]) + payload)

    async def event(self, **event: object) -> None:
        await self.send(4, json.dumps({"t": 0.0, **event}).encode())

    async def ready(self, transcript: bool = False, **more: object) -> None:
        fields = {"transcript": transcript, "model": "scripted", "voice": "NATF2", **more}
        await self.event(type="ready", **fields)
        await self.send(0)

    async def hear(self, seconds: float, level: float = 0.3, heap: int = 1) -> None:
        """The agent's own sound: a tone, at the pace at which it is played, some frames at once."""
        for i in range(round(seconds * 12.5)):
            at = (np.arange(1920) + 1920 * i) / 24_000
            tone = level * np.sin(2 * np.pi * 220 * at)
            await self.send(1, (tone * 32767).astype("<i2").tobytes())
            if (i + 1) % heap == 0:
                await asyncio.sleep(0.08 * heap)

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


async def talk_on(conversation: Conversation) -> None:
    """The same, by a server that keeps a conversation whose line was lost."""
    going_on = {"resumed": True} if "resume" in conversation.query else {}
    await conversation.ready(resume=f"secret of {id(conversation)}", **going_on)
    await conversation.echo()


class ScriptedApi:
    """`script` decides what happens with the next socket; `conversations` are all there were."""

    def __init__(self) -> None:
        self.script: Script = talk
        self.conversations: list[Conversation] = []
        self.health: dict = dict(HEALTHY)
        self.healths = 0  # times that it was asked

    def reset(self) -> None:
        """As it was at the beginning."""
        self.script, self.health, self.healths = talk, dict(HEALTHY), 0
        self.conversations.clear()

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/api", self._chat)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/voices", self._voices)

    async def _healthz(self, _: web.Request) -> web.Response:
        self.healths += 1
        return web.json_response(self.health)

    async def _voices(self, _: web.Request) -> web.Response:
        return web.json_response(["NATF2", "NATM0", "VARF1"])

    async def _chat(self, request: web.Request) -> web.WebSocketResponse:
        request.protocol.begin(request)  # the doors know that its headers are there
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
