"""One question at a time: put to the text model, held for, answered in the agent's voice.

Lives in the session's event loop; posts commands to the director and follows what becomes of
them. What is asked, and whether, is `routing.py`'s affair.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.dialogue import events as ev
from engine.dialogue.answerer import Answerer, AnswerError, Messages
from engine.dialogue.clauses import Clauses
from engine.dialogue.events import RouteState, SayState, Source
from engine.dialogue.phrases import Phrases
from engine.dialogue.speakable import spelled
from engine.errors import RefusedError
from engine.runtime.metrics import Metrics

logger = logging.getLogger(__name__)

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
