"""One conversation's messages on one socket: tasks that live and end together.

A refused request is one 0x05, and the conversation goes on. A fault that ends it is one 0x05 and
then a close code.
"""

import asyncio
import contextlib
import fcntl
import struct
import termios
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web

from engine.config import SAMPLE_RATE
from engine.dialogue import events as ev
from engine.dialogue.resume import Line
from engine.dialogue.service import Service
from engine.errors import (
    BadAudioError,
    BadParameterError,
    ConfigError,
    EndError,
    GoneError,
    ProtocolError,
    RefusedError,
    TooFastError,
    logged_fault,
)
from engine.runtime.metrics import Stage
from engine.runtime.seat import Frame, Notice, Ready, Renewed
from engine.wire.audio import make_codec, name_format
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
    parse_role,
    parse_sampling,
    read_text,
)

if TYPE_CHECKING:
    from engine.wire.limits import Connection
    from engine.wire.server import ApiSocket

TOLD = b"resume"  # of the ping that follows a new secret
STATS_FRAMES = 13  # about one second between two `stats`
WAKING_SECONDS = 1.0
LOOK_SECONDS = 1.0  # between two looks at what the client has not read, and at its silence
TURN_SECONDS = 0.002  # of one turn of the loop for one client's audio
# What decoding one client's audio may take: this share of the loop, and these seconds at once.
# Speech takes a share of 0.003.
DECODE_SHARE, DECODE_SECONDS = 0.1, 0.005
# A message that costs the server more counts for several.
COMMAND_COST, RESTART_COST = 10, 300
BYTES_PER_MESSAGE = 1024
LETTERS_PER_MESSAGE = 50  # bytes of a text or of JSON
CLOSE_BYTES = 120  # of the reason in a close frame
CLOSE_SECONDS = 1.0  # for a goodbye; a client that does not read loses it


class ClientLeftError(Exception):
    """The client closed the socket or vanished."""


class DeadLineError(ClientLeftError):
    """Nothing came for long, not even the answer to a ping."""


class LiveSocket(ABC):
    """What every protocol's socket keeps: its client's pace, and whether it reads and is there."""

    def __init__(self, ws: web.WebSocketResponse, connection: "Connection") -> None:
        self.ws = ws
        self.connection = connection
        self.pace = ClientPace(time.monotonic, lambda: connection.doors.pulse.stood_still)
        self.unread, self.silence = Unread(), Silence()

    async def run(self) -> None:
        """Talk until the client leaves. Raises the EndError that ended it."""
        ended: EndError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                await self._start_tasks(group)
        except* (ClientLeftError, ConnectionError):
            pass
        except* EndError as errors:
            ended = first_of(errors)
            self._note(ended)
        except* Exception:  # the conversation's boundary: the client hears an id
            ended = logged_fault("conversation failed")
            self._note(ended)
        finally:
            self._let_go()
        if ended is not None:  # raised here: before Python 3.11.4 a group is what leaves `except*`
            raise ended

    @abstractmethod
    async def _start_tasks(self, group: asyncio.TaskGroup) -> None:
        """Start what a conversation does at the same time."""

    @abstractmethod
    def _note(self, error: EndError) -> None:
        """Note what ended the conversation."""

    @abstractmethod
    def _let_go(self) -> None:
        """Leave the conversation, however it ended."""

    async def _keep_pace(self, cost: float, samples: int, turned: float) -> float:
        """Count a message and its audio, and rest where that is due.

        turned: when this socket last rested. Returns the same, now. Raises TooFastError.
        """
        try:
            rest = self.pace.take(cost, samples)
        except TooFastError:
            self.connection.hold()  # what still comes is not even read
            raise
        # aiohttp returns queued messages without yielding: give other conversations a turn.
        # Audio may go on for a while: where rounds of the loop are longer than its pieces, with
        # one piece in a round a client would be heard ever later.
        if rest or not samples or time.monotonic() - turned > TURN_SECONDS:
            self.silence.note(rest)
            await asyncio.sleep(rest)
            turned = time.monotonic()
        return turned

    async def _ping(self, payload: bytes = b"") -> None:
        self.unread.written += len(payload) + 2
        await self.ws.ping(payload)

    async def _pong(self, payload: bytes) -> None:
        self.unread.written += len(payload) + 2
        await self.ws.pong(payload)

    async def _watch_line(self) -> None:
        """Raise TooFastError when a client does not take what it is sent, DeadLineError when it is
        not there any more.

        The first must be so twice: after a pause of our own the first look sees what we have not
        sent.
        """
        late = False
        while True:
            slept_at = time.monotonic()
            await asyncio.sleep(LOOK_SECONDS)
            match self.silence.look(time.monotonic() - slept_at - LOOK_SECONDS):
                case Alive.UNKNOWN:
                    with contextlib.suppress(TimeoutError):  # a full buffer waits
                        async with asyncio.timeout(LOOK_SECONDS):
                            await self._ping()
                case Alive.NO:
                    self.connection.doors.log.note("a connection was closed: its line was dead")
                    if self.connection.transport:
                        self.connection.transport.abort()
                    raise DeadLineError
            waiting = self.unread.look(count_unsent(self.connection.transport))
            if waiting > UNREAD_SECONDS and late:
                raise TooFastError(
                    f"nothing was read for {waiting:.0f} s; read what is sent", "it reads nothing"
                )
            late = waiting > UNREAD_SECONDS


class ChatSocket(LiveSocket):
    """Speaks the protocol on one accepted socket."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        service: Service,
        query: Query,
        connection: "Connection",
        before: Line | None = None,
    ) -> None:
        """before: the line whose conversation goes on here."""
        if before:  # what the query says of the conversation itself is void
            query = replace(query, format=query.format or before.format, events=True)
        super().__init__(ws, connection)
        self.decoding = Bucket(DECODE_SHARE, DECODE_SECONDS)
        self.faulty = False  # no socket may go on with this conversation
        self.restarting = False  # and no command has come since
        self.service = service
        self.query = query
        self.codec = make_codec(query.format)
        self.before, self.resuming = before, before is not None  # until `ready` is sent
        if before:
            self.session = before.session
            self.line = service.ghosts.take_over(before, query.resume, query.format)
        else:
            self.session = service.session(query.session)
            self.session.open()
            self.line = service.ghosts.enter(self.session, query.format)
            service.enter(self.session)

    async def _start_tasks(self, group: asyncio.TaskGroup) -> None:
        if self.before:
            await self.before.ended.wait()
        group.create_task(self._receive())
        group.create_task(self._send())
        group.create_task(self._watch_line())
        group.create_task(self._make_way())
        group.create_task(self.session.watch(self.service.limits))

    async def _make_way(self) -> None:
        """Raise GoneError once another socket has taken the conversation over."""
        await self.line.taken.wait()
        raise GoneError("this conversation goes on in another connection of yours")

    def _let_go(self) -> None:
        """Where the client did not say goodbye the conversation waits for its next socket."""
        line, service = self.line, self.service
        line.ended.set()
        if line.taken.is_set():
            return
        kept = (line.told or self.before) and service.ghosts.keep_s and not service.closing
        left = self.faulty or self.connection.said_goodbye or not self.session.sits
        if kept and not left:
            service.ghosts.keep(line)
        else:
            service.ghosts.release(line)

    def _note(self, error: EndError) -> None:
        self.faulty = True
        if not self.line.taken.is_set():
            self.session.end_reason = error.prefix.rstrip(": ") or type(error).__name__

    # -- from the client ---------------------------------------------------------------------------

    async def _receive(self) -> None:
        """Handle messages until the client leaves. Raises ClientLeftError then.

        A client that sends too fast is not read from: aiohttp's queue fills, then the kernel's, and
        then the client waits.
        """
        turned = time.monotonic()
        while True:
            message = await self.ws.receive()
            self.session.touch()
            self.silence.note()
            self.extra_cost = samples = size = 0
            cost = 1
            match message.type:
                case WSMsgType.BINARY:
                    cost, size = find_cost(message.data), len(message.data)
                    samples = await self._handle(message.data)
                case WSMsgType.TEXT:
                    await self._refuse("binary messages only: byte 0 is the kind, see docs/api.md")
                    cost, size = COMMAND_COST, len(message.data)
                case WSMsgType.PING:
                    await self._pong(message.data)
                case WSMsgType.PONG:
                    if message.data == TOLD:
                        self.line.confirm()
                case WSMsgType.ERROR:
                    self.faulty = True
                    raise ClientLeftError
                case _:
                    raise ClientLeftError
            turned = await self._keep_pace(
                max(cost + self.extra_cost, size / BYTES_PER_MESSAGE), samples, turned
            )

    async def _handle(self, data: bytes) -> int:
        """Carry out one message; how many samples of audio it brought."""
        if len(data) > MAX_MESSAGE_BYTES:
            raise TooFastError(
                f"a message has {len(data)} bytes; send at most {MAX_MESSAGE_BYTES}",
                "a large message",
            )
        try:
            kind, payload = decode(data)
        except ProtocolError:
            return self._ignore(data)
        if kind in (Kind.SAY, Kind.METADATA):
            self.restarting = False  # a restart after it has something to drop
        try:
            match kind:
                case Kind.AUDIO:
                    return await self._on_audio(payload)
                case Kind.PING:
                    await self._send_bytes(encode(Kind.PING, payload))
                case Kind.SAY:
                    self._on_say(payload)
                case Kind.CONTROL:
                    self._on_control(payload)
                case Kind.METADATA:
                    await self._on_metadata(payload)
                case _:
                    return self._ignore(data)
        except (RefusedError, ConfigError) as error:
            await self._refuse(str(error))
        return 0

    def _ignore(self, data: bytes) -> int:
        """Count a message of no known kind. Raises BadAudioError: it is audio without its kind."""
        self.service.metrics.ignored()
        if found := name_format(data):
            raise BadAudioError(
                f"this is {found[0]} without its kind; put the byte 0x01 before each message",
                "no kind byte",
            )
        return 0

    async def _on_audio(self, payload: bytes) -> int:
        """Decode a message, in several turns of the loop if it takes long.

        An Opus packet may be made to take ten times as long as others. A client that sends such
        ones is heard later. Speech takes far less.
        """
        metrics, samples, skipped = self.service.metrics, 0, self.codec.skipped
        received = turned = metrics.clock()
        worked = time.thread_time()  # not what other processes took meanwhile
        for pcm in self.codec.decode(payload):
            seconds = metrics.clock() - received
            metrics.took(Stage.DECODE, *[seconds] * self.session.push_audio(pcm))
            samples += len(pcm)
            rest = self.decoding.take(time.thread_time() - worked)
            if rest or metrics.clock() - turned > TURN_SECONDS:
                self.silence.note(rest)
                await asyncio.sleep(rest)
                turned = metrics.clock()
            worked = time.thread_time()
        if self.codec.skipped > skipped:
            metrics.ignored()
        return samples

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
        control = Control(payload[0])
        again = control is Control.RESTART and self.restarting
        self.restarting = control is Control.RESTART
        match control:
            case Control.START:
                self.session.post(ev.Resume())
            case Control.END_TURN:
                self.session.post(ev.EndTurn())
            case Control.PAUSE:
                self.session.post(ev.Pause())
            case Control.RESTART if not again:  # or nothing has changed since the last one
                self.session.restart()

    async def _on_metadata(self, payload: bytes) -> None:
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
            case "restart":
                await self._change_role(data)
            case _:
                raise RefusedError(
                    f"type is {kind[:40]!r}; use say, ask, cancel or set, or restart"
                )

    async def _change_role(self, data: dict[str, Any]) -> None:
        """Nothing is read meanwhile: what comes after it is for the new role."""
        self.extra_cost = RESTART_COST
        try:
            await self.session.change_role(parse_role(data))
        except BadParameterError as error:  # it ends a call that begins with it
            raise RefusedError(f"restart: {error}") from None

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
        if not self.before:
            await self._wake_up()
            await asyncio.sleep(self.query.start_at - time.monotonic())
            await self.service.connect(self.session)
        async for output in self.session.outputs(self.query.heard):
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
        self.restarting = False
        fields: dict[str, Any] = {"resumed": True} if self.resuming else {}
        if self.service.ghosts.keep_s:
            fields["resume"] = self.line.secret
        await self._send_metadata(
            "ready",
            self.session.seconds_out if self.resuming else 0,
            session=self.session.id,
            protocol=VERSION,
            model=self.service.model,
            voice=self.session.voice,
            sample_rate=SAMPLE_RATE,
            format=self.query.format,
            transcript=self.session.transcribes,
            **fields,
        )
        self.line.told = self.query.events
        if self.resuming:
            self.resuming = False
            await self._ping(TOLD)  # its answer shows that the client has the new secret
        await self._send_bytes(encode(Kind.HANDSHAKE))

    async def _send_frame(self, frame: Frame) -> None:
        for event in frame.events:
            await self._send_event(event)
        for part in self.codec.split(self.codec.encode(frame.pcm)):
            await self._send_bytes(encode(Kind.AUDIO, part))
        now, metrics = self.session.clock(), self.service.metrics
        metrics.took(Stage.SEND, now - frame.ready_at)
        self.session.late_frames += metrics.sent(max(0.0, now - frame.due_at))
        if self.query.events and self.session.frames_out % STATS_FRAMES == 0:
            await self._send_stats()

    async def _send_event(self, event: ev.Event) -> None:
        if isinstance(event, ev.Text):
            await self._send_bytes(encode(Kind.TEXT, event.text.encode()))
        elif isinstance(event, ev.Refused):
            await self._refuse(event.message)
        elif type(event) in FIELDS:
            name, names = FIELDS[type(event)]
            fields = {field: getattr(event, field) for field in names}
            await self._send_metadata(name, self.session.seconds_out, **fields)

    async def _send_metadata(self, name: str, seconds: float, **fields: Any) -> None:
        if self.query.events:
            await self._send_bytes(encode_metadata(name, seconds, **fields))

    async def _send_stats(self) -> None:
        p50, p99, queue = self.service.metrics.recent()
        await self._send_metadata(
            "stats",
            self.session.seconds_out,
            step_ms_p50=round(p50 * 1e3, 2),
            step_ms_p99=round(p99 * 1e3, 2),
            queue_ms=round(queue * 1e3, 2),
            late_frames=self.session.late_frames,
            context_used=round(self.session.context_used, 4),
        )

    async def _send_bytes(self, data: bytes) -> None:
        self.unread.written += len(data)
        await self.ws.send_bytes(data)

    async def _refuse(self, text: str) -> None:
        await self._send_bytes(encode(Kind.ERROR, text.encode()))


def find_cost(data: bytes) -> int:
    """For how many messages one counts, however it is answered."""
    match data[0] if data else None:
        case Kind.SAY | Kind.METADATA:
            return COMMAND_COST + len(data) // LETTERS_PER_MESSAGE
        case Kind.CONTROL:
            return RESTART_COST if data[1:] == bytes([Control.RESTART]) else COMMAND_COST
    return 1


def first_of(group: BaseExceptionGroup) -> EndError:
    """The first error of a group, at any depth."""
    error = group.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error


async def say_goodbye(ws: "ApiSocket", error: EndError) -> None:
    """Tell the reason, then send the close code. A client that reads nothing is cut off."""
    # Cut to size, characters stay whole, or browsers refuse the frame.
    message = str(error).encode()[:CLOSE_BYTES].decode(errors="ignore").encode()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await ws.tell(error)
            await ws.close(code=error.close_code, message=message)
    except (TimeoutError, ConnectionError):
        pass


# -- how fast a client may send, that it reads, and that it is there -------------------------------
#
# Nobody is judged by how long the server took: only by what came from the other side, and when.

MESSAGES_PER_SECOND = 1500.0  # audio in pieces of 1 ms is 1000
MESSAGES_AT_ONCE = 4000.0  # 30 s of audio in pieces of 10 ms is 3000
CALM_MESSAGES = 400.0  # with so many left again a client is no longer above the rate
TOO_FAST_SECONDS = 5.0  # above the rate
MOST_EXCUSED_SECONDS = 20.0  # of our loop's standing still: what came then may come at once
PIECE_SAMPLES = SAMPLE_RATE / 1200  # a message that brings this much audio is excused
REST_SECONDS = 0.01  # the shortest wait: timers for single messages would cost more than these
ASK_SECONDS = 5.0  # without a message: then a client is asked whether it is there
DEAD_SECONDS = 15.0  # after that question
UNREAD_SECONDS = 20.0  # a network may stall for this long, and the call goes on
PULSE_SECONDS = 0.1
MAX_FRAGMENTS = 1024  # of one WebSocket message


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


class Pulse:
    """For how long an event loop stood still, in seconds so far."""

    def __init__(self) -> None:
        self.stood_still = 0.0

    def beat(self, due: float | None = None) -> None:
        """Notice every 100 ms how late the loop is. Event loop only."""
        loop = asyncio.get_running_loop()
        if due is not None:
            self.stood_still += max(0.0, loop.time() - due - PULSE_SECONDS)
        due = loop.time() + PULSE_SECONDS
        self._timer = loop.call_at(due, self.beat, due)

    def stop(self) -> None:
        self._timer.cancel()


class ClientPace:
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
                    f"{TOO_FAST_SECONDS:.0f} s; a text or a setting counts for several",
                    "too many messages",
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


class Alive(Enum):
    """Whether a client is there."""

    YES = auto()
    UNKNOWN = auto()  # it is to be asked
    NO = auto()


class Silence:
    """For how long nothing has come from a client, be it the answer to a ping."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._asked_at: float | None = None

    def note(self, rest: float = 0.0) -> None:
        """Something has come. rest: seconds in which we ourselves shall not read."""
        self._since, self._asked_at = self._clock() + rest, None

    def look(self, lag: float = 0.0) -> Alive:
        """Call it about once a second. lag: by how much we ourselves are late."""
        now = self._clock()
        if lag > LOOK_SECONDS:  # we stood still: what came meanwhile is not read yet
            self._since += lag
            if self._asked_at is not None:
                self._asked_at += lag
        if self._asked_at is not None:
            return Alive.NO if now - self._asked_at > DEAD_SECONDS else Alive.YES
        if now - self._since <= ASK_SECONDS:
            return Alive.YES
        self._asked_at = now
        return Alive.UNKNOWN


def count_unsent(transport: asyncio.Transport | None) -> int:
    """Bytes that the other side's kernel has not confirmed: in the transport and in ours."""
    if transport is None:
        return 0
    unsent = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    try:  # Linux; elsewhere, and of a closed one, only what the transport holds is known
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return unsent
    return unsent + struct.unpack("i", answer)[0]


class FrameGuard:
    """Looks at WebSocket frames before aiohttp's reader, which takes some that it should not.

    Unmasked ones (RFC 6455, 5.1, has them closed), and messages of endless pieces, of which the
    receive loop would never hear. It hands the reader a frame that this refuses with code 1002.
    """

    REFUSED = b"\xf0\x80"  # reserved bits

    def __init__(self, reader: Any, note: Callable[[str], None]) -> None:
        self._reader, self._note = reader, note
        self._head = b""  # of a frame, not complete
        self._skip = 0  # bytes of payload still to come
        self._pieces = 0  # of the message that has begun
        self._refused = False
        self.dropped = 0  # bytes after the end
        self.said_goodbye = False  # it has closed the socket, or broken the rules

    def feed_eof(self) -> None:
        self._reader.feed_eof()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        if self._refused:
            self.dropped += len(data)
            return False, b""
        whole = self._head + data
        at, refused = self._walk(whole)
        passed = whole[: min(at, len(whole))]
        self._head, self._skip = whole[len(passed) :], max(0, at - len(whole))
        if refused:
            self._refused = self.said_goodbye = True
            self._note("a connection was closed: its frames are unmasked or endless")
            passed += self.REFUSED
        if passed:
            self._refused |= self._reader.feed_data(passed)[0]  # it has enough, too
        return False, b""

    def _walk(self, whole: bytes) -> tuple[int, bool]:
        """Go from frame to frame; (where it stops, whether a frame is refused there).

        It stops at a frame that is refused, or whose head is not complete. A place beyond the end
        means that some of the last payload is still to come.
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
            self.said_goodbye |= first & 0x0F == 8
            if second < 0x80 or self._pieces > MAX_FRAGMENTS:
                return at, True
            at += size + length
        return at, False
