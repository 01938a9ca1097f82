"""Whether a finished turn of the user needs the product's facts: decided from its words alone.

Retrieval, no model: a question that lies nearer to the facts than to everyday talk is routed, so
small talk is never held. A short follow-up is read together with the question before it.
"""

import re

from engine.dialogue.knowledge import Found, Knowledge, Section, terms
from engine.dialogue.questions import is_question

LEAST_SCORE = 0.9  # of the facts; below it nothing has been found
SLACK = 1.3  # how much nearer to everyday talk a follow-up may be
FACTS_SENT = 3  # sections
FOLLOW_UP_WORDS = 9  # longer turns speak for themselves
FOLLOW_UP_TURNS = 2  # of the user, since the last routed one
REFERS_BACK = re.compile(
    r"\b(?:it|its|it's|that|that's|this|they|them|those|these|one|ones|and|also|what about|"
    r"how about|per|then|instead|else|more|no|not|meant|mean|other|cheaper|yearly|monthly)\b"
)
CORRECTS = re.compile(r"\b(?:i meant?|i was asking|i asked|not the|no,|instead)")


class Router:
    """Decides for all conversations of a server; remembers nothing."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge

    def prepare(self) -> None:
        """Make the index of the facts, so that no conversation waits for it."""
        _ = self._knowledge.index

    def needs_facts(self, text: str, before: str = "") -> bool:
        """Of a user's turn; `before` is the question routed a moment ago, if there was one."""
        found = self._knowledge.find(text)
        if is_question(text) and _is_near(found):
            return True
        if not before or not _follows_up(text):
            return False
        together = self._knowledge.find(f"{before} {text}")
        return _is_near(together) and found.everyday <= SLACK * max(found.score, LEAST_SCORE)

    def facts(self, question: str, before: str = "") -> tuple[Section, ...]:
        """What the text model should be shown for a question; the nearest first."""
        wider = f"{before} {question}" if before and _follows_up(question) else question
        found = self._knowledge.find(wider)
        return found.sections[:FACTS_SENT] if _is_near(found) else ()


def _is_near(found: Found) -> bool:
    return found.score >= LEAST_SCORE and found.score > found.everyday


def _follows_up(text: str) -> bool:
    """`And billed yearly?`, `No, I meant the business plan.`"""
    lower = text.lower().replace("’", "'")
    if len(lower.split()) > FOLLOW_UP_WORDS or not terms(lower):
        return False
    return bool(CORRECTS.search(lower) or (is_question(text) and REFERS_BACK.search(lower)))
