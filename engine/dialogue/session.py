"""One conversation as its socket sees it: PCM and commands in, outputs out, limits kept.

Runs on asyncio and knows no web framework. All its state lives here, in its seat and in its
director; a dropped session is gone.
"""

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.config import FRAME_SECONDS, SAMPLE_RATE, SamplingConfig
from engine.dialogue import events as ev
from engine.dialogue.director import Director
from engine.dialogue.floor import Transcript
from engine.dialogue.persona import prompt_ids
from engine.errors import EndError, IdleError, RefusedError, TimeLimitError, TooFastError
from engine.lookup.question import Hooks, Routing
from engine.runtime.backend import Opening
from engine.runtime.seat import Ended, Frame, Notice, Output, Ready, Seat
from engine.weights.voices import choose_voice

if TYPE_CHECKING:
    from engine.dialogue.service import Service

logger = logging.getLogger(__name__)

MAX_SAY_CHARS = 2000
MAX_UNREAD_SECONDS = 5.0  # of agent audio that a client has not read
MAX_BURST_SECONDS = 30.0  # of user audio ahead of real time
MAX_EARLY_COMMANDS = 64  # before the handshake
WATCH_SECONDS = 1.0
WARNING_SECONDS = 30.0  # before the time limit, a `closing` event


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What a client asked for (wire.md 2)."""

    text_prompt: str | None = None  # None: the default persona; "": none
    voice: str | None = None  # None: the default voice
    seed: int = -1  # -1: random
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    routing: bool | None = None  # None: the server's default
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
        self.director: Director | None = None
        self._engine = engine
        self._sampling = config.sampling
        self._opening: Opening | None = None
        self._seat: Seat | None = None
        self._early: list[ev.Command] = []
        self._outbox: asyncio.Queue[Output] = asyncio.Queue()
        self._unread_frames = 0
        self._say_ids = 0
        self._heard_seconds = 0.0
        self._started = self._touched = self._active_at = time.monotonic()
        self.end_reason = "left"
        hooks = Hooks(self.post, self.announce, self._new_say_id, engine.metrics)
        self.routing = engine.answers and Routing(engine.answers, hooks, config.routing)

    async def __aenter__(self) -> "Session":
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._seat:  # first, so that no slow answerer keeps the slot from the next one
            self._engine.scheduler.leave(self._seat, self.end_reason)
            seconds, frames = time.monotonic() - self._started, self.frames_out
            line = "session %s closed (%s): %.1f s, %d agent frames"
            logger.info(line, self.id, self.end_reason, seconds, frames)
        if self.routing:
            await self.routing.close()

    def connect(self) -> None:
        """Take a slot; the engine must be ready. Raises BusyError, BadParameterError."""
        backend, persona = self._engine.scheduler.backend, self.config.text_prompt
        if persona is None:
            persona = self._engine.personas[0].text
        self._opening = Opening(
            voice=choose_voice(self.config.voice, self._engine.default_voice, backend.voices),
            text_ids=prompt_ids(persona, backend.tokenizer),
            sampling=self._sampling,
            seed=self.config.seed if self.config.seed >= 0 else secrets.randbits(62),
            transcribe=backend.transcribes and self.config.transcribe,
        )
        self.director = self._new_director()
        seat = self._engine.scheduler.join(self._opening, self.director, self._deliver)
        for command in self._early:
            seat.post(command)
        self._seat = seat
        if self.routing:
            self.routing.transcribes = self.transcribes
        self._heard_seconds = 0.0  # what came before the clock started does not count as ahead
        self._started = self._active_at = time.monotonic()
        logger.info("session %s opened: slot %d, voice %s", self.id, seat.slot, self.voice)

    def _new_director(self) -> Director:
        backend = self._engine.scheduler.backend
        own = self.routing and self.routing.own_words(backend.tokenizer)
        floor = Transcript(backend.transcription if self.transcribes else None)
        return Director(backend.tokenizer, own, floor)

    @property
    def transcribes(self) -> bool:
        """Whether the user's words are written down here."""
        return self._opening is not None and self._opening.transcribe

    @property
    def voice(self) -> str:
        assert self._opening, "connect first"
        return self._opening.voice

    @property
    def _sits(self) -> bool:
        """Whether the slot is this conversation's: no question is put for who has left it."""
        return self._seat is not None and not self._seat.left

    # -- from the client ---------------------------------------------------------------------------

    def touch(self) -> None:
        """A message came, whatever its kind."""
        self._touched = time.monotonic()

    def hear(self, pcm: np.ndarray) -> int:
        """User samples [n] float32, 24 kHz; how many frames they complete. Raises TooFastError."""
        self._heard_seconds += len(pcm) / SAMPLE_RATE
        ahead = self._heard_seconds - (time.monotonic() - self._started)
        if ahead > MAX_BURST_SECONDS:
            raise TooFastError(
                f"audio is {ahead:.0f} s ahead of real time; send at most "
                f"{MAX_BURST_SECONDS:.0f} s ahead"
            )
        return self._seat.push_audio(pcm, self._engine.scheduler.clock()) if self._seat else 0

    def say(self, text: str, replace: bool = False) -> int:
        """Queue a text to be spoken; its id. Raises RefusedError if it is empty or too long."""
        if not text.strip():
            raise RefusedError("say: the text is empty; send 1 to 2000 characters")
        if len(text) > MAX_SAY_CHARS:
            raise RefusedError(f"say: the text has {len(text)} characters; send 1 to 2000")
        say_id = self._new_say_id()
        self.post(ev.Say(say_id, text, replace=replace))
        return say_id

    def _new_say_id(self) -> int:
        self._say_ids += 1
        return self._say_ids

    def ask(self, text: str) -> None:
        """Put a question to the answerer. Raises RefusedError where there is none."""
        if not self.routing:
            raise RefusedError("ask: smart routing is off on this server; use say")
        self.routing.ask(text)

    def tune(self, changes: dict[str, Any], routing: bool | None = None) -> None:
        """Change settings from the next tick on. Raises ConfigError."""
        if routing is not None and self.routing:
            self.routing.switch(routing)
        self._sampling = replace(self._sampling, **changes)
        if self._seat:
            self._engine.scheduler.tune(self._seat, self._sampling)

    def restart(self) -> None:
        """The same persona, voice and seed from the beginning; `Ready` comes again."""
        self._early.clear()
        if self._seat:
            self.director = self._new_director()
            self._opening = replace(self._opening, sampling=self._sampling)
            self._engine.scheduler.restart(self._seat, self._opening, self.director)
        if self.routing:
            self.routing.drop("restart")

    def post(self, command: ev.Command) -> None:
        """Hand a command to the director; before the handshake it waits. Raises RefusedError."""
        if self._seat:
            self._seat.post(command)
        elif len(self._early) >= MAX_EARLY_COMMANDS:
            raise RefusedError(f"{MAX_EARLY_COMMANDS} commands wait for the handshake already")
        else:
            self._early.append(command)

    # -- to the client -----------------------------------------------------------------------------

    def _deliver(self, outputs: list[Output]) -> None:
        """Scheduler's thread: hand outputs to the event loop."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._receive, outputs)

    def _receive(self, outputs: list[Output]) -> None:
        for output in outputs:
            self._outbox.put_nowait(output)
            self._unread_frames += isinstance(output, Frame)
            if self.routing and self._sits and isinstance(output, Notice | Frame):
                self.routing.note_all(output.events)

    async def outputs(self) -> AsyncIterator[Output]:
        """Everything for the client, in order. Raises the EndError that ends the session."""
        early: list[Notice] = []  # nothing is said before the handshake
        ready = False
        while True:
            output = await self._outbox.get()
            if isinstance(output, Ended):
                raise output.error
            if isinstance(output, Notice) and not ready:
                early.append(output)
                continue
            if isinstance(output, Frame):
                self._unread_frames -= 1
                self.frames_out += 1
                self._note_activity(output)
            yield output
            if isinstance(output, Ready):
                ready = True
                for notice in early:
                    yield notice
                early.clear()

    def _note_activity(self, frame: Frame) -> None:
        said = any(isinstance(event, ev.Text) for event in frame.events)
        if said or self.director.floor.speaking or self.director.wants_frames:
            self._active_at = time.monotonic()

    def announce(self, event: ev.Event) -> None:
        """Put an event of no frame among the outputs. Event loop only."""
        self._outbox.put_nowait(Notice([event]))

    def finish(self, error: EndError) -> None:
        """End the session with this reason. Event loop only."""
        self._outbox.put_nowait(Ended(error))

    @property
    def seconds_out(self) -> float:
        """Seconds of agent audio handed out."""
        return self.frames_out * FRAME_SECONDS

    @property
    def context_used(self) -> float:
        """How much of the model's memory this conversation fills, 0 to 1."""
        return self._engine.scheduler.backend.context_used(self._seat.slot) if self._sits else 0.0

    async def watch(self, limits: Limits) -> None:
        """Raise the EndError of the first limit that is reached."""
        warned = False
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            left = self._started + limits.session_s - time.monotonic()
            if self._seat and left < WARNING_SECONDS and not warned:
                warned = True
                self.announce(ev.Closing("time limit", round(max(0.0, left), 1)))
            if error := self._limit_reached(limits, time.monotonic()):
                raise error

    def _limit_reached(self, limits: Limits, now: float) -> EndError | None:
        unread = self._unread_frames * FRAME_SECONDS
        if unread > MAX_UNREAD_SECONDS:
            return TooFastError(f"{unread:.0f} s of agent audio wait to be read; read faster")
        if not self._seat:
            return None
        if now - self._started > limits.session_s:
            return TimeLimitError(f"a conversation lasts at most {limits.session_s / 60:g} minutes")
        if self.director.wants_frames:
            return None
        if now - self._touched > limits.unheard_s:
            return IdleError(f"nothing was received for {limits.unheard_s:g} s; send audio or 0x06")
        if now - self._active_at > limits.silence_s:
            return IdleError(f"nobody has spoken for {limits.silence_s / 60:g} minutes")
        return None
