"""One conversation's messages on one socket: three tasks that live and end together.

A refused request is one 0x05, and the conversation goes on. A fault that ends it is one 0x05 and
then a close code.
"""

import asyncio
from typing import Any

from aiohttp import WSMsgType, web

from engine.config import SAMPLE_RATE
from engine.dialogue import events as ev
from engine.dialogue.service import Service
from engine.errors import (
    BadParameterError,
    ConfigError,
    EndError,
    ProtocolError,
    RefusedError,
    TooFastError,
    logged_fault,
)
from engine.runtime.metrics import Stage
from engine.runtime.seat import Frame, Notice, Ready, Renewed
from engine.wire.audio import make_codec
from engine.wire.protocol import (
    FIELDS,
    MAX_MESSAGE_BYTES,
    VERSION,
    Control,
    Kind,
    Query,
    decode,
    encode,
    encode_metadata,
    parse_metadata,
    parse_sampling,
    read_text,
)

STATS_FRAMES = 13  # about one second between two `stats`
WAKING_SECONDS = 1.0
CLOSE_BYTES = 120  # of the reason in a close frame
CLOSE_SECONDS = 1.0  # for a goodbye; a client that does not read loses it


class ClientLeftError(Exception):
    """The client closed the socket or vanished."""


class ChatSocket:
    """Speaks the protocol on one accepted socket."""

    def __init__(self, ws: web.WebSocketResponse, service: Service, query: Query) -> None:
        self.ws = ws
        self.service = service
        self.query = query
        self.codec = make_codec(query.format)
        self.session = service.session(query.session)

    async def run(self) -> None:
        """Talk until the client leaves. Raises the EndError that ended it."""
        async with self.session:
            self.service.enter(self.session)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._receive())
                    group.create_task(self._send())
                    group.create_task(self.session.watch(self.service.limits))
            except* (ClientLeftError, ConnectionError):
                pass
            except* EndError as group:
                raise self._note(_first_of(group)) from None
            except* Exception:  # the conversation's boundary: the client hears an id
                raise self._note(logged_fault("conversation failed")) from None
            finally:
                self.service.leave(self.session)

    def _note(self, error: EndError) -> EndError:
        self.session.end_reason = error.prefix.rstrip(": ") or type(error).__name__
        return error

    # -- from the client ---------------------------------------------------------------------------

    async def _receive(self) -> None:
        """Handle messages until the client leaves. Raises ClientLeftError then."""
        async for message in self.ws:
            self.session.touch()
            if message.type is WSMsgType.TEXT:
                await self._refuse("binary messages only: byte 0 is the kind, see docs/api.md")
            elif message.type is WSMsgType.BINARY:
                await self._handle(message.data)
            # aiohttp returns queued messages without yielding: give other conversations a turn.
            await asyncio.sleep(0)
        raise ClientLeftError

    async def _handle(self, data: bytes) -> None:
        if len(data) > MAX_MESSAGE_BYTES:
            raise TooFastError(f"a message has {len(data)} bytes; send at most {MAX_MESSAGE_BYTES}")
        try:
            kind, payload = decode(data)
        except ProtocolError:
            self.service.metrics.ignored()
            return
        try:
            match kind:
                case Kind.AUDIO:
                    metrics, received = self.service.metrics, self.service.metrics.clock()
                    for pcm in self.codec.decode(payload):
                        seconds = metrics.clock() - received
                        metrics.took(Stage.DECODE, seconds, frames=self.session.push_audio(pcm))
                case Kind.PING:
                    await self.ws.send_bytes(encode(Kind.PING, payload))
                case Kind.SAY:
                    self._on_say(payload)
                case Kind.CONTROL:
                    self._on_control(payload)
                case Kind.METADATA:
                    self._on_metadata(payload)
                case _:
                    self.service.metrics.ignored()
        except (RefusedError, ConfigError) as error:
            await self._refuse(str(error))

    def _on_say(self, payload: bytes) -> None:
        try:
            text = payload.decode()
        except UnicodeDecodeError as error:
            raise RefusedError(f"say: byte {error.start} is not UTF-8; send UTF-8 text") from None
        self.session.say(text)

    def _on_control(self, payload: bytes) -> None:
        if len(payload) != 1 or payload[0] >= len(Control):
            raise RefusedError(
                f"control is {payload[:4].hex() or 'empty'}; send one byte, 00 to 03"
            )
        match Control(payload[0]):
            case Control.START:
                self.session.post(ev.Resume())
            case Control.END_TURN:
                self.session.post(ev.EndTurn())
            case Control.PAUSE:
                self.session.post(ev.Pause())
            case Control.RESTART:
                self.session.restart()

    def _on_metadata(self, payload: bytes) -> None:
        kind, data = parse_metadata(payload)
        match kind:
            case "say":
                mode = data.get("mode", "queue")
                if mode not in ("queue", "replace"):
                    raise RefusedError(f"say: mode is {str(mode)[:40]!r}; use queue or replace")
                self.session.say(read_text(data), replace=mode == "replace")
            case "ask":
                self.session.ask(read_text(data))
            case "cancel":
                self.session.post(ev.Cancel())
            case "set":
                self._set(data)
            case _:
                raise RefusedError(f"type is {kind[:40]!r}; use say, ask, cancel or set")

    def _set(self, data: dict[str, Any]) -> None:
        routing = data.get("routing")
        if routing is not None and routing not in (0, 1):
            raise RefusedError(f"set: routing is {str(routing)[:40]!r}; use 0 or 1")
        try:
            changes = parse_sampling(data)
        except BadParameterError as error:  # it ends a call when it stands in the query; not here
            raise RefusedError(f"set: {error}") from None
        self.session.tune(changes, None if routing is None else bool(routing))

    # -- to the client -----------------------------------------------------------------------------

    async def _send(self) -> None:
        """Send everything that the session brings, until it ends."""
        await self._wake_up()
        self.session.connect()
        async for output in self.session.outputs():
            match output:
                case Ready():
                    await self._send_ready()
                case Notice(events):
                    for event in events:
                        await self._send_event(event)
                case Renewed(frames):
                    await self._send_metadata("renewed", self.session.seconds_out, frames=frames)
                case Frame():
                    await self._send_frame(output)

    async def _wake_up(self) -> None:
        """Wait for the model; with events=1 say how far it is."""
        while (waking := self.service.waking) is not None:
            self.service.check_open()
            await self._send_metadata("waking", 0, phase=waking.phase, percent=waking.percent)
            await asyncio.sleep(WAKING_SECONDS)

    async def _send_ready(self) -> None:
        await self._send_metadata(
            "ready",
            0,
            session=self.session.id,
            protocol=VERSION,
            model=self.service.model,
            voice=self.session.voice,
            sample_rate=SAMPLE_RATE,
            format=self.query.format,
            transcript=self.session.transcribes,
        )
        await self.ws.send_bytes(encode(Kind.HANDSHAKE))

    async def _send_frame(self, frame: Frame) -> None:
        for event in frame.events:
            await self._send_event(event)
        if data := self.codec.encode(frame.pcm):
            await self.ws.send_bytes(encode(Kind.AUDIO, data))
        now, metrics = self.session.clock(), self.service.metrics
        metrics.took(Stage.SEND, now - frame.ready_at)
        self.session.late_frames += metrics.sent(max(0.0, now - frame.due_at))
        if self.query.events and self.session.frames_out % STATS_FRAMES == 0:
            await self._send_stats()

    async def _send_event(self, event: ev.Event) -> None:
        if isinstance(event, ev.Text):
            await self.ws.send_bytes(encode(Kind.TEXT, event.text.encode()))
        elif isinstance(event, ev.Refused):
            await self._refuse(event.message)
        elif type(event) in FIELDS:
            name, names = FIELDS[type(event)]
            fields = {field: getattr(event, field) for field in names}
            await self._send_metadata(name, self.session.seconds_out, **fields)

    async def _send_metadata(self, name: str, seconds: float, **fields: Any) -> None:
        if self.query.events:
            await self.ws.send_bytes(encode_metadata(name, seconds, **fields))

    async def _send_stats(self) -> None:
        metrics = self.service.metrics
        p50, p99 = metrics.step.percentiles((50, 99))
        (queue,) = metrics.record.stages[Stage.QUEUE].percentiles((50,))
        await self._send_metadata(
            "stats",
            self.session.seconds_out,
            step_ms_p50=round(p50 * 1e3, 2),
            step_ms_p99=round(p99 * 1e3, 2),
            queue_ms=round(queue * 1e3, 2),
            late_frames=self.session.late_frames,
            context_used=round(self.session.context_used, 4),
        )

    async def _refuse(self, text: str) -> None:
        await self.ws.send_bytes(encode(Kind.ERROR, text.encode()))


def _first_of(group: BaseExceptionGroup) -> EndError:
    """The first error of a group, at any depth."""
    error = group.exceptions[0]
    return _first_of(error) if isinstance(error, BaseExceptionGroup) else error


async def say_goodbye(ws: web.WebSocketResponse, error: EndError) -> None:
    """Send the reason as 0x05, then the close code. A client that reads nothing is cut off."""
    reason = str(error).encode()
    # Cut to size, characters stay whole, or browsers refuse the frame.
    message = reason[:CLOSE_BYTES].decode(errors="ignore").encode()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await ws.send_bytes(encode(Kind.ERROR, reason))
            await ws.close(code=error.close_code, message=message)
    except (TimeoutError, ConnectionError):
        pass
