"""Whether a finished turn of the user is looked up: yes, no, or in doubt.

A logistic regression over relations (`evidence.py`), with the weights of `assets/router.json`; an
operator who brings other facts trains nothing. `engine/tools/fit_router.py` makes the weights and
the two thresholds. Until the vectors are there, and where they cannot be had, words alone decide,
without doubt. English only.
"""

import contextlib
import json
import logging
import math
import os
import sys
import threading
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import numpy as np

from engine.errors import ConfigError
from engine.lookup.evidence import RELATIONS, Evidence, Turn, is_question, load_talk, takes_back
from engine.lookup.knowledge import Found, Knowledge, Section, terms
from engine.lookup.vectors import WIDTH, load_vectors

logger = logging.getLogger(__name__)

WEIGHTS_FILE = Path(__file__).parents[2] / "assets" / "router.json"
LEAST_SCORE = 0.9  # BM25 of the facts; below it words alone have found nothing
LOW_PRIORITY = 10  # of the loading: a large base takes minutes, and frames come first
SLACK = 1.3  # how much nearer to everyday talk a follow-up may be
FOLLOW_UP_WORDS = 9  # longer turns speak for themselves

MARK = RELATIONS.index("written_question")  # 0: no punctuation at all


class Band(Enum):
    YES = auto()  # look it up at once
    DOUBT = auto()  # ask the text model whether it should be
    NO = auto()


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each relation counts, and where doubt begins and ends."""

    mean: np.ndarray  # [R] of the relations, as they were when the weights were fitted
    spread: np.ndarray  # [R]
    factors: np.ndarray  # [R]
    bias: float
    doubt_from: tuple[float, float]  # probabilities: of a turn with punctuation, and without any
    yes_from: tuple[float, float]
    direction: np.ndarray  # [385] of sentence vectors: reads as a customer's

    def probability(self, relations: np.ndarray) -> float:
        """That the turn needs the facts. relations: [R]."""
        odds = float(self.factors @ ((relations - self.mean) / self.spread)) + self.bias
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, odds))))

    def band(self, relations: np.ndarray) -> Band:
        probability, bare = self.probability(relations), int(relations[MARK] == 0)
        if probability >= self.yes_from[bare]:
            return Band.YES
        return Band.DOUBT if probability >= self.doubt_from[bare] else Band.NO


def load_weights(path: Path = WEIGHTS_FILE) -> Weights:
    """Raises ConfigError if the file does not fit the relations."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if list(data["relations"]) != list(RELATIONS):
            raise ValueError("its relations are others than those of evidence.py")
        rows = np.array(list(data["relations"].values()), float)
        direction = np.array(data["direction"], float)
        if direction.shape != (WIDTH + 1,):
            raise ValueError(f"its direction has {direction.size} numbers, not {WIDTH + 1}")
        mean, spread, factors = rows.T
        return Weights(
            mean,
            spread,
            factors,
            data["bias"],
            *((data[name], data[f"bare_{name}"]) for name in ("doubt_from", "yes_from")),
            direction,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path.name}: {error}; make it with python -m engine.tools.fit_router"
        ) from error


class Router:
    """Decides for all conversations with one base of facts; remembers nothing of them."""

    def __init__(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self._weights = load_weights()
        self._evidence: Evidence | None = None
        self._ready = threading.Event()  # vectors are there, or will not come
        self._begun = threading.Lock()  # held from the thread's start on, for ever

    def prepare(self) -> None:
        """Load the vectors in a thread of their own; again: nothing."""
        if self._begun.acquire(blocking=False):
            # No daemon: one that is inside the model at the process's end would abort it.
            threading.Thread(target=self._load, name="facts", daemon=False).start()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until decisions are as good as they will be; whether they are by meaning."""
        self.prepare()
        self._ready.wait(timeout)
        return self._evidence is not None

    def judge(self, turn: Turn) -> Band:
        """May take 20 ms: not in the event loop. Any thread."""
        if not turn.text.strip() or takes_back(turn.text):
            return Band.NO
        if self._evidence:
            return self._weights.band(self._evidence.of(turn))
        return Band.YES if self._needs_facts_by_words(turn) else Band.NO

    def facts(self, question: str, before: str = "") -> tuple[Section, ...]:
        """What the text model is shown: all of a small base, else the best up to a budget.

        before: the user's turn before it, which a short question may refer to. May take 20 ms.
        """
        if self.knowledge.is_small:
            return self.knowledge.sections
        short = before and len(question.split()) <= FOLLOW_UP_WORDS
        wider = f"{before} {question}" if short else question
        found = self.knowledge.find(wider)
        order = self._evidence.rank(wider, found) if self._evidence else found.order
        return self.knowledge.pick(order)

    def covers(self, question: str, before: str = "") -> bool:
        """Whether the facts' words have anything to do with it; for the client's `knowledge`."""
        return self.knowledge.find(f"{before} {question}").score > 0

    def _load(self) -> None:
        if sys.platform == "linux":  # elsewhere threads have no such priority
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
        try:
            self._evidence = Evidence(
                self.knowledge, load_vectors(), load_talk(), self._weights.direction
            )
        except Exception as error:  # the thread's boundary: words alone decide from now on
            what = f"{type(error).__name__}: {error}"
            logger.warning("routing decides by words alone: no sentence vectors (%s)", what)
        finally:
            self._ready.set()

    def _needs_facts_by_words(self, turn: Turn) -> bool:
        found = self.knowledge.find(turn.text)
        if is_question(turn.text) and _is_near(found):
            return True
        short = len(turn.text.split()) <= FOLLOW_UP_WORDS
        if not (turn.user_before and short and is_question(turn.text) and terms(turn.text)):
            return False
        before = self.knowledge.find(turn.user_before)
        together = self.knowledge.find(f"{turn.user_before} {turn.text}")
        near_everyday = together.everyday > SLACK * max(together.score, LEAST_SCORE)
        return _is_near(before) and _is_near(together) and not near_everyday


def _is_near(found: Found) -> bool:
    return found.score >= LEAST_SCORE and found.score > found.everyday
