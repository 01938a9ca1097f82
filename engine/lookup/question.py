"""What was said in a conversation, both sides, as far as the text model may be told.

The agent's side is what was really spoken: it is fed from the words begun, not from the texts
that were planned.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.config import DeepSeekConfig, ServerConfig
from engine.dialogue import events as ev
from engine.dialogue.events import RouteState, SayState, Source
from engine.dialogue.text import spell, spelled
from engine.errors import RefusedError
from engine.lookup.handover import OwnWords, Phrases, TriggerRules, load_phrases
from engine.lookup.knowledge import KNOWLEDGE_FOLDER, Knowledge, Section
from engine.lookup.router import FOLLOW_UP_TURNS, Router
from engine.lookup.textmodel import Answerer, AnswerError, Clauses, Messages
from engine.runtime.backend import Tokenizer
from engine.runtime.metrics import Metrics

MAX_TURNS = 20  # kept
SENT_TURNS = 8
SENT_CHARS = 1500


@dataclass(slots=True)
class Turn:
    """One side's words until the other spoke."""

    role: str  # `user` or `assistant`, as the API calls them
    text: str


class History:
    """The last turns of both sides."""

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque(maxlen=MAX_TURNS)

    def user(self, text: str) -> None:
        """A whole turn of the user."""
        self._turns.append(Turn("user", text.strip()))

    def agent(self, text: str) -> None:
        """A piece of what the agent says."""
        if not self._turns or self._turns[-1].role != "assistant":
            self._turns.append(Turn("assistant", ""))
        self._turns[-1].text += text

    def forget(self) -> None:
        self._turns.clear()

    def messages(self) -> list[dict[str, str]]:
        """The last turns, the oldest first, in the form of the chat API."""
        messages, chars = [], 0
        for turn in list(self._turns)[-SENT_TURNS:][::-1]:
            text = " ".join(turn.text.split())
            chars += len(text)
            if chars > SENT_CHARS:
                break
            if text:
                messages.append({"role": turn.role, "content": text})
        return messages[::-1]


# -- answers ---------------------------------------------------------------------------------------
#
# What the conversations of a server share for smart routing: facts, phrases, the text model.

MINUTE_SECONDS, DAY_SECONDS = 60.0, 86_400


@dataclass
class DailyCap:
    """How many questions the server may put on one day (UTC)."""

    limit: int
    clock: Callable[[], float] = time.time
    day: int = 0
    used: int = 0

    def spend(self) -> None:
        """Raises RefusedError when the day's questions are used up."""
        today = int(self.clock() // DAY_SECONDS)
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
    clock: Callable[[], float] = time.monotonic
    at: deque[float] = field(default_factory=deque)

    def spend(self) -> None:
        """Raises RefusedError beyond it."""
        now = self.clock()
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
    router: Router
    phrases: Phrases
    rules: TriggerRules
    cap: DailyCap
    asks_per_minute: int = 10
    on: bool = True  # for a conversation that does not say

    def prepare(self) -> None:
        """Load now what the first question would else wait for."""
        self.router.prepare()
        spell("1")


def build_answers(config: ServerConfig, environ: Mapping[str, str]) -> Answers:
    """Load facts and phrases, read the key. Raises ConfigError."""
    phrases = load_phrases()
    folder = Path(config.knowledge) if config.knowledge else KNOWLEDGE_FOLDER
    return Answers(
        answerer=Answerer(DeepSeekConfig.from_environment(environ)),
        router=Router(Knowledge.load(folder, phrases.smalltalk)),
        phrases=phrases,
        rules=TriggerRules(config.marker_threshold, phrases.announcements),
        cap=DailyCap(config.asks_per_day),
        asks_per_minute=config.asks_per_minute,
        on=config.routing,
    )


def prompt(
    phrases: Phrases, facts: tuple[Section, ...], history: Messages, question: str
) -> Messages:
    """Rules and facts, the last turns of both sides, the question."""
    sheets = "\n".join(f"{section.title}: {section.text}" for section in facts)
    system = f"{phrases.system}\n\nFacts:\n{sheets or phrases.without_facts}"
    asked = {"role": "user", "content": question}
    turns = history[:-1] if history and history[-1] == asked else history
    return [{"role": "system", "content": system}, *turns, asked]


logger = logging.getLogger(__name__)


# -- asking ----------------------------------------------------------------------------------------
#
# One question at a time: put to the text model, held for, answered in the agent's voice.
#
# Lives in the session's event loop; posts commands to the director and follows what becomes of
# them. What is asked, and whether, is `routing.py`'s affair.

NO_KEY = "no key"
IN_TIME = "no answer in time"
INTERRUPTED = "interrupted"
ENDS = {  # how an answer's last words end its route
    SayState.DONE: {"state": RouteState.DONE},
    SayState.CANCELLED: {"state": RouteState.STALE, "reason": INTERRUPTED},
}


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a session lends to its routing."""

    post: Callable[[ev.Command], None]  # to the director; raises RefusedError
    announce: Callable[[ev.Event], None]  # to the client
    new_say_id: Callable[[], int]
    metrics: Metrics

    def show(self, route: ev.Route) -> None:
        """A question changed its state."""
        self.metrics.routed(route.source, route.state)
        self.announce(route)

    def post_quietly(self, command: ev.Command) -> None:
        """A full inbox must not end an answer half-way; the director's time-outs do."""
        with contextlib.suppress(RefusedError):
            self.post(command)


@dataclass(slots=True)
class Question:
    """The question on its way."""

    route: ev.Route
    say_id: int = 0  # of the answer; 0: it has not begun
    text: str = ""  # of the answer so far
    over: bool = False  # all of the answer is there
    task: asyncio.Task | None = None


class Asking:
    """A conversation's question on its way. Event loop only; nothing but `close` waits."""

    def __init__(self, answerer: Answerer, phrases: Phrases, hooks: Hooks) -> None:
        self._answerer = answerer
        self._phrases = phrases
        self._hooks = hooks
        self._ids = 0
        self._question: Question | None = None
        self._finishing: dict[int, Question] = {}  # say id -> whole answers still being said

    @property
    def busy(self) -> bool:
        return self._question is not None

    def begin(self, question: str, source: Source, knowledge: bool, messages: Messages) -> None:
        """Put a question; one that is on its way already makes way."""
        asked = self._start(question, source, knowledge)
        if not self._answerer.has_key:
            self._fail(NO_KEY, self._phrases.no_key)
            return
        asked.task = asyncio.create_task(self._answer(asked, messages))
        asked.task.add_done_callback(lambda task: self._check(asked, task))

    def fail(self, source: Source, reason: str) -> None:
        """A hand-over that cannot even be asked."""
        self._start("", source, False)
        self._fail(reason, self._phrases.failed)

    def note(self, event: ev.Event) -> None:
        """What the director reports about holds and words."""
        match event:
            case ev.HoldEnded(id, state):
                self._end_hold(id, state)
            case ev.Saying(id) if self._question and id == self._question.say_id:
                self._follow_answer(event)
            case ev.Saying(id, state) if id in self._finishing and state in ENDS:
                asked = self._finishing.pop(id)
                self._hooks.show(replace(asked.route, **ENDS[state]))

    def drop(self, reason: str) -> None:
        """Give up what is on its way."""
        if self._question:
            self._settle(RouteState.STALE, reason)

    async def close(self) -> None:
        """The conversation is over; nothing of it goes on."""
        task = self._question.task if self._question else None
        self._question = None
        if task:
            task.cancel()
            await asyncio.wait({task})

    # -- a question's way --------------------------------------------------------------------------

    def _start(self, question: str, source: Source, knowledge: bool) -> Question:
        """Announce it and have the agent hold its tongue."""
        self._make_way()
        self._ids += 1
        route = ev.Route(self._ids, RouteState.ASKING, question, source, knowledge)
        self._question = Question(route)
        self._hooks.show(route)
        fillers = tuple(self._say(text) for text in self._phrases.fillers)
        announced = source is Source.PHRASE
        hold = ev.Hold(route.id, fillers, self._say(self._phrases.late), announced)
        self._hooks.post_quietly(hold)
        return self._question

    def _make_way(self) -> None:
        """For a new question: an answer that is there is said to its end, any other is not."""
        asked = self._question
        if asked and asked.over:
            self._finishing[asked.say_id] = asked
            self._question = None
        elif asked:
            self._hooks.post_quietly(ev.More(asked.say_id, "", last=True))
            self._settle(RouteState.STALE, "another question")

    async def _answer(self, asked: Question, messages: Messages) -> None:
        """Have the answer said clause by clause, as it comes."""
        clauses = Clauses()
        try:
            async with contextlib.aclosing(self._answerer.stream(messages)) as pieces:
                async for piece in pieces:
                    for clause in clauses.feed(piece):
                        self._go_on(asked, clause)
                    if clauses.full:
                        break
            for clause in clauses.finish():
                self._go_on(asked, clause)
            if not asked.say_id:
                raise AnswerError("empty answer")
        except AnswerError as error:
            self._fail_answer(asked, str(error))
            return
        asked.over = True
        self._hooks.post_quietly(ev.More(asked.say_id, "", last=True))

    def _go_on(self, asked: Question, clause: str) -> None:
        """The first clause begins the answer and ends the hold; the others follow."""
        if asked is not self._question:
            return
        clause = spelled(clause)  # voice and transcript alike: what is shown is what was said
        asked.text = f"{asked.text} {clause}".strip()
        if asked.say_id:
            self._hooks.post_quietly(ev.More(asked.say_id, clause))
            return
        asked.say_id = self._hooks.new_say_id()
        self._change(RouteState.ANSWERING)
        say = ev.Say(asked.say_id, clause, growing=True, answer=asked.route.id)
        self._hooks.post_quietly(say)

    def _fail_answer(self, asked: Question, reason: str) -> None:
        if asked is not self._question:
            return
        if not asked.say_id:
            self._fail(reason, self._phrases.failed)
            return
        self._hooks.post_quietly(ev.More(asked.say_id, "", last=True))
        self._settle(RouteState.FAILED, reason)
        self._hooks.post_quietly(self._say(self._phrases.broken_off))

    def _fail(self, reason: str, apology: str) -> None:
        """No answer: say so in the agent's voice, which ends its hold."""
        answered = self._question.route.id
        self._settle(RouteState.FAILED, reason)
        self._hooks.post_quietly(self._say(apology, answer=answered))

    def _say(self, text: str, answer: int = 0) -> ev.Say:
        return ev.Say(self._hooks.new_say_id(), text, answer=answer)

    # -- what becomes of it ------------------------------------------------------------------------

    def _end_hold(self, id: int, state: str) -> None:
        """The director holds no longer, and no answer has ended it."""
        if not self._question or id not in (0, self._question.route.id):
            return
        if state == "timeout" and id:  # the director has apologised
            self._settle(RouteState.FAILED, IN_TIME)
        elif state == "stale":
            self._settle(RouteState.STALE, INTERRUPTED)

    def _follow_answer(self, saying: ev.Saying) -> None:
        asked = self._question
        if saying.state is SayState.CANCELLED:
            self._settle(RouteState.STALE, INTERRUPTED)
        elif saying.state is SayState.DONE and asked.over and saying.text == asked.text:
            self._settle(RouteState.DONE)
        elif saying.state is SayState.DONE:  # it ran dry: the rest did not come in time
            self._fail_answer(asked, "cut off")

    def _settle(self, state: RouteState, reason: str = "") -> None:
        """The question's last state; its call is given up."""
        asked = self._question
        self._change(state, reason)
        self._question = None
        if asked.task and asked.task is not asyncio.current_task():
            asked.task.cancel()
        if not asked.say_id and state is RouteState.STALE:
            self._hooks.post_quietly(ev.Release(asked.route.id))

    def _change(self, state: RouteState, reason: str = "") -> None:
        self._question.route = replace(self._question.route, state=state, reason=reason)
        self._hooks.show(self._question.route)

    def _check(self, asked: Question, task: asyncio.Task) -> None:
        """A fault of ours in a task: it must neither vanish nor leave the agent holding."""
        if not task.cancelled() and (error := task.exception()):
            logger.error("an answer failed: %s", type(error).__name__)
            self._fail_answer(asked, "internal error")


# -- routing ---------------------------------------------------------------------------------------
#
# Smart routing of one conversation: who hands a question over, and which.
#
# The client asks, the user's own turn needs the facts, or the model hands over by its words; the
# first two are decided here, the third in the director (`trigger.py`). What becomes of the question
# is `asking.py`'s affair. Lives in the session's event loop.

TRANSCRIPT_SECONDS = 1.0  # how long a marker waits for the words of the turn before it
MAX_QUESTION_CHARS = 2000
NO_TRANSCRIPT = "no transcript"


class Routing:
    """One conversation's triggers and what it remembers for them."""

    def __init__(self, answers: Answers, hooks: Hooks, on: bool | None = None) -> None:
        self.on = answers.on if on is None else on
        self.transcribes = False  # whether the user's turns come in words; set on connecting
        self._answers = answers
        self._hooks = hooks
        self._asking = Asking(answers.answerer, answers.phrases, hooks)
        self._history = History()
        self._limit = MinuteLimit(answers.asks_per_minute)
        self._last_turn = ""  # of the user, not routed yet
        self._routed = ""  # the last question
        self._turns_since = 0  # turns of the user since then
        self._waiting: tuple[Source, asyncio.TimerHandle] | None = None  # for the turn's words

    def own_words(self, tokenizer: Tokenizer) -> OwnWords:
        """What a new director of this conversation watches the model's words with."""
        return OwnWords(tokenizer, self._answers.rules, self.on)

    def ask(self, text: str) -> None:
        """The client's own question. Raises RefusedError."""
        if not self.on:
            raise RefusedError("ask: smart routing is off here; send set with routing 1, or say")
        question = " ".join(text.split())
        if not question:
            raise RefusedError("ask: the text is empty; send a question")
        if len(question) > MAX_QUESTION_CHARS:
            raise RefusedError(
                f"ask: the text has {len(question)} characters; send 1 to {MAX_QUESTION_CHARS}"
            )
        self._put(question, Source.CLIENT)
        self._history.user(question)

    def note_all(self, events: Iterable[ev.Event]) -> None:
        """What the director reports, in order."""
        for event in events:
            self._note(event)

    def _note(self, event: ev.Event) -> None:
        match event:
            case ev.Text(text) if self.on:
                self._history.agent(text)
            case ev.UserText(text, final=True) if self.on:
                self._hear_turn(text)
            case ev.Triggered(source):
                self._hand_over(source)
            case ev.MarkerIgnored():
                self._hooks.metrics.marker_ignored()
            case ev.HoldEnded():
                self._stop_waiting()
        self._asking.note(event)

    def switch(self, on: bool) -> None:
        """On or off from now on; off forgets what was said, so that it is never sent."""
        self.on = on
        if not on:
            self.drop("switched off")
        self._hooks.post_quietly(ev.SetRouting(on))

    def drop(self, reason: str) -> None:
        """Give up what is on its way and forget the conversation so far."""
        self._stop_waiting()
        self._asking.drop(reason)
        self._history.forget()
        self._last_turn = self._routed = ""

    async def close(self) -> None:
        """The conversation is over; nothing of it goes on."""
        self._stop_waiting()
        await self._asking.close()

    # -- triggers ----------------------------------------------------------------------------------

    def _hear_turn(self, text: str) -> None:
        """A finished turn of the user: does it need the facts, or did the model ask for it?"""
        self._turns_since += 1
        if self._waiting:
            source = self._waiting[0]
            self._stop_waiting()
            self._try(text, source)
        elif self._answers.router.needs_facts(text, self._before):
            self._try(text, Source.USER)
        else:
            self._last_turn = text
        self._history.user(text)

    def _hand_over(self, source: Source) -> None:
        """The model has handed over and holds; the question is the user's last turn."""
        if self._asking.busy or self._waiting:
            self._hooks.post_quietly(ev.Release(0))
        elif self._last_turn:
            self._try(self._last_turn, source)
        elif self.transcribes:
            later = asyncio.get_running_loop().call_later
            self._waiting = (source, later(TRANSCRIPT_SECONDS, self._give_up_waiting))
        else:
            self._asking.fail(source, NO_TRANSCRIPT)

    def _give_up_waiting(self) -> None:
        source = self._waiting[0]
        self._waiting = None
        self._asking.fail(source, NO_TRANSCRIPT)

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting[1].cancel()
            self._waiting = None

    def _try(self, question: str, source: Source) -> None:
        """Put it, or tell the client once why not."""
        try:
            self._put(question, source)
        except RefusedError as error:
            self._hooks.announce(ev.Refused(str(error)))
            self._hooks.post_quietly(ev.Release(0))

    def _put(self, question: str, source: Source) -> None:
        """Raises RefusedError beyond the limits."""
        self._limit.spend()
        self._answers.cap.spend()
        facts = self._answers.router.facts(question, self._before)
        messages = prompt(self._answers.phrases, facts, self._history.messages(), question)
        self._last_turn, self._routed, self._turns_since = "", question, 0
        self._asking.begin(question, source, bool(facts), messages)

    @property
    def _before(self) -> str:
        """The question a follow-up may refer to."""
        return self._routed if self._turns_since <= FOLLOW_UP_TURNS else ""
