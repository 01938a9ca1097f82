"""A conversation without a clock: routing and director joined by hand, frames as fast as can be.

What a session does between the two threads is done here in one loop, so that a test can run
minutes of talk in a moment while the stand-in for the text model answers over real HTTP.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from engine.config import EPAD, PAD, DeepSeekConfig, ServerConfig
from engine.dialogue import events as ev
from engine.dialogue.director import Director, Mode
from engine.dialogue.session import SessionVoice, note_event
from engine.dialogue.speech import prepare_command
from engine.evals.standin import Reply, StandIn, by_heart
from engine.lookup.question import RouteState
from engine.lookup.routing import Answers, Routing, build_answers
from engine.lookup.textmodel import Answerer, Deadlines
from engine.runtime.backend import HeardRow
from engine.runtime.embedded import ByteTokenizer
from engine.runtime.metrics import Metrics

TOKENIZER = ByteTokenizer()
LOUD = 0.5
MOMENT = 0.001  # seconds of real time a frame takes here
DEADLINES = Deadlines(60, 60, 60)  # no test waits for them; a busy machine may take long


def answers_for(
    url: str, key: str = "sk-test", deadlines: Deadlines = DEADLINES, **config: Any
) -> Answers:
    """What a server would share, with the stand-in at `url` as its text model."""
    answers = build_answers(ServerConfig(**config), {})
    return replace(answers, answerer=Answerer(DeepSeekConfig(key, url), deadlines))


@contextlib.asynccontextmanager
async def standing(
    replies: Callable[[str], Reply] = by_heart, **options: Any
) -> AsyncIterator[tuple[StandIn, Answers]]:
    """The stand-in at work, and a server's means to ask it."""
    async with StandIn(replies) as api:
        answers = answers_for(api.url, **options)
        yield api, answers
        await answers.answerer.close()


class Talk:
    """One conversation."""

    def __init__(
        self,
        answers: Answers,
        on: bool | None = None,
        transcribes: bool = False,
        watches: bool = True,
    ) -> None:
        self.metrics = Metrics()
        voice = SessionVoice(self._post, self._announce, self._new_say_id, self.metrics)
        self.routing = Routing(answers, voice, on, watches=watches)
        self.routing.transcribes = transcribes
        self.director = Director(
            TOKENIZER, self.routing.own_words(TOKENIZER), new_hold_id=self.routing.new_id
        )
        self.fed: list[int] = []
        self.events: list[ev.Event] = []  # all that a client could be shown
        self._inbox: list[ev.Command] = []
        self._ids = 0

    def _post(self, command: ev.Command) -> None:
        self._inbox.append(command)

    def _announce(self, event: ev.Event) -> None:
        self.events.append(event)

    def _new_say_id(self) -> int:
        self._ids += 1
        return self._ids

    async def frame(self, sampled: int = PAD, peak_in: float = 0.0) -> int:
        """One frame; the token fed."""
        commands, self._inbox = self._inbox, []
        for command in commands:
            self._note(self.director.take(prepare_command(command, TOKENIZER)))
        token, _ = self.director.step(sampled, HeardRow(), peak_in, 0.0)
        self.fed.append(token)
        self._note(self.director.events())
        await asyncio.sleep(MOMENT)
        return token

    def _note(self, events: list[ev.Event]) -> None:
        self.events += events
        for event in events:
            note_event(self.routing, event, self.metrics)

    async def frames(self, count: int, peak_in: float = 0.0) -> None:
        for _ in range(count):
            await self.frame(peak_in=peak_in)

    async def until(self, done: Callable[[], object], limit: int = 8000) -> None:
        """Frames until something is true."""
        for _ in range(limit):
            if done():
                return
            await self.frame()
        raise AssertionError(f"not within {limit} frames; last: {self.events[-3:]}")

    async def say(self, text: str) -> None:
        """The model samples this text."""
        for word in text.split():
            for token in (EPAD, *TOKENIZER.encode(word), PAD):
                await self.frame(token)

    async def turn(self, text: str, start: float = 0.0, end: float = 1.0) -> None:
        """The user says this, and the transcript has it (a test double)."""
        self._post(ev.UserText(text, start, end, final=True))
        await self.frames(2)
        await self.routing.settle()

    async def pause(self, text: str, start: float = 0.0) -> None:
        """The user falls silent after this, and the transcript has it; the turn may go on."""
        self._post(ev.UserText(text, start, start + 1.0, final=False, pause=True))
        await self.frames(2)

    async def settled(self, count: int = 1) -> None:
        """Until `count` questions have come to their end and the agent is free again."""
        await self.frames(2)
        ends = (RouteState.DONE, RouteState.FAILED, RouteState.STALE)
        await self.until(lambda: sum(route.state in ends for route in self.routes) >= count)
        await self.until(lambda: self.director.mode is Mode.FREE and not self.director.wants_frames)

    async def close(self) -> None:
        await self.routing.close()

    @property
    def routes(self) -> list[ev.Route]:
        return [event for event in self.events if isinstance(event, ev.Route)]

    @property
    def states(self) -> list[str]:
        return [str(route.state) for route in self.routes]

    @property
    def given(self) -> str:
        """What the agent was told to say and did say, as shown."""
        texts = (event for event in self.events if isinstance(event, ev.Text))
        return "".join(event.text for event in texts if event.given).strip()

    @property
    def own(self) -> str:
        texts = (event for event in self.events if isinstance(event, ev.Text))
        return "".join(event.text for event in texts if not event.given).strip()

    @property
    def refused(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, ev.Refused)]

    @property
    def voiced(self) -> str:
        """What the synthesiser was fed."""
        return "".join(TOKENIZER.piece(token) for token in self.fed if token > PAD).replace(
            "▁", " "
        )
