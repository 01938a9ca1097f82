"""Whether a finished turn of the user needs the product's facts: decided from its words alone.

Retrieval, no model: a question that lies nearer to the facts than to everyday talk is routed, so
small talk is never held. A short follow-up is read together with the question before it.
"""

import re
from dataclasses import dataclass

from engine.dialogue.knowledge import Found, Knowledge, Section, terms
from engine.dialogue.questions import is_question

LEAST_SCORE = 0.9  # of the facts; below it nothing has been found
FACTS_SENT = 3  # sections
FOLLOW_UP_WORDS = 9  # longer turns speak for themselves
FOLLOW_UP_TURNS = 2  # of the user, since the last routed one
REFERS_BACK = re.compile(
    r"\b(?:it|its|it's|that|that's|this|they|them|those|these|one|ones|and|also|what about|"
    r"how about|per|then|instead|else|more|no|not|meant|mean|other|cheaper|yearly|monthly)\b"
)
CORRECTS = re.compile(r"\b(?:i meant?|i was asking|i asked|not the|no,|instead)")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a turn."""

    route: bool
    facts: tuple[Section, ...] = ()  # what the text model should be shown


class Router:
    """Decides for all conversations of a server; remembers nothing."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge

    def decide(self, text: str, before: str = "") -> Decision:
        """A user's turn; `before` is the question routed a moment ago, if there was one."""
        found = self._knowledge.find(text)
        if is_question(text) and _is_near(found):
            return Decision(True, found.sections[:FACTS_SENT])
        if before and _follows_up(text):
            together = self._knowledge.find(f"{before} {text}")
            if _is_near(together) and found.everyday <= max(found.score, LEAST_SCORE):
                return Decision(True, together.sections[:FACTS_SENT])
        return Decision(False)

    def facts(self, question: str, before: str = "") -> tuple[Section, ...]:
        """The facts for a question that is asked in any case."""
        found = self._knowledge.find(question)
        if not _is_near(found) and before:
            found = self._knowledge.find(f"{before} {question}")
        return found.sections[:FACTS_SENT] if _is_near(found) else ()


def _is_near(found: Found) -> bool:
    return found.score >= LEAST_SCORE and found.score > found.everyday


def _follows_up(text: str) -> bool:
    """`And billed yearly?`, `No, I meant the business plan.`"""
    lower = text.lower().replace("’", "'")
    if len(lower.split()) > FOLLOW_UP_WORDS or not terms(lower):
        return False
    return bool(CORRECTS.search(lower) or (is_question(text) and REFERS_BACK.search(lower)))
