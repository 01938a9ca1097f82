"""One conversation as its socket sees it: PCM and commands in, outputs out, limits kept.

Runs on asyncio and knows no web framework. All its state lives here, in its seat and in its
director, so that another socket can go on with it (`resume.py`). `CommandLine` prepares texts on
their way to the director; `SessionVoice` is how a routed question makes this agent hold and speak.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.config import FRAME_SECONDS, SAMPLE_RATE, SamplingConfig
from engine.dialogue import events as ev
from engine.dialogue.director import Director
from engine.dialogue.events import SayState
from engine.dialogue.floor import UserFloor
from engine.dialogue.persona import find_persona, prompt_ids
from engine.dialogue.speech import QUEUE_FULL, QUEUE_LIMIT, prepare_command
from engine.errors import (
    EndError,
    IdleError,
    RefusedError,
    TimeLimitError,
    TooFastError,
    logged_fault,
)
from engine.lookup.question import Route
from engine.lookup.routing import Routing
from engine.runtime.backend import Opening, Tokenizer
from engine.runtime.metrics import Dropped, Metrics
from engine.runtime.scheduler import Scheduler
from engine.runtime.seat import Ended, Frame, Notice, Output, Ready, Seat
from engine.weights.voices import choose_voice

if TYPE_CHECKING:
    from engine.dialogue.service import Service

logger = logging.getLogger(__name__)

MAX_SAY_CHARS = 2000
MAX_UNREAD_SECONDS = 5.0  # of agent audio that a client has not read
MAX_BURST_SECONDS = 30.0  # of user audio ahead of real time
LONG_WAIT_SECONDS = 5.0  # for the handshake: what is sent at once after it may be older than it
AT_ONCE_SECONDS = 5.0  # after the handshake, in which such audio comes
JITTER_SECONDS = 1.0  # ahead of real time; in that case what is more is older
MAX_WAITING_COMMANDS = 64  # for the handshake, or for a text before them
MOMENT = 0.01  # of a frame: what rounding may take from a client's count of seconds
REST_SECONDS = 1e-4  # between two words of a long text: the scheduler's thread must not wait
SHORT_CHARS = 100  # at most 3 ms to prepare, even digits: the event loop may do that itself
WATCH_SECONDS = 1.0
KEPT_FRAMES = 300  # 24 s of what was sent: a dead line is noticed after 20 s
WARNING_SECONDS = 30.0  # before the time limit, a `closing` event


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What a client asked for (docs/api.md)."""

    text_prompt: str | None = None  # None: the default persona; "": none
    voice: str | None = None  # None: the default voice
    seed: int = -1  # -1: random
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    routing: bool | None = None  # None: as the server and the persona say
    transcribe: bool = True  # write down the user, where there is a recogniser


@dataclass(frozen=True, slots=True)
class Limits:
    """When a session ends by itself, in seconds."""

    unheard_s: float = 60.0  # no message at all
    silence_s: float = 300.0  # neither user speech nor anything said
    session_s: float = 1800.0


class Session:
    """One conversation. Use as `async with`; everything but `outputs` returns at once."""

    def __init__(self, engine: "Service", config: SessionConfig) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.config = config
        self.frames_out = 0  # agent frames handed out
        self.late_frames = 0  # of them, sent too late
        self.lost_lines = 0
        self.end_reason = "left"
        self.director: Director | None = None
        self._engine = engine
        self._sampling = config.sampling
        self._opening: Opening | None = None
        self._scheduler: Scheduler | None = None  # once connected
        self._seat: Seat | None = None
        self._line = CommandLine(engine.preparer, self._refuse, self.finish)
        self._waiting_texts: set[int] = set()  # say ids of the client's that nobody speaks yet
        self._open_texts: dict[int, str] = {}  # queued or spoken: a client waits for their end
        self._outbox: asyncio.Queue[Output] = asyncio.Queue()
        self._again: deque[Output] = deque()  # to be sent before it: a line has dropped
        self._early: list[Notice] = []  # what came before the handshake
        self._sent: deque[tuple[int, Output]] = deque()  # of late, with the frames before each
        self._in_hand = False  # the last of them may not have been sent
        self._frozen = False  # its line has dropped
        self._goes_on = False  # at once when the next line is there; else a restart is under way
        self._unread_frames = 0
        self._new_say_id = itertools.count(1).__next__
        self._heard_seconds = 0.0  # since the handshake, of all that the client sent
        self._early_seconds = 0.0  # of audio that the client may have kept while it waited for it
        self._dropped_early = False
        self._handshake_at: float | None = None  # None: not yet, or a restart waits for it
        self._started = self._touched = self._active_at = time.monotonic()
        self._waiting_since = self._started  # for the handshake
        self._unread = False  # there was too much that the client had not read, a second ago
        self._over = False
        self.routing: Routing | None = None
        if engine.answers:
            voice = SessionVoice(
                self.post, self.announce, self._new_say_id, engine.metrics,
                frozenset(engine.answers.phrases.spoken),
            )  # fmt: skip
            facts, watches = self._find_facts(config)
            self.routing = Routing(engine.answers, voice, config.routing, facts, watches)
            if self.routing.on and watches:
                engine.answers.router_of(facts).prepare()

    def _find_facts(self, config: SessionConfig) -> tuple[str, bool]:
        """Where its persona looks things up, and whether it does so by itself."""
        persona = self._engine.personas[0]
        if config.text_prompt is not None:
            persona = find_persona(config.text_prompt, self._engine.personas)
        watches = bool(config.routing or (persona and persona.looks_up))
        return persona.facts if persona else "", watches

    async def __aenter__(self) -> "Session":
        self.open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.leave()  # first, so that no slow answerer keeps the slot from the next one
        await self.close()

    def open(self) -> None:
        """Belong to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def leave(self) -> None:
        """Give the slot back. A second call does nothing."""
        if self._seat and not self._over:
            self._over = True
            self._line.clear()
            self._scheduler.leave(self._seat, self.end_reason)
            seconds, frames = time.monotonic() - self._started, self.frames_out
            lost = f", lines lost: {self.lost_lines}" if self.lost_lines else ""
            line = "session %s closed (%s): %.1f s, %d agent frames%s"
            logger.info(line, self.id, self.end_reason, seconds, frames, lost)

    async def close(self) -> None:
        """After `leave`: give up what is on its way."""
        if self.routing:
            await self.routing.close()

    def connect(self) -> None:
        """Take a slot; the engine must be ready. Raises BusyError, BadParameterError."""
        self._scheduler = self._engine.scheduler
        backend = self._scheduler.backend
        ears = self._engine.ears if self.config.transcribe and not backend.transcribes else None
        listener = ears.open(self._take_words) if ears else None
        has_words = listener is not None and ears.write_down is not None
        transcribe = self.config.transcribe and (backend.transcribes or has_words)
        self._opening = self._make_opening(self.config, transcribe)
        self.director = self._new_director()
        seat = self._seat = self._scheduler.join(
            self._opening, self.director, self._deliver, listener
        )
        self._line.open(seat.post, backend.tokenizer)
        if self.routing:
            self.routing.transcribes = self.transcribes
        self._started = time.monotonic()
        logger.info("session %s opened: slot %d, voice %s", self.id, seat.slot, self.voice)

    def _make_opening(self, config: SessionConfig, transcribe: bool) -> Opening:
        """Any thread. Raises BadParameterError."""
        backend, persona = self._scheduler.backend, config.text_prompt
        if persona is None:
            persona = self._engine.personas[0].text
        return Opening(
            voice=choose_voice(config.voice, self._engine.default_voice, backend.voices),
            text_ids=prompt_ids(persona, backend.tokenizer),
            sampling=self._sampling,
            seed=config.seed if config.seed >= 0 else secrets.randbits(62),
            transcribe=transcribe,
        )

    def _new_director(self) -> Director:
        backend = self._scheduler.backend
        recogniser = backend.transcription if self.transcribes and backend.transcribes else None
        floor = UserFloor(recogniser, words_come=self.transcribes)
        if not self.routing:
            return Director(backend.tokenizer, floor=floor)
        own = self.routing.own_words(backend.tokenizer)
        return Director(backend.tokenizer, own, floor, self.routing.new_id)

    @property
    def clock(self) -> Callable[[], float]:
        return self._scheduler.clock

    @property
    def transcribes(self) -> bool:
        """Whether the user's turns come in words."""
        return self._opening is not None and self._opening.transcribe

    @property
    def voice(self) -> str:
        assert self._opening, "connect first"
        return self._opening.voice

    @property
    def sits(self) -> bool:
        """Whether the slot is this conversation's: no question is put for who has left it."""
        return self._seat is not None and not self._seat.left

    # -- from the client ---------------------------------------------------------------------------

    def touch(self) -> None:
        self._touched = time.monotonic()

    def push_audio(self, pcm: np.ndarray) -> int:
        """Take user samples [n] float32, 24 kHz; how many frames they complete.

        Audio from before the handshake is dropped: what comes before it, and what a client kept
        while it waited long and sends at once after it. Raises TooFastError beyond 30 s ahead of
        real time since then, by the client's own pace.
        """
        seconds = len(pcm) / SAMPLE_RATE
        if self._handshake_at is None:
            return self._drop_early(seconds)
        talked = time.monotonic() - self._handshake_at
        ahead = self._heard_seconds + seconds - talked
        if ahead > JITTER_SECONDS and self._early_seconds > 0 and talked < AT_ONCE_SECONDS:
            self._early_seconds -= seconds
            return self._drop_early(seconds)
        self._heard_seconds += seconds
        if ahead > MAX_BURST_SECONDS:
            raise TooFastError(
                f"audio is {ahead:.0f} s ahead of real time; send at most "
                f"{MAX_BURST_SECONDS:.0f} s ahead"
            )
        return self._seat.push_audio(pcm, self._scheduler.clock())

    def _drop_early(self, seconds: float) -> int:
        self._engine.metrics.dropped(seconds / FRAME_SECONDS, Dropped.EARLY)
        if not self._dropped_early:
            self._dropped_early = True
            logger.info("session %s: audio older than the handshake is dropped", self.id)
        return 0

    def _note_handshake(self) -> None:
        """The client is told to talk: its pace and its idle time count from now on."""
        now = self._handshake_at = self._touched = self._active_at = time.monotonic()
        waited = now - self._waiting_since
        self._early_seconds = waited if waited > LONG_WAIT_SECONDS else 0.0
        self._heard_seconds = 0.0

    def say(self, text: str, replace: bool = False) -> int:
        """Queue a text to be spoken; its id. Raises RefusedError if it is empty or too long.

        A queue that is full refuses before the text is prepared; the refusal is an output.
        """
        if not text.strip():
            raise RefusedError("say: the text is empty; send 1 to 2000 characters")
        if len(text) > MAX_SAY_CHARS:
            raise RefusedError(f"say: the text has {len(text)} characters; send 1 to 2000")
        say_id = self._new_say_id()
        if len(self._waiting_texts) >= QUEUE_LIMIT and not replace:
            self.post(ev.Refuse(QUEUE_FULL))
            return say_id
        self.post(ev.Say(say_id, text, replace=replace))
        self._waiting_texts.add(say_id)
        self._open_texts[say_id] = text
        return say_id

    def ask(self, text: str) -> None:
        """Put a question to the answerer. Raises RefusedError where there is none."""
        if not self.routing:
            raise RefusedError("ask: smart routing is off on this server; use say")
        self.routing.ask(text)

    def tune(self, changes: dict[str, Any], routing: bool | None = None) -> None:
        """Change settings from the next tick on. Raises ConfigError."""
        if routing is not None and self.routing:
            self.config = replace(self.config, routing=routing)
            self.routing.switch(routing)
        self._sampling = replace(self._sampling, **changes)
        if self._seat:
            self._scheduler.tune(self._seat, self._sampling)

    async def change_role(self, changes: dict[str, Any]) -> None:
        """Restart with another persona, voice or seed; the rest stays as it was.

        changes: fields of SessionConfig. Raises EngineError, and then nothing has changed: the new
        prompt and the voice's files are looked at beside the frames, before anything ends.
        """
        if not self._opening:
            raise RefusedError("restart: there is nothing to restart yet; wait for 0x00")
        config, run = replace(self.config, **changes), asyncio.get_running_loop().run_in_executor
        make = partial(self._make_opening, config, self.transcribes)
        opening = await run(self._engine.preparer, make)
        if "seed" not in changes:
            opening = replace(opening, seed=self._opening.seed)
        await asyncio.wrap_future(self._scheduler.prepare(opening))
        self.config, self._opening = config, opening
        if self.routing:
            self.routing.take_role(*self._find_facts(config))
        self.restart()

    def restart(self) -> None:
        """The same persona, voice and seed from the beginning; `Ready` comes again."""
        self._line.clear()
        self._waiting_texts.clear()
        for say_id, text in self._open_texts.items():
            self.announce(ev.Saying(say_id, SayState.CANCELLED, text))
        self._open_texts.clear()
        self._sent.clear()
        self._in_hand = False
        if self._seat:
            self._handshake_at, self._waiting_since = None, time.monotonic()
            self.director = self._new_director()
            self._opening = replace(self._opening, sampling=self._sampling)
            self._scheduler.restart(self._seat, self._opening, self.director)
        if self.routing:
            self.routing.drop("restart")

    def post(self, command: ev.Command) -> None:
        """Hand a command to the director, after those before it. Raises RefusedError.

        Before the handshake it waits.
        """
        self._line.post(command)
        match command:
            case ev.Cancel() | ev.EndTurn() | ev.Say(replace=True):
                self._waiting_texts.clear()  # the director will drop them

    def _refuse(self, command: ev.Command, message: str) -> None:
        """A command that had to wait is not carried out."""
        if isinstance(command, ev.Say):
            self._waiting_texts.discard(command.id)
            self._open_texts.pop(command.id, None)
        self.announce(ev.Refused(message))

    # -- to the client -----------------------------------------------------------------------------

    def _deliver(self, outputs: list[Output]) -> None:
        """Scheduler's thread: outputs go to the event loop with those of other conversations."""
        self._engine.mail.put(self._loop, self._receive, outputs)

    def _take_words(self, text: str, start: float, end: float, final: bool) -> None:
        """The ears' thread: a turn of the user is written down; final: it is over."""
        if not self._loop.is_closed():
            turn = ev.UserText(text, start, end, final, pause=not final)
            self._loop.call_soon_threadsafe(self._post_words, turn)

    def _post_words(self, turn: ev.UserText) -> None:
        """A full inbox is a client's own flood; it loses its words."""
        with contextlib.suppress(RefusedError):
            self.post(turn)

    def _receive(self, outputs: list[Output]) -> None:
        for output in outputs:
            self._outbox.put_nowait(output)
            self._unread_frames += isinstance(output, Frame)
            for event in output.events if isinstance(output, Notice | Frame) else ():
                match event:
                    case ev.Saying(id, SayState.QUEUED, text):
                        self._open_texts[id] = text
                    case ev.Saying(id, SayState.DONE):
                        self._open_texts.pop(id, None)
                match event:
                    case ev.TakenUp(id) | ev.Saying(id, SayState.CANCELLED) | ev.Refused(_, id):
                        self._waiting_texts.discard(id)
                        if not isinstance(event, ev.TakenUp):
                            self._open_texts.pop(id, None)
                if self.routing and self.sits:
                    note_event(self.routing, event, self._engine.metrics)

    def freeze(self) -> None:
        """Its line has dropped: not a frame passes until `outputs` is asked again. Again: nothing.

        Lookups that are on their way go on, and their answers wait.
        """
        if self._seat and not self._frozen:
            self._frozen, self._goes_on = True, self._handshake_at is not None
            self._handshake_at, self._waiting_since = None, time.monotonic()
            self._scheduler.freeze(self._seat)

    def _thaw(self, heard: float | None) -> None:
        """Go on, first with what did not reach the client.

        heard: seconds of agent audio that it has; None: all that was sent.
        """
        again: list[Output] = []
        if self._goes_on:
            if heard is None:
                kept = [self._sent[-1]] if self._in_hand else []
            else:
                first = int(heard / FRAME_SECONDS + MOMENT)
                kept = [(before, output) for before, output in self._sent if before >= first]
            for _ in kept:
                self._sent.pop()
            if kept:
                self.frames_out = kept[0][0]
            again += [Ready(), *(output for _, output in kept)]
        again += self._again  # this line's own, which has dropped while they were sent
        while not self._outbox.empty():
            again.append(self._outbox.get_nowait())
        self._frozen = self._goes_on = self._in_hand = False
        self._unread_frames, now = 0, self._scheduler.clock()
        self._scheduler.thaw(self._seat)
        self._again = deque(
            replace(output, due_at=now, ready_at=now) if isinstance(output, Frame) else output
            for output in again
        )

    async def outputs(self, heard: float | None = None) -> AsyncIterator[Output]:
        """Everything for the client, in order. Raises the EndError that ends the session.

        After a dropped line it begins with `Ready`, and goes on with what was not sent.
        heard: seconds of agent audio that the client has; what is kept of the rest comes again.
        """
        ready = self._frozen and self._goes_on
        if self._frozen:
            self._thaw(heard)
        while True:
            if self._again:
                await asyncio.sleep(0)  # there may be many: others have a turn between them
                output = self._again.popleft()
            else:
                output = await self._outbox.get()
                self._unread_frames -= isinstance(output, Frame)
            if isinstance(output, Ended):
                raise output.error
            if isinstance(output, Notice) and not ready:  # nothing is said before the handshake
                self._early.append(output)
                continue
            if not ready and not isinstance(output, Ready):
                continue  # it is older than a restart
            self._note_sent(output)
            if isinstance(output, Frame):
                self.frames_out += 1
                said = any(isinstance(event, ev.Text) for event in output.events)
                if said or self.director.floor.speaking or self.director.wants_frames:
                    self._active_at = time.monotonic()
            if isinstance(output, Ready):
                self._note_handshake()
            yield output
            self._in_hand = False
            if isinstance(output, Ready):
                ready = True
                self._again.extendleft(reversed(self._early))
                self._early.clear()

    def _note_sent(self, output: Output) -> None:
        """Keep it for a while: its line may be dead already."""
        if isinstance(output, Ready) or not self._engine.ghosts.keep_s:
            return
        self._in_hand = True
        self._sent.append((self.frames_out, output))
        while self._sent[0][0] < self.frames_out - KEPT_FRAMES:
            self._sent.popleft()

    def announce(self, event: ev.Event) -> None:
        """Put an event of no frame among the outputs. Event loop only."""
        self._outbox.put_nowait(Notice([event]))

    def finish(self, error: EndError) -> None:
        """End the session with this reason. Event loop only."""
        self._outbox.put_nowait(Ended(error))

    @property
    def seconds_out(self) -> float:
        return self.frames_out * FRAME_SECONDS

    @property
    def context_used(self) -> float:
        """How much of the model's memory this conversation fills, 0 to 1."""
        return self._scheduler.backend.context_used(self._seat.slot) if self.sits else 0.0

    async def watch(self, limits: Limits) -> None:
        """Raise the EndError of the first limit that is reached."""
        warned = False
        while True:
            slept_at = time.monotonic()
            await asyncio.sleep(WATCH_SECONDS)
            self._forgive(time.monotonic() - slept_at - WATCH_SECONDS)
            left = self._started + limits.session_s - time.monotonic()
            if self._seat and left < WARNING_SECONDS and not warned:
                warned = True
                self.announce(ev.Closing("time limit", round(max(0.0, left), 1)))
            if error := self._limit_reached(limits, time.monotonic()):
                raise error

    def _forgive(self, lag: float) -> None:
        """This server was frozen: what waits since then waits for us and not for the client."""
        if lag > WATCH_SECONDS:
            self._touched += lag
            self._active_at += lag
            self._unread = False

    def _limit_reached(self, limits: Limits, now: float) -> EndError | None:
        unread = self._unread_frames * FRAME_SECONDS
        # Twice in a row: in the second between them all of it was offered to a socket that drains.
        before, self._unread = self._unread, unread > MAX_UNREAD_SECONDS
        if before and self._unread:
            return TooFastError(f"{unread:.0f} s of agent audio wait to be read; read faster")
        if not self._seat:
            return None
        if now - self._started > limits.session_s:
            return TimeLimitError(f"a conversation lasts at most {limits.session_s / 60:g} minutes")
        if self._handshake_at is None or self.director.wants_frames:
            return None
        if now - self._touched > limits.unheard_s:
            return IdleError(f"nothing was received for {limits.unheard_s:g} s; send audio or 0x06")
        if now - self._active_at > limits.silence_s:
            return IdleError(f"nobody has spoken for {limits.silence_s / 60:g} minutes")
        return None


class Mail:
    """Outputs from the scheduler's thread to the event loop, which is woken once for many."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, Callable, list[Output]]] = deque()
        self._lock = threading.Lock()

    def put(
        self,
        loop: asyncio.AbstractEventLoop,
        receive: Callable[[list[Output]], None],
        outputs: list[Output],
    ) -> None:
        """Keep outputs for `receive` until `send`. Any thread."""
        with self._lock:
            self._waiting.append((loop, receive, outputs))

    def send(self) -> None:
        """Hand out what was put, in order. Any thread."""
        while self._waiting:
            with self._lock:
                waiting, self._waiting = self._waiting, deque()
            for loop in {loop: None for loop, *_ in waiting}:  # one, where one server runs
                mine = [entry for entry in waiting if entry[0] is loop]
                if not loop.is_closed():
                    loop.call_soon_threadsafe(hand_out, mine)


def hand_out(mail: list[tuple[asyncio.AbstractEventLoop, Callable, list[Output]]]) -> None:
    """Event loop."""
    for _, receive, outputs in mail:
        try:
            receive(outputs)
        except Exception:  # one conversation's fault must not reach its neighbours
            logged_fault("outputs were lost")


class CommandLine:
    """Keeps a conversation's commands in order while texts are prepared. Event loop only.

    A short text is prepared at once. A long one is prepared by the executor, and the commands after
    it wait: a cancel must not overtake the text that it cancels. Before `open` all of them wait.
    """

    def __init__(
        self,
        executor: Executor,
        refuse: Callable[[ev.Command, str], None],
        end: Callable[[EndError], None],
    ) -> None:
        self._executor, self._refuse, self._end = executor, refuse, end
        self._waiting: deque[ev.Command] = deque()
        self._preparing: asyncio.Future[ev.Command] | None = None  # the first of them
        self._deliver: Callable[[ev.Command], None] | None = None  # raises RefusedError
        self._tokenizer: Tokenizer | None = None

    def open(self, deliver: Callable[[ev.Command], None], tokenizer: Tokenizer) -> None:
        """The director is there: from now on commands go to `deliver`."""
        self._deliver, self._tokenizer = deliver, tokenizer
        self._send()

    def post(self, command: ev.Command) -> None:
        """Raises RefusedError when 64 commands are waiting."""
        if len(self._waiting) >= MAX_WAITING_COMMANDS:
            slower, early = "are waiting; send them slower", "wait for the conversation to begin"
            what = slower if self._deliver else early
            raise RefusedError(f"{MAX_WAITING_COMMANDS} commands {what}")
        if self._deliver and not self._waiting and _count_chars(command) <= SHORT_CHARS:
            self._deliver(prepare_command(command, self._tokenizer))
        else:
            self._waiting.append(command)
            self._send()

    def clear(self) -> None:
        """Drop what waits, also in the executor: others wait behind it there."""
        self._waiting.clear()
        preparing, self._preparing = self._preparing, None
        if preparing:
            preparing.cancel()

    def _send(self) -> None:
        """Deliver what waits, up to the first text that takes too long to prepare here."""
        chars = 0
        while self._deliver and self._waiting and not self._preparing:
            chars += _count_chars(self._waiting[0])
            if chars > SHORT_CHARS:
                rest = partial(time.sleep, REST_SECONDS)
                self._preparing = asyncio.get_running_loop().run_in_executor(
                    self._executor, prepare_command, self._waiting[0], self._tokenizer, rest
                )
                self._preparing.add_done_callback(self._take_prepared)
            else:
                self._deliver_now(prepare_command(self._waiting.popleft(), self._tokenizer))

    def _take_prepared(self, prepared: asyncio.Future[ev.Command]) -> None:
        if prepared is not self._preparing or prepared.cancelled():
            return  # void: the line was cleared, or the server stops
        self._preparing = None
        self._waiting.popleft()
        try:
            command = prepared.result()
        except Exception:  # one text's fault ends its own conversation
            self._end(logged_fault("a text could not be prepared"))
            return
        self._deliver_now(command)
        self._send()

    def _deliver_now(self, command: ev.Command) -> None:
        """The client's call has returned long ago: a refusal is an output."""
        try:
            self._deliver(command)
        except RefusedError as error:
            self._refuse(command, str(error))


def _count_chars(command: ev.Command) -> int:
    """Of a text still to be prepared; our own phrases were prepared at the start."""
    match command:
        case ev.Say(text=text, fixed=False) | ev.More(text=text):
            return len(text)
    return 0


@dataclass(frozen=True, slots=True)
class SessionVoice:
    """How a routed question makes the agent hold and speak (`AgentVoice` of lookup/question.py).

    A full inbox must not end an answer half-way: the director's time-outs do.
    """

    post: Callable[[ev.Command], None]  # raises RefusedError
    announce: Callable[[ev.Event], None]
    new_say_id: Callable[[], int]
    metrics: Metrics
    fixed: frozenset[str] = frozenset()  # texts that were prepared at the start

    def refuse(self, message: str) -> None:
        self.announce(ev.Refused(message))

    def watch(self, on: bool) -> None:
        self._post(ev.SetRouting(on))

    def show(self, route: Route) -> None:
        self.metrics.routed(route.source, route.state)
        self.announce(route)

    def hold(self, id: int, fillers: tuple[str, ...], apology: str, announced: bool) -> None:
        said = tuple(ev.Say(self.new_say_id(), text) for text in fillers)
        self._post(ev.Hold(id, said, ev.Say(self.new_say_id(), apology), announced))

    def hold_back(self, id: int) -> None:
        self._post(ev.HoldBack(id))

    def release(self, id: int) -> None:
        self._post(ev.Release(id))

    def say(self, text: str, answer: int = 0, growing: bool = False) -> int:
        say_id = self.new_say_id()
        fixed = text in self.fixed
        self._post(ev.Say(say_id, text, growing=growing, answer=answer, fixed=fixed))
        return say_id

    def add(self, say_id: int, text: str, last: bool = False) -> None:
        self._post(ev.More(say_id, text, last))

    def _post(self, command: ev.Command) -> None:
        with contextlib.suppress(RefusedError):
            self.post(command)


def note_event(routing: Routing, event: ev.Event, metrics: Metrics) -> None:
    match event:
        case ev.Text(text):
            routing.note_agent_text(text)
        case ev.UserText(text, start, end, final=True):
            routing.note_turn(text, start, end)
        case ev.UserText(text, start, end, pause=True):
            routing.note_pause(text, start)
        case ev.Triggered(id, source):
            routing.hand_over(id, source)
        case ev.MarkerIgnored():
            metrics.marker_ignored()
        case ev.HoldEnded(id, end):
            routing.note_hold_end(id, end)
        case ev.Saying(id, SayState.DONE, parts=parts):
            routing.note_said(id, parts)
        case ev.Saying(id, SayState.CANCELLED):
            routing.note_cut(id)
