"""Smart routing of one conversation: who hands a question over, and which.

The client asks, the user's own turn needs the facts, or the model hands over by its words; the
first two are decided here, the third in the director (`trigger.py`). What becomes of the question
is `asking.py`'s affair. Lives in the session's event loop.
"""

import asyncio
from collections.abc import Iterable

from engine.dialogue import events as ev
from engine.dialogue.answers import Answers, MinuteLimit, prompt
from engine.dialogue.asking import Asking, Hooks
from engine.dialogue.events import Source
from engine.dialogue.history import History
from engine.dialogue.router import FOLLOW_UP_TURNS
from engine.dialogue.trigger import OwnWords
from engine.errors import RefusedError
from engine.runtime.backend import Tokenizer

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
