"""What the conversations of a server share for smart routing: facts, phrases, the text model."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import DeepSeekConfig, ServerConfig
from engine.dialogue.answerer import Answerer, Messages
from engine.dialogue.knowledge import KNOWLEDGE_FOLDER, Knowledge, Section
from engine.dialogue.phrases import Phrases, load_phrases
from engine.dialogue.router import Router
from engine.dialogue.speakable import spell
from engine.dialogue.trigger import TriggerRules
from engine.errors import RefusedError

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
