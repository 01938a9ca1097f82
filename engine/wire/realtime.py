"""`/v1/realtime`: OpenAI's Realtime protocol (`openai.py`), translated over the same session.

The model is full duplex: it hears while it speaks and decides by itself when to speak, so every
turn of the agent is a response, asked for or not. What it cannot do is refused by name, or accepted
without effect where a refusal would break the public clients; docs/realtime.md says which.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE, SamplingConfig
from engine.dialogue import events as ev
from engine.dialogue.events import SayState
from engine.dialogue.floor import AUDIBLE, START_LOUD
from engine.dialogue.resume import Line
from engine.dialogue.service import Service
from engine.dialogue.session import (
    AT_ONCE_SECONDS,
    JITTER_SECONDS,
    MAX_BURST_SECONDS,
    MAX_SAY_CHARS,
    Session,
    SessionConfig,
)
from engine.dialogue.speech import QUEUE_LIMIT
from engine.errors import (
    BadAudioError,
    BadParameterError,
    EndError,
    EngineError,
    RefusedError,
    TimeLimitError,
    TooFastError,
)
from engine.runtime.metrics import Dropped, Stage
from engine.runtime.seat import Frame, Notice, Ready
from engine.weights.voices import choose_voice
from engine.wire.limits import Connection
from engine.wire.openai import (
    BETA_NAMES,
    FORMATS,
    OPENAI_VOICES,
    Fields,
    RequestError,
    Settings,
    VoiceError,
    encode_error,
    make_codec,
    make_id,
    parse_event,
    read_content,
    refuse_the_unable,
    show_format,
)
from engine.wire.socket import (
    BYTES_PER_MESSAGE,
    COMMAND_COST,
    LETTERS_PER_MESSAGE,
    RESTART_COST,
    ClientLeftError,
    LiveSocket,
)

MAX_EVENT_BYTES = 2 * 1024 * 1024  # 30 s of audio in base64
MAX_TEXT_BYTES = 64 * 1024  # of an event without audio
MAX_COMMAS = 4000  # of a larger one: 2 MiB of values take 200 ms to parse, 2 MiB of audio 3 ms
MAX_ITEM_BYTES = 25_000  # of an item's content, without audio
MAX_ITEMS = 200  # of a conversation that can be asked for
MAX_ITEMS_BYTES = 500_000  # of theirs
MAX_ID_CHARS = 128  # of an item's or an event's
MAX_WAITING = QUEUE_LIMIT - 1  # responses that were asked for, beside the one in progress
PRE_ROLL_FRAMES = 2  # 160 ms before the agent's first sound
QUIET_FRAMES = 9  # without a sound of the agent: its turn is over
SAID_QUIET_FRAMES = 4  # after a text that it was told to say
SAID_TAIL_FRAMES = 12  # at most, that sound after it: what goes on is another turn
HUSH_FRAMES = 6  # at most, that still sound after a cancel
PATIENCE_FRAMES, LOOKUP_PATIENCE_FRAMES = 125, 375  # for a response that was asked for: 10 s, 30 s
LIVE_SECONDS = 10.0  # that time goes on for a client that sends nothing
GAP_SECONDS = 0.2  # without audio of the client: silence is taken in its place
LEAST_COMMIT_SECONDS = 0.1
LONG_WAKE_SECONDS = 5.0  # what was said to a model that took longer to load, nobody waits for
MAX_MS = 1e9  # of an item's audio
LOOK_SECONDS = 1.0
REFUSED = {"type": "invalid_request_error", "code": "invalid_value"}  # of a failed response

# -- responses: the agent's turns ------------------------------------------------------------------


@dataclass(slots=True)
class Response:
    """One turn of the agent."""

    say_id: int = 0  # of the text that it was told to say; 0: in its own words
    said_at: str | None = None  # the field of the client's event that holds this text
    event_id: str | None = None  # of that event
    metadata: Any = None
    patience: int = 0  # frames that it may take to begin; 0: its text will tell
    id: str = field(default_factory=lambda: make_id("resp"))
    item_id: str = field(default_factory=lambda: make_id("item"))
    begun: bool = False  # there was something to hear
    ending: str = ""  # the status that it will have: its text is over, the sound not yet
    status: str = "in_progress"
    reason: str = ""  # of a cancelled one
    before: str | None = None  # the item before its own
    said: list[tuple[float, str]] = field(default_factory=list)  # ms of audio before it, text
    ms: float = 0.0  # of audio
    quiet: int = 0  # frames in a row
    tail: int = 0  # frames since its text was over
    waited: int = 0  # frames, before it began

    def transcript(self) -> str:
        return "".join(text for _at, text in self.said).strip()


# -- the socket ------------------------------------------------------------------------------------


class RealtimeSocket(LiveSocket):
    """Speaks the protocol on one accepted socket.

    The conversation begins, and takes its slot, with the first event that needs it: audio, a text,
    or a response to create. So the persona is what `session.update` had said by then; another one
    later begins the conversation anew, in the same slot.
    """

    def __init__(
        self, ws: web.WebSocketResponse, service: Service, connection: Connection, beta: bool
    ) -> None:
        super().__init__(ws, connection)
        self.service, self.beta = service, beta
        self.session: Session | None = None
        self.line: Line | None = None
        self.id = make_id("sess")
        self.conversation_id = make_id("conv")
        self.settings = Settings(instructions=service.personas[0].text)
        self.told = False  # its instructions were set by the client
        self.created, self.begun, self.seated = (asyncio.Event() for _ in range(3))
        self.turn = asyncio.Lock()  # a frame or an event is told to its end before the next
        self.ready = False
        self.pushed = self.frames_before = 0  # since then: frames sent to it, answered before
        self.codec_in, self.codec_out = make_codec("audio/pcm"), make_codec("audio/pcm")
        self.early: list[np.ndarray] = []  # audio that waits for the slot
        self.items: dict[str, dict[str, Any]] = {}
        self.item_bytes: dict[str, int] = {}
        self.last_item: str | None = None
        self.responses: dict[str, Response] = {}  # by their items
        self.response: Response | None = None  # in progress
        self.waiting: deque[Response] = deque()  # whose texts are said after it
        self.speaking: set[int] = set()  # ids of texts that are being said
        self.recent: deque[np.ndarray] = deque(maxlen=PRE_ROLL_FRAMES)
        self.hushed = 0  # frames after a cancel in which what still sounds is dropped
        self.question: str | None = None  # a text of the user, to be answered
        self.heard_seconds = self.committed_seconds = 0.0  # of the user's audio
        self.stale_seconds = self.created_at = 0.0  # of audio, from before `session.created`
        self.user_speaks = False
        self.user_item: str | None = None  # that is being spoken
        self.wordless: str | None = None  # the last one committed, where words are still to come
        self.words: list[str] = []  # of the user, that belong to no item yet
        self.words_told, self.words_seconds = "", 0.0
        self.live_until = self.heard_at = self.framed_at = float("-inf")

    async def _start_tasks(self, group: asyncio.TaskGroup) -> None:
        group.create_task(self._receive())
        group.create_task(self._send())
        group.create_task(self._watch_client())
        group.create_task(self._watch_time(group))

    def _note(self, error: EndError) -> None:
        if self.session:
            self.session.end_reason = error.prefix.rstrip(": ") or type(error).__name__

    def _let_go(self) -> None:
        if self.line:
            self.service.ghosts.release(self.line)

    async def _watch_client(self) -> None:
        """While the model wakes up nothing is read, so nobody can be missed."""
        await self.created.wait()
        await self._watch_line()

    async def _watch_time(self, group: asyncio.TaskGroup) -> None:
        """Before the conversation begins: the server may end, and nobody may wait for ever."""
        opened = time.monotonic()
        while not self.begun.is_set():
            self.service.check_open()
            if time.monotonic() - opened > self.service.limits.session_s:
                raise TimeLimitError("no conversation has begun; send audio")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self.begun.wait()
        group.create_task(self.live.watch(self.service.limits))
        group.create_task(self._keep_time())

    def _begin(self) -> Session:
        """The conversation, from the first event on that needs it."""
        if self.session is None:
            settings = self.settings
            config = SessionConfig(
                text_prompt=settings.instructions if self.told else None,
                voice=self._find_voice(settings.voice),
                sampling=SamplingConfig(text_temperature=settings.temperature),
            )
            self.session = self.service.session(config)
            self.session.open()
            self.line = self.service.ghosts.enter(self.session, settings.format_in)
            self.service.enter(self.session)
            self.begun.set()
        return self.session

    @property
    def live(self) -> Session:
        """The conversation that has begun."""
        assert self.session, "nothing has needed a conversation yet"
        return self.session

    def _find_voice(self, name: str) -> str:
        """A voice of ours, by its own or OpenAI's name; "": the server's.

        Raises BadParameterError.
        """
        service = self.service
        ours = OPENAI_VOICES.get(name, name)
        known = ours == name or ours in service.voices
        return choose_voice(ours if name and known else None, service.default_voice, service.voices)

    def _name_voice(self, error: BadParameterError, settings: Settings) -> VoiceError:
        """An error about a voice's file, in the client's words: it may know it by another name."""
        ours = self._find_voice(settings.voice)
        theirs = settings.voice or ours
        text = Exception.__str__(error).replace(f"voice {ours} ", f"voice {theirs} ", 1)
        return VoiceError(text, settings.voice_at)

    @property
    def hears(self) -> bool:
        """Whether the user's turns come in words."""
        if self.session and self.session.director:
            return self.session.transcribes
        ears = self.service.ears
        written = ears is not None and ears.write_down is not None
        return written or self.service.scheduler.backend.transcribes

    def _keep_live(self, seconds: float = LIVE_SECONDS) -> None:
        """Let time go on for these seconds, whether the client sends audio or not."""
        self.live_until = max(self.live_until, time.monotonic() + seconds)

    async def _keep_time(self) -> None:
        """A model that hears needs something to hear: silence, where the client sends nothing.

        Without it a client that has pressed its button, or has sent a file, would get no answer.
        """
        silence, due = np.zeros(FRAME_SAMPLES, np.float32), time.monotonic()
        while True:
            due = max(due + FRAME_SECONDS, time.monotonic() - FRAME_SECONDS)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            lives = now < self.live_until or self.response is not None
            if self.ready and lives and now - self.heard_at > GAP_SECONDS and self._is_heard_out:
                self.live.push_audio(silence)
                self.pushed += 1

    # -- from the client ---------------------------------------------------------------------------

    async def _receive(self) -> None:
        """Handle events until the client leaves. Raises ClientLeftError then."""
        await self.created.wait()
        turned = time.monotonic()
        while True:
            message = await self.ws.receive()
            self.silence.note()
            if self.session:
                self.session.touch()
            samples, cost = 0, 1.0
            match message.type:
                case WSMsgType.TEXT:
                    cost, samples = await self._handle(message.data)
                case WSMsgType.BINARY:
                    error = RequestError("send events as JSON text messages", code="invalid_json")
                    await self._refuse(error)
                    cost = COMMAND_COST + len(message.data) / BYTES_PER_MESSAGE
                case WSMsgType.PING:
                    await self._pong(message.data)
                case WSMsgType.PONG:
                    pass
                case _:
                    raise ClientLeftError
            turned = await self._keep_pace(cost, samples, turned)

    async def _handle(self, text: str) -> tuple[float, int]:
        """Carry out one event; for how many messages it counts, and its samples of audio."""
        size = len(text)
        if size > MAX_EVENT_BYTES:
            raise TooFastError(
                f"an event has {size} bytes; send at most {MAX_EVENT_BYTES}", "a large message"
            )
        event, cost = Fields({}), find_cost(size)
        try:
            if size > MAX_TEXT_BYTES and text.count(",") > MAX_COMMAS:
                raise RequestError(f"an event of {size} bytes has too many values; send audio only")
            event = read_event(text)
            kind = event.string("type")
            if kind == "input_audio_buffer.append":
                cost = max(1.0, size / BYTES_PER_MESSAGE)
                return cost, await self._on_append(event)
            if kind not in HANDLERS:
                raise event.refuse("type", f"is {kind[:60]!r}, which is no event of this server")
            if size > MAX_TEXT_BYTES and kind != "conversation.item.create":
                raise RequestError(f"the event has {size} bytes; send at most {MAX_TEXT_BYTES}")
            async with self.turn:
                cost += await HANDLERS[kind](self, event) or 0
        except EndError:
            raise
        except EngineError as error:
            await self._refuse(error, find_event_id(event))
        return cost, 0

    async def _on_session_update(self, event: Fields) -> float:
        before = self.settings
        after = before.update(event.object("session"), self._find_voice)
        cost = 0.0
        if self.session:
            await self.seated.wait()
            changes: dict[str, Any] = {}
            if after.instructions != before.instructions:
                changes["text_prompt"] = after.instructions
            voice = self._find_voice(after.voice)
            if voice != self._find_voice(before.voice):
                changes["voice"] = voice
            if changes:
                await self._change_role(changes, after)
                cost = RESTART_COST
            if after.temperature != before.temperature:
                self.session.tune({"text_temperature": after.temperature})
        self.told |= after.instructions != before.instructions
        if after.format_in != before.format_in:
            self.codec_in = make_codec(after.format_in)
        if after.format_out != before.format_out:
            self.codec_out = make_codec(after.format_out)
        self.settings = after
        size = await self._tell("session.updated", session=self._show_session())
        return cost + size / BYTES_PER_MESSAGE

    async def _change_role(self, changes: dict[str, Any], after: Settings) -> None:
        """Begin anew as somebody else. Raises RequestError, and then nothing has changed."""
        try:
            await self.live.change_role(changes)
        except BadParameterError as error:  # all but the voice's file was looked at before
            named = self._name_voice(error, after)
            raise RequestError(Exception.__str__(named), named.param) from None
        self.ready = False  # at once: the next `Ready` may come while something is sent
        self.speaking.clear()
        await self._finish("cancelled", "client_cancelled")

    async def _on_append(self, event: Fields) -> int:
        return await self._hear(event.audio("audio"), "audio")

    async def _hear(self, payload: bytes, place: str) -> int:
        """Take the user's audio; how many samples of 24 kHz it is. place: its field."""
        if not payload:
            return 0  # it needs no conversation
        samples, parts = 0, self.codec_in.decode(payload)
        try:
            first = next(parts, None)  # it tells whether they are audio
        except BadAudioError as error:
            name = self.settings.format_in
            what = error.told.replace("pcm16", FORMATS[name] if self.beta else name)
            fix = "send raw samples of 16 bits, 24 kHz, mono: an even number of bytes"
            raise RequestError(f"{place} is {what}; {fix}", place) from None
        session = self._begin()
        self.heard_at = time.monotonic()
        self._keep_live()
        for part in () if first is None else itertools.chain((first,), parts):
            samples += len(part)
            if self._is_stale(len(part) / SAMPLE_RATE):
                self.service.metrics.dropped(len(part) / FRAME_SAMPLES, Dropped.EARLY)
            elif self.ready:
                self._push(session, part)
            else:
                self.early.append(part)
            if len(part) == SAMPLE_RATE:  # a whole part: there may be more
                await asyncio.sleep(0)
        self.heard_seconds += samples / SAMPLE_RATE
        if sum(map(len, self.early)) > MAX_BURST_SECONDS * SAMPLE_RATE:
            raise TooFastError(f"more than {MAX_BURST_SECONDS:.0f} s of audio wait for a slot")
        return samples

    def _is_stale(self, seconds: float) -> bool:
        """Whether audio was said to a model that was still loading: it comes at once after it."""
        talked = time.monotonic() - self.created_at
        ahead = self.heard_seconds + seconds - talked
        if self.stale_seconds <= 0 or ahead <= JITTER_SECONDS or talked > AT_ONCE_SECONDS:
            return False
        self.stale_seconds -= seconds
        return True

    def _push(self, session: Session, pcm: np.ndarray) -> None:
        metrics = self.service.metrics
        began = metrics.clock()
        frames = session.push_audio(pcm)
        self.pushed += frames
        metrics.took(Stage.DECODE, *[metrics.clock() - began] * frames)

    async def _on_commit(self, _event: Fields) -> None:
        if self.heard_seconds - self.committed_seconds < LEAST_COMMIT_SECONDS:
            raise RequestError(
                "the buffer holds less than 100 ms of audio that is not committed; append some",
                code="input_audio_buffer_commit_empty",
            )
        self._begin()
        self._keep_live()
        await self._commit()

    async def _commit(self) -> None:
        """What the user has said so far is an item."""
        self.committed_seconds = self.heard_seconds
        item_id, self.user_item = self.user_item or make_id("item"), None
        fields = {"item_id": item_id, "previous_item_id": self.last_item}
        await self._tell("input_audio_buffer.committed", **fields)
        content = [{"type": "input_audio", "transcript": None}]
        item = {"id": item_id, "type": "message", "role": "user", "content": content}
        await self._add_item(item, "completed")
        self.wordless = item_id
        if self.words:
            await self._complete_words()

    async def _on_clear(self, _event: Fields) -> None:
        """What the model has heard it cannot forget; what waits is dropped."""
        self.early.clear()
        self.committed_seconds = self.heard_seconds
        await self._tell("input_audio_buffer.cleared")

    async def _on_item_create(self, event: Fields) -> None:
        item = event.object("item")
        kind, role = item.get("type"), item.get("role")
        if kind != "message":
            why = f"is {str(kind)[:40]!r}; this model takes a 'message' only"
            raise item.refuse("type", why, "unsupported_value")
        if role not in ("user", "assistant", "system"):
            why = f"is {str(role)[:40]!r}; use user, assistant or system"
            raise item.refuse("role", why)
        item_id = item.string("id") if item.get("id") else make_id("item")
        if len(item_id) > MAX_ID_CHARS:
            raise item.refuse("id", f"has more than {MAX_ID_CHARS} characters")
        if item_id in self.items:
            raise item.refuse("id", "is another item's", "item_create_duplicate_item_id")
        content = read_content(item)
        if len(json.dumps(content.shown)) > MAX_ITEM_BYTES:
            raise item.refuse("content", f"has texts of more than {MAX_ITEM_BYTES} bytes")
        for part in content.audio if role == "user" else ():
            await self._hear(part, item.place("content"))
        if role == "user" and content.texts:
            self.question = " ".join(content.texts)
        message = {"id": item_id, "type": "message", "role": role, "content": content.shown}
        await self._add_item(message, "completed")

    async def _add_item(self, item: dict[str, Any], status: str) -> None:
        before, self.last_item = self.last_item, item["id"]
        item = {"object": "realtime.item", "status": status, **item}
        self.items[item["id"]] = item
        self.item_bytes[item["id"]] = len(json.dumps(item["content"]))
        while len(self.items) > MAX_ITEMS or sum(self.item_bytes.values()) > MAX_ITEMS_BYTES:
            self._forget_item(next(iter(self.items)))
        await self._tell("conversation.item.added", item=item, previous_item_id=before)
        if status != "in_progress":
            await self._tell("conversation.item.done", item=item, previous_item_id=before)

    def _forget_item(self, item_id: str) -> None:
        del self.items[item_id], self.item_bytes[item_id]
        self.responses.pop(item_id, None)

    def _find_item(self, event: Fields, verb: str) -> dict[str, Any]:
        item = self.items.get(event.string("item_id"))
        if item is None:
            raise event.refuse("item_id", "names no item", f"item_{verb}_invalid_item_id")
        return item

    async def _on_item_truncate(self, event: Fields) -> None:
        """The client has heard no more of it: its transcript ends there."""
        item, end = self._find_item(event, "truncate"), event.get("audio_end_ms")
        if not isinstance(end, int | float) or isinstance(end, bool) or not 0 <= end < MAX_MS:
            raise event.refuse("audio_end_ms", "must be milliseconds, 0 or more")
        if event.get("content_index") not in (None, 0):
            raise event.refuse("content_index", "must be 0: an item has one part")
        response = self.responses.get(item["id"])
        if response and response is not self.response:  # one in progress goes on
            response.said = [(at, text) for at, text in response.said if at < end]
            for part in item["content"]:
                part["transcript"] = response.transcript()
        fields = {"item_id": item["id"], "content_index": 0, "audio_end_ms": end}
        await self._tell("conversation.item.truncated", **fields)

    async def _on_item_delete(self, event: Fields) -> None:
        item = self._find_item(event, "delete")
        self._forget_item(item["id"])
        if self.wordless == item["id"]:
            self.wordless = None
        await self._tell("conversation.item.deleted", item_id=item["id"])

    async def _on_item_retrieve(self, event: Fields) -> float:
        item = self._find_item(event, "retrieve")
        return await self._tell("conversation.item.retrieved", item=item) / BYTES_PER_MESSAGE

    async def _on_response_create(self, event: Fields) -> None:
        """Say the text that was given, or look a user's text up.

        Without either the response is what the model says next by itself.
        """
        wanted = event.object("response")
        refuse_the_unable(wanted)
        response = Response(event_id=find_event_id(event), metadata=wanted.kept("metadata"))
        text, question = self._find_text(wanted, response)
        session = self._begin()
        if not (session.routing and session.routing.on):
            question = ""  # nobody reads it: the model takes no text
        if self.response and not (text or question):
            raise RequestError(
                f"{self.response.id} is in progress; wait for its response.done",
                code="conversation_already_has_active_response",
            )
        if len(self.waiting) >= MAX_WAITING:
            raise RequestError(f"{MAX_WAITING} responses wait; create them slower")
        self._keep_live()
        if text:
            response.say_id = session.say(text)
        elif question:
            try:
                session.ask(question)
            except RefusedError as error:
                place = wanted.place("input") if wanted.get("input") else None
                raise RequestError(str(error).removeprefix("ask: "), place) from None
            response.patience = LOOKUP_PATIENCE_FRAMES
        else:
            response.patience = PATIENCE_FRAMES
        self.question = None
        if self.response:
            self.waiting.append(response)
        else:
            await self._create(response)

    def _find_text(self, wanted: Fields, response: Response) -> tuple[str, str]:
        """(what is to be said, what is to be looked up). The response learns its text's field.

        Raises RequestError.
        """
        said: list[str] = []
        asked = [self.question] if self.question else []
        for item in wanted.objects("input"):
            if item.get("type") == "item_reference":  # what the conversation holds, it knows
                continue
            if item.get("type") != "message":
                why = f"is {str(item.get('type'))[:40]!r}; this model takes a 'message' only"
                raise item.refuse("type", why, "unsupported_value")
            content = read_content(item)
            if content.audio:
                why = "has audio; send it by input_audio_buffer.append"
                raise item.refuse("content", why, "unsupported_value")
            if item.get("role") == "assistant":
                said += content.texts
                response.said_at = wanted.place("input")
            else:
                asked += content.texts
        if wanted.get("instructions"):
            instructions = wanted.string("instructions")
            # Some clients put the session's before it (LiveKit): nobody wants these to be said.
            said.append(instructions.removeprefix(self.settings.instructions).strip())
            response.said_at = wanted.place("instructions")
        text = " ".join(said).strip()
        if len(text) > MAX_SAY_CHARS:
            why = f"{response.said_at} has {len(text)} characters to be said; send at most 2000"
            raise RequestError(why, response.said_at)
        return text, " ".join(asked).strip()

    async def _on_response_cancel(self, event: Fields) -> None:
        response, wanted = self.response, event.get("response_id")
        if not response or (wanted and wanted != response.id):
            raise RequestError(
                "Cancellation failed: no active response found", None, "response_cancel_not_active"
            )
        await self._stop()

    async def _on_output_clear(self, _event: Fields) -> None:
        response_id = self.response.id if self.response else ""
        if self.response:
            await self._stop()
        await self._tell("output_audio_buffer.cleared", response_id=response_id)

    async def _stop(self) -> None:
        """Be silent now; nothing more of this response is sent."""
        self.live.post(ev.EndTurn())
        self.hushed = HUSH_FRAMES
        await self._finish("cancelled", "client_cancelled")

    # -- to the client -----------------------------------------------------------------------------

    async def _send(self) -> None:
        """Tell the client that it may begin; once it has, tell it all until its session ends."""
        opened = time.monotonic()
        while self.service.waking is not None:
            self.service.check_open()
            await asyncio.sleep(LOOK_SECONDS / 4)
        self.created_at = time.monotonic()
        waited = self.created_at - opened
        self.stale_seconds = waited if waited > LONG_WAKE_SECONDS else 0.0
        await self._tell("session.created", session=self._show_session())
        if self.beta:
            conversation = {"id": self.conversation_id, "object": "realtime.conversation"}
            await self._tell("conversation.created", conversation=conversation)
        self.created.set()
        await self.begun.wait()
        try:
            await self._converse(self.live)
        except BadParameterError as error:  # all but the voice's file was looked at before
            raise self._name_voice(error, self.settings) from None

    async def _converse(self, session: Session) -> None:
        """Take a slot, and send everything that the session brings, until it ends."""
        await self.service.connect(session)
        self.seated.set()
        async for output in session.outputs():
            match output:
                case Ready():
                    self._start()
                case Notice(events):
                    async with self.turn:
                        for event in events:
                            await self._on_event(event)
                case Frame():
                    async with self.turn:
                        await self._on_frame(output)

    def _start(self) -> None:
        """The model hears from now on, first what the user has said meanwhile."""
        self.ready, self.pushed, self.framed_at = True, 0, time.monotonic()
        self.frames_before = self.live.frames_out
        early, self.early = self.early, []
        for part in early:
            self._push(self.live, part)

    @property
    def _is_heard_out(self) -> bool:
        """Whether the model has taken all that it was sent."""
        answered = self.live.frames_out - self.frames_before
        if answered < self.pushed and time.monotonic() - self.framed_at > 5 * GAP_SECONDS:
            self.pushed = answered  # some were dropped
        return answered >= self.pushed

    async def _on_frame(self, frame: Frame) -> None:
        session, self.framed_at = self.live, time.monotonic()
        # More than it was sent: silence was taken for what was missing.
        self.pushed = max(self.pushed, session.frames_out - self.frames_before)
        await self._note_user()
        texts = []
        for event in frame.events:
            if isinstance(event, ev.Text):
                texts.append(event.text)
            else:
                await self._on_event(event)
        sounds = bool(texts) or bool(np.abs(frame.pcm).max() > AUDIBLE)
        if self.hushed:
            self.hushed = self.hushed - 1 if sounds else 0
            sounds, texts = False, []
        await self._speak(frame.pcm, texts, sounds)
        now, metrics = session.clock(), self.service.metrics
        metrics.took(Stage.SEND, now - frame.ready_at)
        session.late_frames += metrics.sent(max(0.0, now - frame.due_at))

    async def _speak(self, pcm: np.ndarray, texts: list[str], sounds: bool) -> None:
        """One frame of the agent: it begins, continues or ends a response."""
        if sounds and self.response is None:
            await self._create(Response())
        response = self.response
        if response is None:
            self.recent.append(pcm)
            return
        if not response.begun:
            response.waited += 1
            if not sounds:
                self.recent.append(pcm)
                if response.patience and response.waited > response.patience:
                    await self._finish()
                return
            await self._announce(response)
            for before in self.recent:
                await self._send_audio(response, before)
        self.recent.clear()
        for text in texts:
            response.said.append((response.ms, text))
            await self._tell_part("response.output_audio_transcript.delta", response, delta=text)
        await self._send_audio(response, pcm)
        response.quiet = 0 if sounds else response.quiet + 1
        response.tail += bool(response.ending)
        most = SAID_QUIET_FRAMES if response.ending else QUIET_FRAMES
        if (response.quiet >= most and not self.speaking) or response.tail >= SAID_TAIL_FRAMES:
            await self._finish()

    async def _on_event(self, event: ev.Event) -> None:
        match event:
            case ev.Saying(id, SayState.SPEAKING):
                self.speaking.add(id)
                await self._take_up(id)
            case ev.Saying(id, SayState.DONE):
                self.speaking.discard(id)
                await self._note_end(id, "completed")
            case ev.Saying(id, SayState.CANCELLED):
                self.speaking.discard(id)
                await self._note_end(id, "cancelled", "turn_detected")
            case ev.UserText():
                await self._note_words(event)
            case ev.Refused(message, id):
                await self._note_refusal(message, id)

    async def _take_up(self, say_id: int) -> None:
        """A text begins: if it has a response of its own, the one before it is over."""
        if wanted := self._pop_waiting(say_id):
            self.waiting.appendleft(wanted)
            await self._finish()

    async def _note_end(self, say_id: int, status: str, reason: str = "") -> None:
        """A text is said, cut or refused: its response ends when the agent is quiet."""
        response = self.response
        if response and response.say_id == say_id:
            response.ending, response.reason = status, reason
            if not response.begun:
                await self._finish()
        elif wanted := self._pop_waiting(say_id):
            await self._tell("response.created", response=self._show_response(wanted))
            wanted.status, wanted.reason = status, reason
            await self._tell("response.done", response=self._show_response(wanted))

    async def _note_refusal(self, message: str, say_id: int) -> None:
        """What the conversation could not carry out: a text that is not said, or a command."""
        ours = [self.response] if self.response else []
        known = next((r for r in (*ours, *self.waiting) if say_id and r.say_id == say_id), None)
        text = message.removeprefix("say: ").removeprefix("ask: ")
        if known is None:
            return await self._refuse(RequestError(text))
        await self._refuse(RequestError(text, known.said_at), known.event_id)
        await self._note_end(say_id, "failed")

    def _pop_waiting(self, say_id: int) -> Response | None:
        """The response that waits for a text of this id."""
        wanted = next((response for response in self.waiting if response.say_id == say_id), None)
        if wanted:
            self.waiting.remove(wanted)
        return wanted

    async def _create(self, response: Response) -> None:
        self.response = response
        await self._tell("response.created", response=self._show_response(response))

    async def _announce(self, response: Response) -> None:
        """There is something to hear: the item and its part."""
        response.begun = True
        item = {"id": response.item_id, "type": "message", "role": "assistant", "content": []}
        shown = {"object": "realtime.item", "status": "in_progress", **item}
        fields = {"response_id": response.id, "output_index": 0}
        await self._tell("response.output_item.added", **fields, item=shown)
        self.responses[response.item_id] = response
        response.before = self.last_item
        await self._add_item(item, "in_progress")
        part = {"type": "audio", "transcript": ""}
        await self._tell_part("response.content_part.added", response, part=part)

    async def _send_audio(self, response: Response, pcm: np.ndarray) -> None:
        data = base64.b64encode(self.codec_out.encode(pcm)).decode()
        response.ms += FRAME_SECONDS * 1000
        await self._tell_part("response.output_audio.delta", response, delta=data)

    async def _finish(self, status: str = "", reason: str = "") -> None:
        """The response in progress is over; one that waits may begin. status "": as its text is."""
        response, self.response = self.response, None
        if response is None:
            return
        if status:
            response.ending, response.reason = status, reason
        response.status = response.ending or "completed"
        if response.begun:
            said = response.transcript()
            await self._tell_part("response.output_audio.done", response)
            await self._tell_part(
                "response.output_audio_transcript.done", response, transcript=said
            )
            part = {"type": "audio", "transcript": said}
            await self._tell_part("response.content_part.done", response, part=part)
            item = self._end_item(response)
            fields = {"response_id": response.id, "output_index": 0}
            await self._tell("response.output_item.done", **fields, item=item)
            before = response.before
            await self._tell("conversation.item.done", item=item, previous_item_id=before)
        await self._tell("response.done", response=self._show_response(response))
        if self.waiting:
            await self._create(self.waiting.popleft())

    def _end_item(self, response: Response) -> dict[str, Any]:
        kind = "audio" if self.beta else "output_audio"
        item = self.items.get(response.item_id, {"id": response.item_id})
        item.update(
            object="realtime.item",
            type="message",
            role="assistant",
            status="completed" if response.status == "completed" else "incomplete",
            content=[{"type": kind, "transcript": response.transcript()}],
        )
        return item

    # -- what the user does ------------------------------------------------------------------------

    async def _note_user(self) -> None:
        """The user has begun to speak, or has stopped."""
        speaks = self.live.director.floor.speaking
        if speaks == self.user_speaks:
            return
        self.user_speaks = speaks
        if self.settings.manual:
            return
        ms = int(self.live.seconds_out * 1000)
        if speaks:
            self.user_item = make_id("item")
            start = max(0, ms - int(START_LOUD * FRAME_SECONDS * 1000))
            fields = {"audio_start_ms": start, "item_id": self.user_item}
            await self._tell("input_audio_buffer.speech_started", **fields)
        elif self.user_item:
            fields = {"audio_end_ms": ms, "item_id": self.user_item}
            await self._tell("input_audio_buffer.speech_stopped", **fields)
            await self._commit()
            self._keep_live()

    async def _note_words(self, turn: ev.UserText) -> None:
        """The words of the user's turn so far: what is new of them, or all of them at its end."""
        if self.settings.transcription is None:
            return
        item_id = self.user_item or self.wordless
        if item_id and turn.text.startswith(self.words_told) and turn.text != self.words_told:
            fields = {"item_id": item_id, "delta": turn.text.removeprefix(self.words_told)}
            name = "conversation.item.input_audio_transcription.delta"
            await self._tell(name, **fields, content_index=0)
            self.words_told = turn.text
        if not turn.final:
            return
        self.words_told, self.words_seconds = "", max(0.0, turn.end - turn.start)
        self.words.append(turn.text)
        if self.wordless:
            await self._complete_words()

    async def _complete_words(self) -> None:
        """The words are those of the last item of the user."""
        item_id, words = self.wordless, " ".join(self.words)
        self.wordless = None
        self.words.clear()
        if item := self.items.get(item_id or ""):
            item["content"] = [{"type": "input_audio", "transcript": words}]
        fields = {"item_id": item_id, "content_index": 0, "transcript": words}
        usage = {"type": "duration", "seconds": self.words_seconds}
        name = "conversation.item.input_audio_transcription.completed"
        await self._tell(name, **fields, usage=usage)

    # -- messages ----------------------------------------------------------------------------------

    def _show_session(self) -> dict[str, Any]:
        return self.settings.show(self.id, self.service.model, self._voice, self.hears, self.beta)

    @property
    def _voice(self) -> str:
        """The voice as the client knows it."""
        return self.settings.voice or self._find_voice("")

    def _show_response(self, response: Response) -> dict[str, Any]:
        over = response.status != "in_progress"
        details: dict[str, Any] | None = None
        if response.status == "failed":
            details = {"type": "failed", "error": REFUSED}
        elif response.reason and over:
            details = {"type": response.status, "reason": response.reason}
        shown = {
            "object": "realtime.response",
            "id": response.id,
            "conversation_id": self.conversation_id,
            "status": response.status,
            "status_details": details,
            "output": [self._end_item(response)] if over and response.begun else [],
            "metadata": response.metadata,
            "usage": None,
        }
        fmt = self.settings.format_out
        if self.beta:
            return shown | {
                "modalities": ["text", "audio"],
                "voice": self._voice,
                "output_audio_format": FORMATS[fmt],
                "temperature": self.settings.temperature,
                "max_output_tokens": "inf",
            }
        audio = {"output": {"format": show_format(fmt), "voice": self._voice}}
        return shown | {"output_modalities": ["audio"], "audio": audio, "max_output_tokens": "inf"}

    async def _tell_part(self, name: str, response: Response, **fields: Any) -> None:
        place = {"response_id": response.id, "item_id": response.item_id}
        await self._tell(name, **place, output_index=0, content_index=0, **fields)

    async def _tell(self, name: str, **fields: Any) -> int:
        """Send an event; its bytes."""
        name = BETA_NAMES.get(name, name) if self.beta else name
        if not name:
            return 0
        event = {"type": name, "event_id": make_id("event"), **fields}
        data = json.dumps(event)  # ASCII: a client may send half a character
        await self._send_text(data)
        return len(data)

    async def _refuse(self, error: EngineError, event_id: Any = None) -> None:
        await self._send_text(encode_error(error, event_id))

    async def _send_text(self, data: str) -> None:
        self.unread.written += len(data)
        await self.ws.send_str(data)


def find_cost(size: int) -> float:
    """For how many messages an event of these bytes counts; what is more than a text is audio."""
    text = min(size, MAX_TEXT_BYTES)
    return COMMAND_COST + text / LETTERS_PER_MESSAGE + (size - text) / BYTES_PER_MESSAGE


def read_event(text: str) -> Fields:
    """An event of a client. Raises RequestError."""
    try:
        event = parse_event(text)
    except ValueError:
        raise RequestError("this is not JSON", code="invalid_json") from None
    except RecursionError:
        raise RequestError("this JSON is nested too deep", code="invalid_json") from None
    if not isinstance(event, dict):
        raise RequestError("an event is an object with a `type`", "type", "invalid_type")
    return Fields(event)


def find_event_id(event: Fields) -> str | None:
    """The id that a client has given its event, if it can be told again."""
    event_id = event.get("event_id")
    return event_id if isinstance(event_id, str) and len(event_id) <= MAX_ID_CHARS else None


HANDLERS: dict[str, Callable[[RealtimeSocket, Fields], Awaitable[float | None]]] = {
    "session.update": RealtimeSocket._on_session_update,
    "input_audio_buffer.commit": RealtimeSocket._on_commit,
    "input_audio_buffer.clear": RealtimeSocket._on_clear,
    "conversation.item.create": RealtimeSocket._on_item_create,
    "conversation.item.truncate": RealtimeSocket._on_item_truncate,
    "conversation.item.delete": RealtimeSocket._on_item_delete,
    "conversation.item.retrieve": RealtimeSocket._on_item_retrieve,
    "response.create": RealtimeSocket._on_response_create,
    "response.cancel": RealtimeSocket._on_response_cancel,
    "output_audio_buffer.clear": RealtimeSocket._on_output_clear,
}
