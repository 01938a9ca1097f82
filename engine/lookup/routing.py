"""Smart routing: which questions of a conversation are put to the text model, and with what.

Three things hand a question over: the client asks, a finished turn of the user needs the product's
facts, or the model hands over by its own words (`handover.py`, frame by frame). `Routing` decides
for one conversation, in the session's event loop; `question.py` follows each question to its end.
`Answers` is what all conversations of a server share.
"""

import asyncio
import contextlib
import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import DeepSeekConfig, ServerConfig
from engine.errors import RefusedError
from engine.lookup.evidence import Turn
from engine.lookup.handover import OwnWords, Phrases, Source, TriggerRules, load_phrases
from engine.lookup.knowledge import KNOWLEDGE_FOLDER, SENTENCE_END, Knowledge
from engine.lookup.question import (
    INTERRUPTED,
    AgentVoice,
    EarlyAnswer,
    HoldEnd,
    Question,
    QuestionState,
)
from engine.lookup.router import Band, Router
from engine.lookup.textmodel import Answerer, Messages
from engine.runtime.backend import Tokenizer

MAX_QUESTION_CHARS = 2000
DISMISSAL = re.compile(
    r"\b(never ?mind|forget (it|that|about it)|stop|cancel( (it|that))?)\b", re.I
)
DISMISSAL_WORDS = 6  # at most, of a turn in which the user wants no answer any more
MINUTE_SECONDS, DAY_SECONDS = 60.0, 86_400
MAX_TURNS = 20  # kept
SENT_TURNS = 8
SENT_CHARS = 1500
PAUSE_SECONDS = 1.0  # inside a sentence, at most; who has listened to an answer takes longer
LEAST_CUT_CHARS = 200  # less of an endless sentence says nothing
EARLY_SECONDS = 2.0  # after which the turn that a pause was in has long ended


class Routing:
    """One conversation's triggers, its questions, and what it remembers for them."""

    def __init__(
        self,
        answers: "Answers",
        voice: AgentVoice,
        on: bool | None = None,
        facts: str = "",
        watches: bool = True,
    ) -> None:
        self.on = answers.on if on is None else on  # off: nothing is sent to anybody
        self._watches = watches  # off: only what the client asks is looked up
        self.transcribes = False  # whether the user's turns come in words; set on connecting
        self.new_id = itertools.count(1).__next__  # also the director draws here: it is atomic
        self.current: Question | None = None  # the newest one
        self.band: Band | None = None  # of the user's last turn; None: not judged yet
        self._questions: list[Question] = []  # it, and older ones whose answers are still spoken
        self._answers, self._voice = answers, voice
        self._router = answers.router_of(facts)
        self._history = History()
        self._limit = MinuteLimit(answers.asks_per_minute)
        self._last_turn: Turn | None = None  # of the user, not routed yet
        self._turn_end = 0.0  # of the user's last turn, in seconds of the user's audio
        self._judging: asyncio.Task | None = None
        self._handed_over: Question | None = None  # by the agent; its turn is not judged yet
        self._foreseen: Foreseen | None = None  # what the user has said, if the turn is over

    def own_words(self, tokenizer: Tokenizer) -> OwnWords:
        """What a new director of this conversation watches the model's words with."""
        return OwnWords(tokenizer, self._answers.rules, self.on and self._watches)

    # -- triggers ----------------------------------------------------------------------------------

    def ask(self, text: str) -> None:
        """The client's own question. Raises RefusedError."""
        if not self.on:
            raise RefusedError("ask: smart routing is off here; send set with routing 1, or say")
        text = " ".join(text.split())
        if not text:
            raise RefusedError("ask: the text is empty; send a question")
        if len(text) > MAX_QUESTION_CHARS:
            raise RefusedError(
                f"ask: the text has {len(text)} characters; send 1 to {MAX_QUESTION_CHARS}"
            )
        turn, self._turn_end = self._history.add_user_turn(text), 0.0
        try:
            self._put(turn, Source.CLIENT)
        except RefusedError:
            self._history.take_back()
            raise

    def note_pause(self, text: str, start: float = 0.0) -> None:
        """The user has fallen silent: if the turn is over, this was all of it.

        A clear question is put at once, before the turn's end is certain. Nobody is
        told and nothing is held: whoever goes on speaking has asked nothing.
        """
        busy = self.current and not self.current.is_over
        if not self.on or not self._watches or busy or not self._answers.answerer.has_key:
            return
        self._drop_foreseen()
        history = self._history.copy()
        turn = history.add_user_turn(text, self._goes_on(start))
        self._foreseen = Foreseen(turn)
        self._foreseen.task = asyncio.create_task(self._foresee(self._foreseen, history))
        asyncio.get_running_loop().call_later(EARLY_SECONDS, self._drop_foreseen, self._foreseen)

    async def _foresee(self, foreseen: "Foreseen", history: "History") -> None:
        foreseen.band = await asyncio.to_thread(self._router.judge, foreseen.turn)
        if foreseen.band is not Band.YES or foreseen is not self._foreseen:
            return
        with contextlib.suppress(RefusedError):  # then the turn itself will tell the client so
            self._limit.spend()
            self._answers.cap.spend()
            compose = self._compose(foreseen.turn, history=history)
            foreseen.answer = EarlyAnswer(self._answers.answerer, compose)

    def _drop_foreseen(self, only: "Foreseen | None" = None) -> None:
        """It was not so. only: this one, if it is still awaited."""
        if self._foreseen and only in (None, self._foreseen):
            self._foreseen.close()
            self._foreseen = None

    def _goes_on(self, start: float) -> bool:
        return bool(self._turn_end) and abs(start - self._turn_end) < PAUSE_SECONDS

    def note_turn(self, text: str, start: float = 0.0, end: float = 0.0) -> None:
        """A finished turn of the user: does it need the facts, or did the model ask for it?

        start, end: seconds of the user's audio. A turn that begins soon after the one before it is
        its rest: a pause has cut a sentence in two, and both are judged and asked as one.
        """
        if not self.on:
            return
        if self.current and self.current.state is QuestionState.WONDERING:
            self.current.give_up("another turn")
        goes_on, self._turn_end = self._goes_on(start), end
        turn = self._history.add_user_turn(text, goes_on)
        if self._foreseen and self._foreseen.turn.text != turn.text:
            self._drop_foreseen()
        if not self._watches:
            return
        asked = self.current and not self.current.is_over
        if asked and DISMISSAL.search(text) and len(text.split()) <= DISMISSAL_WORDS:
            self.current.give_up(INTERRUPTED)
            return
        self._last_turn, self.band = turn, None
        if self.current and self.current.state is QuestionState.WAITING:  # for these words
            self._handed_over = self.current
        rest = Turn(text, turn.agent_before, turn.text) if asked and goes_on else None
        self._judging = asyncio.create_task(self._judge(turn, self._judging, rest))

    async def settle(self) -> None:
        """Until the last turn is judged."""
        if self._judging:
            await self._judging

    async def _judge(
        self, turn: Turn, earlier: asyncio.Task | None, rest: Turn | None = None
    ) -> None:
        """Vectors take their time, so a thread judges; turns keep their order.

        rest: what came of the turn after its beginning was asked; a mere remark changes nothing.
        """
        if earlier and not earlier.done():
            await asyncio.wait({earlier})
        foreseen = self._foreseen
        if foreseen and foreseen.turn.text == turn.text:
            await asyncio.wait({foreseen.task})
        if foreseen and foreseen.turn == turn and foreseen.band:
            band = foreseen.band
        else:
            band = await asyncio.to_thread(self._router.judge, rest or turn)
        if rest and band is not Band.NO:
            band = await asyncio.to_thread(self._router.judge, turn)
        if turn is not self._last_turn or not self.on:
            return  # it was asked meanwhile, another turn came, or routing was switched off
        self.band = band
        if question := self._handed_over:
            self._handed_over = None
            self._take_up(question, turn)
        elif band is Band.YES:
            self._try(turn, Source.USER)
        elif band is Band.DOUBT:
            self._wonder(turn)

    def _take_up(self, question: Question, turn: Turn) -> None:
        """The agent's own hand-over; `let me see` is only one after what the facts may answer."""
        if question.source is Source.PHRASE and self.band is Band.NO:
            question.give_up("no question")
        else:
            self._try(turn, question.source, question)

    def hand_over(self, id: int, source: Source) -> None:
        """The model has handed over and holds; the question is the user's last turn."""
        if self.current and self.current.state is QuestionState.WONDERING:
            self.current.give_up("handed over")
        if self.current and not self.current.is_over:
            self._voice.release(id)
            return
        question = self._new_question(source, id)
        self._make_current(question)
        if self._last_turn and self.band:
            self._take_up(question, self._last_turn)
        elif self._last_turn:
            self._handed_over = question
        elif self.transcribes:
            question.wait_for_words()
        else:
            question.fail_without_words()

    def _try(self, turn: Turn, source: Source, question: Question | None = None) -> None:
        """Put a question, or tell the client once why not."""
        try:
            self._put(turn, source, question)
        except RefusedError as error:
            self._voice.refuse(str(error))
            if question:
                question.give_up(str(error))

    def _put(self, turn: Turn, source: Source, question: Question | None = None) -> None:
        """Raises RefusedError beyond the limits."""
        early = self._take_foreseen(turn)
        if not early:
            self._limit.spend()
            self._answers.cap.spend()
        self._last_turn = None
        question = question or self._new_question(source, self.new_id())
        self._make_current(question)
        question.ask(turn.text, self._covers(turn), self._compose(turn), early)

    def _take_foreseen(self, turn: Turn) -> EarlyAnswer | None:
        """The answer that is on its way already, if it was asked for the same words."""
        foreseen, self._foreseen = self._foreseen, None
        if foreseen and foreseen.turn.text != turn.text:
            foreseen.close()
            return None
        return foreseen.answer if foreseen else None

    def _wonder(self, turn: Turn) -> None:
        """Ask the text model whether it is a question at all; the agent may go on meanwhile."""
        busy = self.current and not self.current.is_over
        if busy or not self._answers.answerer.has_key:
            return
        try:
            self._limit.spend()
            self._answers.cap.spend()
        except RefusedError:
            return  # nobody has asked for anything: it is left alone
        question = self._new_question(Source.USER, self.new_id())
        self._make_current(question)
        question.wonder(
            turn.text, self._covers(turn), self._compose(turn, self._answers.phrases.doubt)
        )

    def _covers(self, turn: Turn) -> bool:
        return self._router.covers(turn.text, turn.user_before)

    def _compose(
        self, turn: Turn, doubt: str = "", history: "History | None" = None
    ) -> Callable[[], Messages]:
        """What the text model is sent. Finding the facts may take a while: not in the event loop.

        doubt: the rule by which it may pass.
        """
        phrases, router = self._answers.phrases, self._router
        messages = (history or self._history).messages(but_last=True)

        def compose() -> Messages:
            facts = router.facts(turn.text, turn.user_before)
            sheets = "\n".join(section.sheet for section in facts)
            rules = f"{phrases.system} {doubt}".strip()
            system = f"{rules}\n\nFacts:\n{sheets or phrases.without_facts}"
            asked = {"role": "user", "content": turn.text}
            return [{"role": "system", "content": system}, *messages, asked]

        return compose

    def _new_question(self, source: Source, id: int) -> Question:
        return Question(id, source, self._answers.answerer, self._answers.phrases, self._voice)

    def _make_current(self, question: Question) -> None:
        """The question before it makes way, unless it is this one."""
        if question is self.current:
            return
        if self.current:
            self.current.make_way()
        self._questions = [asked for asked in self._questions if not asked.is_over]
        self._questions.append(question)
        self.current = question

    # -- what the agent reports --------------------------------------------------------------------

    def note_agent_text(self, text: str) -> None:
        if self.on:
            self._history.add_agent_text(text)

    def note_hold_end(self, id: int, end: HoldEnd) -> None:
        for question in self._questions:
            if question.id == id:
                question.note_hold_end(end)

    def note_said(self, say_id: int, parts: int) -> None:
        """A text has been spoken, and that many parts of it had come."""
        for question in self._questions:
            if question.say_id == say_id:
                question.note_said(parts)

    def note_cut(self, say_id: int) -> None:
        """A text was stopped while it waited or was spoken."""
        for question in self._questions:
            if question.say_id == say_id:
                question.give_up(INTERRUPTED)

    def switch(self, on: bool) -> None:
        """On or off from now on; off forgets what was said, so that it is never sent."""
        self.on = self._watches = on
        if not on:
            self.drop("switched off")
        else:
            self._router.prepare()
        self._voice.watch(on)

    def take_role(self, facts: str, watches: bool) -> None:
        """The agent is somebody else from now on, who has these facts."""
        self._router, self._watches = self._answers.router_of(facts), watches
        if self.on and watches:
            self._router.prepare()

    def drop(self, reason: str) -> None:
        """Give up what is on its way and forget the conversation so far."""
        self._drop_foreseen()
        for question in self._questions:
            question.give_up(reason)
        self._history = History()
        self._last_turn = self._handed_over = self.band = None
        self._turn_end = 0.0

    async def close(self) -> None:
        self._drop_foreseen()
        if self._judging:
            self._judging.cancel()
        for question in self._questions:
            await question.close()


class Foreseen:
    """A turn that may be over: how it was judged, and its answer on the way if that was clear."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.band: Band | None = None
        self.answer: EarlyAnswer | None = None
        self.task: asyncio.Task

    def close(self) -> None:
        self.task.cancel()
        if self.answer:
            self.answer.close()


class History:
    """The last turns of both sides, as far as the text model may be told.

    The agent's side is what was really spoken: it is fed from the words begun, not from the texts
    that were planned.
    """

    def __init__(self) -> None:
        self._turns: deque[tuple[str, str]] = deque(maxlen=MAX_TURNS)  # (role of the API, text)

    def add_user_turn(self, text: str, goes_on: bool = False) -> Turn:
        """The turn, with what was said just before it. goes_on: it is the rest of the last one."""
        said_since = []
        if goes_on and any(role == "user" for role, _ in self._turns):
            while self._turns[-1][0] != "user":
                said_since.append(self._turns.pop())
            text = f"{self._turns.pop()[1]} {text.strip()}"
        before = list(self._turns)
        agent = before.pop()[1] if before and before[-1][0] == "assistant" else ""
        user = next((spoken for role, spoken in before[::-1] if role == "user"), "")
        self._turns += [("user", text.strip()), *said_since[::-1]]
        return Turn(text.strip(), " ".join(agent.split()), user)

    def copy(self) -> "History":
        other = History()
        other._turns += self._turns
        return other

    def take_back(self) -> None:
        """The last turn was refused."""
        self._turns.pop()

    def add_agent_text(self, text: str) -> None:
        """A piece of what the agent says; pieces are one turn until the user speaks."""
        if self._turns and self._turns[-1][0] == "assistant":
            text = self._turns.pop()[1] + text
        self._turns.append(("assistant", text))

    def messages(self, but_last: bool = False) -> Messages:
        """The newest turns, the oldest first, in the form of the chat API.

        What does not fit whole is cut to its last sentences; before a cut nothing is sent.
        but_last: without the user's last turn, and without what the agent said after it.
        """
        turns = list(self._turns)
        if but_last:
            last = max((i for i, turn in enumerate(turns) if turn[0] == "user"), default=len(turns))
            turns = turns[:last]
        messages: Messages = []
        left = SENT_CHARS
        for role, spoken in turns[-SENT_TURNS:][::-1]:
            text = " ".join(spoken.split())
            kept = text if len(text) <= left else keep_end(text, left)
            if kept:
                messages.append({"role": role, "content": kept})
                left -= len(kept)
            if kept != text:
                break
        return messages[::-1]


def keep_end(text: str, chars: int) -> str:
    """The last whole sentences of a text that fit; of an endless one the last words."""
    starts = [0, *(match.end() for match in SENTENCE_END.finditer(text))]
    for start in starts:
        if len(text) - start <= chars:
            return text[start:]
    if chars < LEAST_CUT_CHARS:
        return ""
    return text[-chars:].partition(" ")[2] or text[-chars:]


@dataclass
class DailyCap:
    """How many questions the server may put on one day (UTC)."""

    limit: int
    day: int = 0
    used: int = 0

    def spend(self) -> None:
        """Raises RefusedError when the day's questions are used up."""
        today = int(time.time() // DAY_SECONDS)
        if today != self.day:
            self.day, self.used = today, 0
        if self.used >= self.limit:
            raise RefusedError(
                f"ask: the {self.limit} questions of this day are used up; ask again tomorrow"
            )
        self.used += 1


@dataclass
class MinuteLimit:
    """How many questions a conversation may put in any minute."""

    limit: int
    at: deque[float] = field(default_factory=deque)

    def spend(self) -> None:
        now = time.monotonic()
        while self.at and now - self.at[0] >= MINUTE_SECONDS:
            self.at.popleft()
        if len(self.at) >= self.limit:
            wait = MINUTE_SECONDS - (now - self.at[0])
            raise RefusedError(f"ask: {self.limit} questions a minute; ask again in {wait:.0f} s")
        self.at.append(now)


@dataclass(frozen=True, slots=True)
class Answers:
    """One server's means to answer."""

    answerer: Answerer
    router: Router  # with the server's own facts
    phrases: Phrases
    rules: TriggerRules
    cap: DailyCap
    asks_per_minute: int = 10
    on: bool = True  # for a conversation that does not say
    routers: Mapping[str, Router] = field(default_factory=dict)  # of personas with other facts

    def router_of(self, facts: str) -> Router:
        """facts: the folder that a persona names; empty: the server's own."""
        return self.routers[facts] if facts else self.router

    def prepare(self) -> None:
        """Load what decisions need, in threads of its own; returns at once."""
        for router in (self.router, *self.routers.values()):
            router.prepare()


def build_answers(
    config: ServerConfig, environ: Mapping[str, str], folders: Iterable[str] = ()
) -> Answers:
    """Load facts and phrases, read the key. folders: of personas' facts, in `assets`.

    Raises ConfigError.
    """
    phrases = load_phrases()
    own = Path(config.knowledge) if config.knowledge else KNOWLEDGE_FOLDER

    def router(folder: Path) -> Router:
        return Router(Knowledge.load(folder, phrases.smalltalk))

    return Answers(
        answerer=Answerer(DeepSeekConfig.from_environment(environ)),
        router=router(own),
        phrases=phrases,
        rules=TriggerRules(config.marker_threshold, phrases.announcements),
        cap=DailyCap(config.asks_per_day),
        asks_per_minute=config.asks_per_minute,
        on=config.routing,
        routers={name: router(KNOWLEDGE_FOLDER.parent / name) for name in folders},
    )
