"""One question on its way from its trigger to the last word of its answer.

A `Question` is one object with one id, and it lives in the session's event loop. The director knows
nothing of it: it holds under the question's id, and it says texts. Everything that moves a question
is a `Move`; `TRANSITIONS` is the whole table. A move that the table does not have comes too late
and changes nothing. A test walks every edge (tests/lookup/test_question.py).

  NEW ──WAIT──▶ WAITING ──ASK──▶ ASKING ──CLAUSE──▶ ANSWERING ──COMPLETE──▶ FINISHING ──SAID──▶ DONE
    │ │             │             ▲ ▲ │               │ │  ▲                    │
    │ ├─────────────┼─────ASK─────┘ │ │               │ └──┘ CLAUSE             │
    │ │             │               │ │               │                         │
    │ └──WONDER──▶ WONDERING ──ASK──┘ └───────────────┼─────────────────────────┘
    │               │                         GIVE_UP │ FAIL
    └───GIVE_UP─────┤                         STALE ◀─┴─▶ FAILED
                    ▼
                 DROPPED (GIVE_UP of NEW, WAITING and WONDERING; PASS and FAIL of WONDERING)

A question does not decide what is asked: triggers, limits and history stand in `routing.py`.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from typing import Protocol

from engine.lookup.handover import Phrases, Source
from engine.lookup.textmodel import Answerer, AnswerError, Clauses, Messages

logger = logging.getLogger(__name__)

PASS = "PASS"  # the text model's first word where there is nothing to look up
WONDER_SECONDS = 2.5  # after which a doubt is over: the talk has gone on
TRANSCRIPT_SECONDS = 1.0  # how long a hand-over waits for the words of the turn before it
INTERRUPTED = "interrupted"


class RouteState(StrEnum):
    """What a client is told of a question (docs/api.md)."""

    ASKING = "asking"
    ANSWERING = "answering"
    DONE = "done"
    FAILED = "failed"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Route:
    """A question on its way to its answer, as a client is told (docs/api.md)."""

    id: int
    state: RouteState
    question: str
    source: Source
    knowledge: bool = False  # the product's facts were sent along
    reason: str = ""


class HoldEnd(Enum):
    """Why a hold ended without its answer."""

    STALE = auto()  # the user spoke, or the client cancelled
    TIMEOUT = auto()  # nothing came for too long; the agent has apologised
    UNCLAIMED = auto()  # nobody took up the agent's own hand-over


class QuestionState(Enum):
    NEW = auto()  # triggered; after a hand-over the agent holds already
    WAITING = auto()  # for the words of the user's turn; the agent holds
    WONDERING = auto()  # the text model may pass; the agent holds once it would begin to speak
    ASKING = auto()  # the text model is asked; the agent holds
    ANSWERING = auto()  # clauses come and are spoken
    FINISHING = auto()  # all clauses are there; the last ones are still being spoken
    DONE = auto()
    FAILED = auto()
    STALE = auto()
    DROPPED = auto()  # ended before any client was told of it


class Move(Enum):
    WAIT, WONDER, ASK, PASS, CLAUSE, COMPLETE, SAID, FAIL, GIVE_UP = (auto() for _ in range(9))


TRANSITIONS: dict[tuple[QuestionState, Move], QuestionState] = {
    (QuestionState.NEW, Move.WAIT): QuestionState.WAITING,
    (QuestionState.NEW, Move.ASK): QuestionState.ASKING,
    (QuestionState.NEW, Move.GIVE_UP): QuestionState.DROPPED,
    (QuestionState.NEW, Move.WONDER): QuestionState.WONDERING,
    (QuestionState.WONDERING, Move.ASK): QuestionState.ASKING,
    (QuestionState.WONDERING, Move.PASS): QuestionState.DROPPED,
    (QuestionState.WONDERING, Move.FAIL): QuestionState.DROPPED,
    (QuestionState.WONDERING, Move.GIVE_UP): QuestionState.DROPPED,
    (QuestionState.WAITING, Move.ASK): QuestionState.ASKING,
    (QuestionState.WAITING, Move.GIVE_UP): QuestionState.DROPPED,
    (QuestionState.ASKING, Move.CLAUSE): QuestionState.ANSWERING,
    (QuestionState.ASKING, Move.FAIL): QuestionState.FAILED,
    (QuestionState.ASKING, Move.GIVE_UP): QuestionState.STALE,
    (QuestionState.ANSWERING, Move.CLAUSE): QuestionState.ANSWERING,
    (QuestionState.ANSWERING, Move.COMPLETE): QuestionState.FINISHING,
    (QuestionState.ANSWERING, Move.FAIL): QuestionState.FAILED,
    (QuestionState.ANSWERING, Move.GIVE_UP): QuestionState.STALE,
    (QuestionState.FINISHING, Move.SAID): QuestionState.DONE,
    (QuestionState.FINISHING, Move.FAIL): QuestionState.FAILED,
    (QuestionState.FINISHING, Move.GIVE_UP): QuestionState.STALE,
}
UNTOLD = (QuestionState.WAITING, QuestionState.WONDERING)  # no client knows of it yet
FINAL_STATES = set(QuestionState) - {state for state, _ in TRANSITIONS}


class AgentVoice(Protocol):
    """What questions may have their conversation do. Event loop only; nothing waits or raises."""

    def refuse(self, message: str) -> None: ...

    def watch(self, on: bool) -> None: ...

    def show(self, route: Route) -> None: ...

    def hold(self, id: int, fillers: tuple[str, ...], apology: str, announced: bool) -> None:
        """Stay silent until the answer to question `id` comes.

        The fillers are said while nothing comes, the apology when nothing will. announced: the
        agent has said by itself that it looks.
        """

    def hold_back(self, id: int) -> None:
        """Stay silent from the moment at which the agent would begin to speak; no fillers."""

    def release(self, id: int) -> None:
        """No answer will come for this hold. What was only held back goes on at once."""

    def say(self, text: str, answer: int = 0, growing: bool = False) -> int:
        """Say a text; its id. answer: the hold that it ends. growing: `add` brings more of it."""

    def add(self, say_id: int, text: str, last: bool = False) -> None:
        """The next part of a growing text; `last` closes it."""


async def put(answerer: Answerer, compose: Callable[[], Messages]) -> AsyncIterator[str]:
    """Pieces of the answer as they come. Raises AnswerError."""
    messages = await asyncio.to_thread(compose)
    async with contextlib.aclosing(answerer.stream(messages)) as pieces:
        async for piece in pieces:
            yield piece


class EarlyAnswer:
    """An answer asked for before it is known that the user's turn is over.

    Nobody is told of it. It is read from its beginning, or closed without a trace.
    """

    def __init__(self, answerer: Answerer, compose: Callable[[], Messages]) -> None:
        self._pieces: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._fetch(answerer, compose))

    async def read(self) -> AsyncIterator[str]:
        """Pieces of the answer: those that have come, then the others. Raises AnswerError."""
        try:
            while (piece := await self._pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        self._task.cancel()

    async def _fetch(self, answerer: Answerer, compose: Callable[[], Messages]) -> None:
        try:
            async with contextlib.aclosing(put(answerer, compose)) as pieces:
                async for piece in pieces:
                    self._pieces.put_nowait(piece)
            self._pieces.put_nowait(None)
        except Exception as error:  # it is raised where the answer is read, if it ever is
            self._pieces.put_nowait(error)


def read_verdict(begun: str) -> bool | None:
    """Whether an answer that begins like this passes; None: that cannot be said yet."""
    word, rest = re.fullmatch(r"\W*(\w*)(.*)", begun, re.DOTALL).groups()
    if rest:
        return word.upper() == PASS
    return None if PASS.startswith(word.upper()) else False


class Question:
    """One routed question."""

    def __init__(
        self, id: int, source: Source, answerer: Answerer, phrases: Phrases, voice: AgentVoice
    ) -> None:
        self.id = id  # of the question, of its hold and of its route events
        self.source = source
        self.state = QuestionState.NEW
        self.say_id = 0  # of the answer; 0: it has not begun
        self._answerer, self._phrases, self._voice = answerer, phrases, voice
        self._route = Route(id, RouteState.ASKING, "", source)
        self._doubted = ("", False)  # what a doubt is about, and whether the facts cover it
        self._parts = 0  # of the answer, given to the agent so far
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task | None = None

    @property
    def is_over(self) -> bool:
        return self.state in FINAL_STATES

    # -- what its routing does ---------------------------------------------------------------------

    def wait_for_words(self) -> None:
        """The user's turn is not written down yet: wait for its words, then apologise."""
        if self._move(Move.WAIT):
            later = asyncio.get_running_loop().call_later
            self._timer = later(TRANSCRIPT_SECONDS, self.fail_without_words)

    def fail_without_words(self) -> None:
        """There is nothing to ask: apologise."""
        if self._begin("", knowledge=False):
            self._fail("no transcript")

    def ask(
        self,
        text: str,
        knowledge: bool,
        compose: Callable[[], Messages],
        early: "EarlyAnswer | None" = None,
    ) -> None:
        """Put it to the text model; the agent holds its tongue meanwhile.

        compose: what the model is sent; it is called in a thread. early: it was put already.
        """
        if not self._begin(text, knowledge):
            return
        if not self._answerer.has_key:
            self._fail("no key", self._phrases.no_key)
            return
        self._task = asyncio.create_task(self._read_answer(compose, early))

    def wonder(self, text: str, knowledge: bool, compose: Callable[[], Messages]) -> None:
        """Let the text model decide whether it is a question; it may pass."""
        if not self._move(Move.WONDER):
            return
        self._doubted = (text, knowledge)
        self._voice.hold_back(self.id)
        later = asyncio.get_running_loop().call_later
        self._timer = later(WONDER_SECONDS, self.give_up, "no verdict in time")
        self._task = asyncio.create_task(self._read_answer(compose))

    def make_way(self) -> None:
        """Another question comes: an answer that has come whole is said to its end."""
        if self.state is QuestionState.FINISHING:
            return
        if self.say_id:
            self._voice.add(self.say_id, "", last=True)
        self.give_up("another question")

    def give_up(self, reason: str) -> None:
        """Nobody wants the answer any more."""
        if self._move(Move.GIVE_UP, reason) and not self.say_id:
            self._voice.release(self.id)

    async def close(self) -> None:
        self._stop()
        if self._task:
            await asyncio.wait({self._task})

    # -- what the agent reports --------------------------------------------------------------------

    def note_hold_end(self, end: HoldEnd) -> None:
        """The agent holds no longer, and no answer has ended it."""
        if end is HoldEnd.STALE or self.state in UNTOLD:
            self.give_up(INTERRUPTED)
        elif end is HoldEnd.TIMEOUT:
            self._move(Move.FAIL, "no answer in time")

    def note_said(self, parts: int) -> None:
        """The answer has been spoken as far as it had come: that many parts of it."""
        if parts < self._parts or not self._move(Move.SAID):
            self._fail("cut off")  # it ran dry: the rest did not come in time

    # -- on its way --------------------------------------------------------------------------------

    def _begin(self, text: str, knowledge: bool) -> bool:
        self._route = replace(self._route, question=text, knowledge=knowledge)
        if not self._move(Move.ASK):
            return False
        phrases, announced = self._phrases, self.source is Source.PHRASE
        self._voice.hold(self.id, phrases.fillers, phrases.late, announced)
        return True

    async def _read_answer(
        self, compose: Callable[[], Messages], early: "EarlyAnswer | None" = None
    ) -> None:
        """Have the answer said clause by clause, as it comes."""
        clauses, begun = Clauses(), ""
        answer = early.read() if early else put(self._answerer, compose)
        try:
            async with contextlib.aclosing(answer) as pieces:
                async for piece in pieces:
                    if self.state is QuestionState.WONDERING:
                        begun = piece = begun + piece
                        match read_verdict(begun):
                            case None:
                                continue
                            case True:
                                break
                        self._begin(*self._doubted)
                    for clause in clauses.feed(piece):
                        self._say(clause)
                    if clauses.full or self.is_over:
                        break
            if self._move(Move.PASS):  # also if it said nothing else
                self._voice.release(self.id)
                return
            for clause in clauses.finish():
                self._say(clause)
            if not self.say_id:
                raise AnswerError("empty answer")
            if self._move(Move.COMPLETE):
                self._voice.add(self.say_id, "", last=True)
        except AnswerError as error:
            self._fail(str(error))
        except Exception as error:  # a fault of ours must not leave the agent holding
            logger.error("an answer failed: %s", type(error).__name__)
            self._fail("internal error")

    def _say(self, clause: str) -> None:
        """The first clause begins the answer and ends the hold; the others follow."""
        if not self._move(Move.CLAUSE):
            return
        self._parts += 1
        if self.say_id:
            self._voice.add(self.say_id, clause)
        else:
            self.say_id = self._voice.say(clause, answer=self.id, growing=True)

    def _fail(self, reason: str, apology: str = "") -> None:
        """No answer, or no more of it: say so in the agent's voice."""
        if (self.state, Move.FAIL) not in TRANSITIONS:
            return
        if self.state is QuestionState.WONDERING:  # nobody has been told of it
            self._move(Move.FAIL)
            self._voice.release(self.id)
            return
        if self.say_id:
            self._voice.add(self.say_id, "", last=True)
        self._move(Move.FAIL, reason)
        if self.say_id:
            self._voice.say(self._phrases.broken_off)
        else:
            self._voice.say(apology or self._phrases.failed, answer=self.id)

    def _move(self, move: Move, reason: str = "") -> bool:
        """Change the state and tell the client; False if the move does not apply any more."""
        before, after = self.state, TRANSITIONS.get((self.state, move))
        if after is None:
            return False
        self.state = after
        if after in FINAL_STATES or after is QuestionState.ASKING:
            self._stop()
        if after is not before and after.name in RouteState.__members__:
            self._route = replace(self._route, state=RouteState[after.name], reason=reason)
            self._voice.show(self._route)
        return True

    def _stop(self) -> None:
        """Neither timer nor call goes on."""
        if self._timer:
            self._timer.cancel()
        if self._task and self._task is not asyncio.current_task():
            self._task.cancel()
