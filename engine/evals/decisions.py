"""How well the router tells what to look up, by dialogues in writing: no audio, no clock, no network.

`python -m engine bench routing --dialogues FILE` plays them through `Routing`, as a conversation
does. FILE is JSON: `{"dialogues": [{"id", "turns": [{"speaker": "user"|"agent", "text", "expect":
"routed"|"left"}]}]}`; `expect` stands with the turns of the user. How a routed question is then
held and spoken is not seen here (dialogues.py).
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.lookup.question import Route
from engine.lookup.routing import Answers, Routing

FORM = '{"dialogues": [{"id": …, "turns": [{"speaker": "user", "text": …, "expect": "routed"}]}]}'


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
                if turn["speaker"] == "user" and turn["expect"] not in ("routed", "left"):
                    raise ValueError(f"expect is {turn['expect']!r}; use routed or left")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--dialogues {path}: {error}; the form is {FORM}") from None
    return dialogues


def as_heard(text: str) -> str:
    """As a recogniser without capitals and punctuation writes it."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.lower().replace("’", "'")).split())


def play(dialogues: Sequence[dict[str, Any]], answers: Answers, raw: bool) -> Iterator[Verdict]:
    for number, dialogue in enumerate(dialogues):
        voice = SilentVoice()
        routing = Routing(answers, voice, on=True)
        for turn in dialogue["turns"]:
            text = as_heard(turn["text"]) if raw else turn["text"]
            if turn["speaker"] != "user":
                routing.note_agent_text(f" {text}")
                continue
            voice.routes.clear()
            routing.note_turn(text)
            decided = "routed" if voice.routes else "left"
            yield Verdict(str(dialogue.get("id", number)), text, turn["expect"], decided)


class SilentVoice:
    """An `AgentVoice` (lookup/question.py) that only remembers what is routed."""

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def show(self, route: Route) -> None:
        self.routes.append(route)

    def refuse(self, message: str) -> None: ...

    def watch(self, on: bool) -> None: ...

    def hold(self, id: int, fillers: tuple[str, ...], apology: str, announced: bool) -> None: ...

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
