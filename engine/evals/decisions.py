"""How well the router tells what to look up, by dialogues in writing.

No audio, no clock, no network. `python -m engine bench routing --dialogues FILE` plays them through
`Routing`, as a conversation does. FILE is JSON: `{"dialogues": [{"id", "turns": [{"speaker":
"user"|"agent", "text", "expect": "routed"|"left"}]}]}`; `expect` stands with the turns of the user.
How a routed question is then held and spoken is not seen here (dialogues.py).
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ConfigError
from engine.lookup.evidence import Turn
from engine.lookup.knowledge import Section
from engine.lookup.question import Route
from engine.lookup.router import Band, Router
from engine.lookup.routing import Answers, History, Routing

FORM = '{"dialogues": [{"id": …, "turns": [{"speaker": "user", "text": …, "expect": "routed"}]}]}'
DECIDED = {Band.YES: "routed", Band.DOUBT: "doubt", Band.NO: "left"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about one turn of the user."""

    dialogue: str
    text: str
    expected: str  # routed or left
    decided: str  # routed, left or doubt


def read_dialogues(path: Path) -> list[dict[str, Any]]:
    """Raises ConfigError naming what is wrong in the file."""
    try:
        dialogues = json.loads(path.read_text(encoding="utf-8-sig"))["dialogues"]
        for dialogue in dialogues:
            for turn in dialogue["turns"]:
                turn["text"].strip()
                if turn["speaker"] not in ("user", "agent"):
                    raise ValueError(f"speaker is {turn['speaker']!r}; use user or agent")
                if turn["speaker"] == "user" and turn["expect"] not in ("routed", "left"):
                    raise ValueError(f"expect is {turn['expect']!r}; use routed or left")
        if not any(turn["speaker"] == "user" for one in dialogues for turn in one["turns"]):
            raise ValueError("it has no turn of a user")
    except KeyError as error:
        raise ConfigError(f"--dialogues {path}: {error} is missing; the form is {FORM}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"--dialogues {path}: {error}; the form is {FORM}") from None
    return dialogues


def as_heard(text: str) -> str:
    """As a recogniser without capitals and punctuation writes it."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower().replace("’", "'")).split())


def turns_of(dialogue: dict[str, Any], write: Callable[[str], str]) -> Iterator[tuple[Turn, str]]:
    """Each turn of the user with what was said before it, and what is expected of it."""
    history = History()
    for turn in dialogue["turns"]:
        if turn["speaker"] == "user":
            yield history.add_user_turn(write(turn["text"])), turn["expect"]
        else:
            history.add_agent_text(f" {write(turn['text'])}")


async def play(dialogues: Sequence[dict[str, Any]], answers: Answers, raw: bool) -> list[Verdict]:
    """Without a key, so that nothing is asked: a doubt stays one."""
    verdicts = []
    for number, dialogue in enumerate(dialogues):
        routing = Routing(answers, SilentVoice(), on=True)
        for turn in dialogue["turns"]:
            text = as_heard(turn["text"]) if raw else turn["text"]
            if turn["speaker"] != "user":
                routing.note_agent_text(f" {text}")
                continue
            routing.note_turn(text)
            await routing.settle()
            name = str(dialogue.get("id", number))
            verdicts.append(Verdict(name, text, turn["expect"], DECIDED[routing.band]))
        await routing.close()
    return verdicts


class TimedRouter:
    """A router whose judgements are timed."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._spent: list[tuple[float, float]] = []  # seconds by the clock, and of the CPU

    def judge(self, turn: Turn) -> Band:
        clock, cpu = time.perf_counter(), time.thread_time()
        band = self._router.judge(turn)
        self._spent.append((time.perf_counter() - clock, time.thread_time() - cpu))
        return band

    def facts(self, question: str, before: str = "") -> tuple[Section, ...]:
        return self._router.facts(question, before)

    def covers(self, question: str, before: str = "") -> bool:
        return self._router.covers(question, before)

    def times(self) -> dict[str, float]:
        """Milliseconds a turn; other work on the machine does not change those of the CPU."""
        (p50, cpu50), (p95, cpu95) = 1e3 * np.percentile(self._spent, (50, 95), axis=0)
        shares = {"turn_ms_p50": p50, "turn_ms_p95": p95}
        shares |= {"turn_cpu_ms_p50": cpu50, "turn_cpu_ms_p95": cpu95}
        return {name: round(float(value), 1) for name, value in shares.items()}


class SilentVoice:
    """An `AgentVoice` (lookup/question.py) that says nothing and holds nothing."""

    def show(self, route: Route) -> None: ...

    def refuse(self, message: str) -> None: ...

    def watch(self, on: bool) -> None: ...

    def hold(self, id: int, fillers: tuple[str, ...], apology: str, announced: bool) -> None: ...

    def hold_back(self, id: int) -> None: ...

    def release(self, id: int) -> None: ...

    def say(self, text: str, answer: int = 0, growing: bool = False) -> int:
        return 1

    def add(self, say_id: int, text: str, last: bool = False) -> None: ...


def measure(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The figures as others read them; each is a share, 1.0 where there is nothing to count."""
    should = [one for one in verdicts if one.expected == "routed"]
    should_not = [one for one in verdicts if one.expected == "left"]
    clear = [one for one in verdicts if one.decided == "routed"]
    missed = [one for one in should if one.decided == "left"]
    hijacked = [one for one in should_not if one.decided == "routed"]
    return {
        "turns": len(verdicts),
        "precision": share(len(clear) - len(hijacked), len(clear)),
        "recall": share(len(should) - len(missed), len(should)),
        "left_alone": share(len(should_not) - len(hijacked), len(should_not)),
        "doubt": share(sum(one.decided == "doubt" for one in verdicts), len(verdicts), 0.0),
        "misses": [
            {"dialogue": one.dialogue, "text": one.text, "expected": one.expected,
             "decided": one.decided}
            for one in (*missed, *hijacked)
        ],
    }  # fmt: skip


def share(part: int, whole: int, of_none: float = 1.0) -> float:
    return round(part / whole, 4) if whole else of_none
