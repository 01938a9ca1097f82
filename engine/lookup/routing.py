"""Smart routing: which questions of a conversation are put to the text model, and with what.

Three things hand a question over: the client asks, a finished turn of the user needs the product's
facts, or the model hands over by its own words (`handover.py`, frame by frame). `Routing` decides
for one conversation, in the session's event loop; `question.py` follows each question to its end.
`Answers` is what all conversations of a server share.
"""

import itertools
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import DeepSeekConfig, ServerConfig
from engine.errors import RefusedError
from engine.lookup.handover import OwnWords, Phrases, Source, TriggerRules, load_phrases
from engine.lookup.knowledge import KNOWLEDGE_FOLDER, Knowledge
from engine.lookup.question import (
    INTERRUPTED,
    AgentVoice,
    HoldEnd,
    Question,
    QuestionState,
)
from engine.lookup.router import FOLLOW_UP_TURNS, Router
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


class Routing:
    """One conversation's triggers, its questions, and what it remembers for them."""

    def __init__(self, answers: "Answers", voice: AgentVoice, on: bool | None = None) -> None:
        self.on = answers.on if on is None else on
        self.transcribes = False  # whether the user's turns come in words; set on connecting
        self.new_id = itertools.count(1).__next__  # also the director draws here: it is atomic
        self.current: Question | None = None  # the newest one
        self._questions: list[Question] = []  # it, and older ones whose answers are still spoken
        self._answers, self._voice = answers, voice
        self._history = History()
        self._limit = MinuteLimit(answers.asks_per_minute)
        self._last_turn = ""  # of the user, not routed yet
        self._routed = ""  # the last question
        self._turns_since = 0  # turns of the user since then

    def own_words(self, tokenizer: Tokenizer) -> OwnWords:
        """What a new director of this conversation watches the model's words with."""
        return OwnWords(tokenizer, self._answers.rules, self.on)

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
        self._put(text, Source.CLIENT)
        self._history.add_user_turn(text)

    def note_turn(self, text: str) -> None:
        """A finished turn of the user: does it need the facts, or did the model ask for it?"""
        if not self.on:
            return
        self._turns_since += 1
        asked = self.current and not self.current.is_over
        if asked and DISMISSAL.search(text) and len(text.split()) <= DISMISSAL_WORDS:
            self.current.give_up(INTERRUPTED)
        elif self.current and self.current.state is QuestionState.WAITING:  # for these words
            self._try(text, self.current.source, self.current)
        elif self._answers.router.needs_facts(text, self._before):
            self._try(text, Source.USER)
        else:
            self._last_turn = text
        self._history.add_user_turn(text)

    def hand_over(self, id: int, source: Source) -> None:
        """The model has handed over and holds; the question is the user's last turn."""
        if self.current and not self.current.is_over:
            self._voice.release(id)
            return
        question = self._new_question(source, id)
        if self._last_turn:
            self._try(self._last_turn, source, question)
            return
        self._make_current(question)
        if self.transcribes:
            question.wait_for_words()
        else:
            question.fail_without_words()

    def _try(self, text: str, source: Source, question: Question | None = None) -> None:
        """Put a question, or tell the client once why not."""
        try:
            self._put(text, source, question)
        except RefusedError as error:
            self._voice.refuse(str(error))
            if question:
                question.give_up(str(error))

    def _put(self, text: str, source: Source, question: Question | None = None) -> None:
        """Raises RefusedError beyond the limits."""
        self._limit.spend()
        self._answers.cap.spend()
        facts = self._answers.router.facts(text, self._before)
        phrases, history = self._answers.phrases, self._history.messages()
        sheets = "\n".join(f"{section.title}: {section.text}" for section in facts)
        system = f"{phrases.system}\n\nFacts:\n{sheets or phrases.without_facts}"
        asked = {"role": "user", "content": text}
        turns = history[:-1] if history and history[-1] == asked else history
        messages = [{"role": "system", "content": system}, *turns, asked]
        self._last_turn, self._routed, self._turns_since = "", text, 0
        question = question or self._new_question(source, self.new_id())
        self._make_current(question)
        question.ask(text, bool(facts), messages)

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

    @property
    def _before(self) -> str:
        """The question that a follow-up may refer to."""
        return self._routed if self._turns_since <= FOLLOW_UP_TURNS else ""

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
        self.on = on
        if not on:
            self.drop("switched off")
        self._voice.watch(on)

    def drop(self, reason: str) -> None:
        """Give up what is on its way and forget the conversation so far."""
        for question in self._questions:
            question.give_up(reason)
        self._history = History()
        self._last_turn = self._routed = ""

    async def close(self) -> None:
        for question in self._questions:
            await question.close()


class History:
    """The last turns of both sides, as far as the text model may be told.

    The agent's side is what was really spoken: it is fed from the words begun, not from the texts
    that were planned.
    """

    def __init__(self) -> None:
        self._turns: deque[tuple[str, str]] = deque(maxlen=MAX_TURNS)  # (role of the API, text)

    def add_user_turn(self, text: str) -> None:
        self._turns.append(("user", text.strip()))

    def add_agent_text(self, text: str) -> None:
        """A piece of what the agent says; pieces are one turn until the user speaks."""
        if self._turns and self._turns[-1][0] == "assistant":
            text = self._turns.pop()[1] + text
        self._turns.append(("assistant", text))

    def messages(self) -> Messages:
        """The last turns, the oldest first, in the form of the chat API."""
        messages, chars = [], 0
        for role, spoken in list(self._turns)[-SENT_TURNS:][::-1]:
            text = " ".join(spoken.split())
            if chars + len(text) > SENT_CHARS:
                break  # a gap in the talk would mislead: nothing older is sent either
            chars += len(text)
            if text:
                messages.append({"role": role, "content": text})
        return messages[::-1]


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
    router: Router
    phrases: Phrases
    rules: TriggerRules
    cap: DailyCap
    asks_per_minute: int = 10
    on: bool = True  # for a conversation that does not say


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
