"""A director with a scripted model: what is fed, when words begin, what is told."""

import random
from collections.abc import Callable
from typing import Any

from engine.config import EPAD, PAD
from engine.dialogue import events as ev
from engine.dialogue.director import Director
from engine.dialogue.speech import prepare_command
from engine.runtime.backend import HeardRow
from engine.runtime.embedded import ByteTokenizer

LOUD, QUIET = 0.5, 0.0
OWN = ByteTokenizer().encode("own")[0]  # a piece the model would say by itself

Vote = Callable[[int], int]  # frame -> sampled token


def never(_frame: int) -> int:
    return PAD


def always(_frame: int) -> int:
    return EPAD


def always_a_piece(_frame: int) -> int:
    return OWN


def chance(rate: float, seed: int = 0) -> Vote:
    """EPAD or a piece in this share of the frames."""
    rng = random.Random(seed)
    return lambda _frame: rng.choice([EPAD, OWN]) if rng.random() < rate else PAD


class Scripted:
    """`frame` is one step; `fed`, `hushed` and `events` are what came of it, by frame."""

    def __init__(self, vote: Vote = never) -> None:
        self.tokenizer = ByteTokenizer()
        self.director = Director(self.tokenizer)
        self.vote = vote
        self.fed: list[int] = []
        self.hushed: list[bool] = []
        self.events: list[tuple[int, Any]] = []
        self.told: list[Any] = []  # events of no frame

    def take(self, command: ev.Command) -> None:
        self.told += self.director.take(prepare_command(command, self.tokenizer))

    def say(self, text: str, id: int = 1, **options: Any) -> None:
        self.take(ev.Say(id, text, **options))

    def frame(self, user: float = QUIET, agent: float = QUIET) -> int:
        sampled = self.vote(len(self.fed))
        token, hush = self.director.step(sampled, HeardRow(), user, agent)
        self.events += [(len(self.fed), event) for event in self.director.events()]
        self.fed.append(token)
        self.hushed.append(hush)
        return token

    def run(self, frames: int, user: float = QUIET, agent: float = QUIET) -> None:
        for _ in range(frames):
            self.frame(user, agent)

    def until_said(self, limit: int = 3000) -> None:
        for _ in range(limit):
            self.frame()
            if not self.director.agenda.current and not self.director.agenda.queue:
                return
        raise AssertionError("still speaking")

    # -- what came of it ---------------------------------------------------------------------------

    @property
    def text(self) -> str:
        return "".join(e.text for _, e in self.events if isinstance(e, ev.Text) and e.given)

    @property
    def own_text(self) -> str:
        return "".join(e.text for _, e in self.events if isinstance(e, ev.Text) and not e.given)

    @property
    def states(self) -> list[tuple[int, str]]:
        """(id, state) of every `say` event, in order."""
        both = [event for _, event in self.events] + self.told
        return [(e.id, str(e.state)) for e in both if isinstance(e, ev.Saying)]

    def spoken(self, id: int = 1) -> str:
        last = [e for _, e in self.events if isinstance(e, ev.Saying) and e.id == id][-1]
        return last.spoken

    def begins(self, words: list[Any]) -> list[int]:
        """The frame in which each word was begun (its EPAD, if it has one); all must be there."""
        frames, at = [], 0
        for word in words:
            while tuple(self.fed[at : at + len(word.ids)]) != word.ids:
                assert self.fed[at] in (PAD, EPAD), f"frame {at} breaks a word"
                at += 1
            frames.append(at - 1 if self.fed[at - 1] == EPAD else at)
            at += len(word.ids)
        assert set(self.fed[at:]) <= {PAD, EPAD}
        return frames
