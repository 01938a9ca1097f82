"""What the conversations of one process share: the backend once it is loaded, personas, limits.

Loading runs in a thread of its own, so that the port is open and `/healthz` tells the phase while
the model wakes up. Another thread prepares long texts for all conversations.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from engine.config import VOICE_NAMES
from engine.dialogue import events as ev
from engine.dialogue.persona import Persona, load_personas
from engine.dialogue.resume import GHOST_SECONDS, Ghosts
from engine.dialogue.session import Limits, Mail, Session, SessionConfig
from engine.dialogue.speech import prepare_phrase
from engine.dialogue.text import prepare
from engine.errors import BusyError, ClosingError, InternalError, ModelError
from engine.lookup.handover import bang_table
from engine.lookup.routing import Answers
from engine.runtime.backend import Backend
from engine.runtime.ears import Ears
from engine.runtime.metrics import Metrics
from engine.runtime.scheduler import STOPPED, Scheduler, Watchdog, describe_place

logger = logging.getLogger(__name__)

GOODBYE = "the server is being stopped or updated; reconnect in a minute"
CLOSE_SECONDS = 5.0  # for the last messages to leave

Progress = Callable[[str, float], None]  # phase, percent
Load = Callable[[Progress], Backend]
LoadEars = Callable[[Progress, Backend], tuple[Ears | None, str]]  # ... and what is heard, in words


@dataclass(frozen=True, slots=True)
class Waking:
    """How far loading is."""

    phase: str = "starting"
    percent: float = 0.0


class Service:
    """One process's shared things. Made in any thread; sessions belong to one event loop."""

    def __init__(
        self,
        load: Load,
        model: str = "embedded",
        limits: Limits | None = None,
        personas: tuple[Persona, ...] | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        answers: Answers | None = None,
        load_ears: LoadEars | None = None,
        hang_s: float = 30.0,
        load_hang_s: float = 600.0,
        resume_s: float = 30.0,
    ) -> None:
        self.model = model  # what was asked for; the backend's own name once it is there
        self.limits = limits or Limits()
        self.personas = personas or load_personas()
        self.default_voice = VOICE_NAMES[0]
        self.answers = answers  # None: nothing is looked up for anybody
        self.metrics = Metrics()
        self.waking: Waking | None = Waking()  # None: warm
        self.closing = False
        self.ears: Ears | None = None  # of this CPU, where the model has no recogniser
        self.hears = "energy only"  # for people
        self._load, self._load_ears = load, load_ears
        self.on_death = on_death
        self._scheduler: Scheduler | None = None
        self._started = False
        self._warm = threading.Event()
        self._loader = threading.Thread(target=self._wake_up, name="loader", daemon=True)
        self._reports = 0  # of progress, while it loads
        self._hang_s = hang_s
        self._load_watch = Watchdog(load_hang_s, 2, self._list_signs, self._end_load)
        self._failure: BaseException | None = None
        self.failed = ""  # why it will never be warm, in the words of who runs the server
        self.sessions: set[Session] = set()
        self.mail = Mail()
        self.ghosts = Ghosts(resume_s, self.leave, self.metrics)
        self.preparer = ThreadPoolExecutor(1, "texts")  # one: it must not crowd out the frames
        self._nobody = asyncio.Event()  # set when the last session has left

    def start(self) -> None:
        """Load in a thread; returns at once. Again: nothing."""
        if not self._started:
            self._started = True
            self._loader.start()
            self._load_watch.start()

    def _wake_up(self) -> None:
        try:
            backend = self._load(self._progress)
            with contextlib.suppress(ImportError):  # a bare GPU machine, where nothing is spelled
                prepare("1", backend.tokenizer)  # the rules by which numbers are spelled
            if self.answers:  # what a conversation would otherwise have to wait for
                bang_table(backend.tokenizer)
                for text in self.answers.phrases.spoken:
                    prepare_phrase(text, backend.tokenizer)
                if self.answers.on:
                    for router in (self.answers.router, *self.answers.routers.values()):
                        _ = router.knowledge.index  # else a question makes it, in the event loop
                    self.answers.prepare()  # decisions are by words until vectors are there
            if self._load_ears:
                self.ears, self.hears = self._load_ears(self._progress, backend)
                logger.info("hears: %s", self.hears)
            self._scheduler = Scheduler(
                backend,
                self.metrics,
                on_death=self._died,
                hang_s=self._hang_s,
                send=self.mail.send,
            )
        except Exception as error:  # the thread's boundary: the process's owner must know
            self._failure = error
            self._warm.set()
            self._load_watch.stop()
            return self._died(error)
        self._scheduler.start()
        self.model = backend.name
        self.waking = None
        self._warm.set()
        self._load_watch.stop()
        logger.info("model %s is warm: %d slots", backend.name, backend.slots)

    def _died(self, error: BaseException) -> None:
        """The loader's or the scheduler's thread ended; the process's owner decides."""
        if self.on_death:
            self.on_death(error)

    def _progress(self, phase: str, percent: float) -> None:
        self._reports += 1
        self.waking = Waking(phase, round(percent, 1))

    def _list_signs(self) -> list[tuple[str, int | None]]:
        waking = self.waking or Waking()
        what = f"no progress of {waking.phase!r} in {describe_place(self._loader)}"
        return [(what, None if self._warm.is_set() else self._reports)]

    def _end_load(self, why: str) -> None:
        """Watchdog's thread: the load hangs; who waits for it hears so, and the process's owner."""
        self._failure = ModelError(why)
        self._warm.set()
        self._died(self._failure)

    @property
    def stuck(self) -> str:
        """What has stood still for so long that it may hang, and how long; "": nothing."""
        return self._scheduler.watchdog.stuck if self._scheduler else self._load_watch.stuck

    @property
    def hung(self) -> bool:
        """Whether something hangs or was left behind when it was to end: the process has to end."""
        return self._load_watch.hung or bool(self._scheduler and self._scheduler.watchdog.hung)

    def wait(self, timeout: float | None = None) -> None:
        """Block until the backend is warm. Raises what loading raised."""
        self._warm.wait(timeout)
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """Stop the scheduler; what is live ends. What hangs is left behind; `hung` tells."""
        self.preparer.shutdown(wait=False, cancel_futures=True)
        self._load_watch.stop()
        if self._scheduler:
            self._scheduler.stop()
        if self.ears:
            self.ears.close()

    @property
    def scheduler(self) -> Scheduler:
        """The running scheduler. Raises BusyError while the model loads."""
        if self._scheduler is None:
            raise BusyError("the model is waking up; retry in 5 s")
        return self._scheduler

    @property
    def voices(self) -> tuple[str, ...]:
        return self._scheduler.backend.voices if self._scheduler else VOICE_NAMES

    @property
    def slots(self) -> int:
        return self._scheduler.backend.slots if self._scheduler else 0

    @property
    def limited_by(self) -> str:
        return self._scheduler.backend.limited_by if self._scheduler else ""

    @property
    def free(self) -> int:
        return self._scheduler.free if self._scheduler else 0

    def session(self, config: SessionConfig) -> Session:
        """Raises ClosingError once the server is going down."""
        self.check_open()
        return Session(self, config)

    async def connect(self, session: Session) -> None:
        """Give a session a slot. A conversation whose line has dropped makes way within 5 s.

        Raises BusyError, BadParameterError.
        """
        until = time.monotonic() + GHOST_SECONDS
        while True:
            try:
                return session.connect()
            except BusyError:
                if not self._scheduler or not self._scheduler.admits_instead():
                    raise
                if not await self.ghosts.make_room(until):
                    raise

    def check_open(self) -> None:
        """Raises ClosingError once the server is going down, InternalError if it has failed."""
        if self.hung:
            raise InternalError(STOPPED)
        if self.failed:
            raise InternalError(f"the server cannot start: {self.failed}")
        if self.closing:
            raise ClosingError(GOODBYE)

    async def drain(self, grace_s: float) -> None:
        """Admit nobody, announce the end, and end what still talks after the grace."""
        self.closing = True
        self.ghosts.give_up_all()
        for session in self.sessions:
            session.announce(ev.Closing("the server is being stopped or updated", grace_s))
        await self._wait_until_empty(grace_s)
        for session in self.sessions:
            session.finish(ClosingError(GOODBYE))
        await self._wait_until_empty(CLOSE_SECONDS)
        if self.answers:
            await self.answers.answerer.close()

    def enter(self, session: Session) -> None:
        self.sessions.add(session)
        self._nobody.clear()

    def leave(self, session: Session) -> None:
        self.sessions.discard(session)
        if not self.sessions:
            self._nobody.set()

    async def _wait_until_empty(self, seconds: float) -> None:
        if self.sessions:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nobody.wait(), seconds)
