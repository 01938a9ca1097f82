"""Whether a finished turn of the user needs the product's facts: decided from its words alone.

Retrieval, no model: a question that lies nearer to the facts than to everyday talk is routed, so
small talk is never held. A short follow-up is read together with the question before it. English
only.
"""

import re

from engine.lookup.knowledge import Found, Knowledge, Section, terms

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
LEAD_IN = re.compile(
    r"(?:(?:and|so|well|oh|ok|okay|um|uh|er|hmm?|but|also|then|yes|yeah|yep|no|nope|right|great|good|"
    r"alright|all right|hi|hello|hey|thanks|thank you|now|actually|please|sorry|cool|nice|sure|"
    r"i see|got it|there|nora)\b[^a-z]*)+"
)
ASKS_FIRST = re.compile(
    r"(?:who|whose|what|which|when|where|why|how|whats|is|are|was|were|am|do|does|did|can|could|"
    r"will|would|should|shall|may|might|have|has|had|isn't|aren't|doesn't|don't|didn't|can't|won't|"
    r"any|tell|explain|describe|show|give|list|compare|remind)\b"
)
ASKS_ANYWHERE = re.compile(
    r"\?|\b(?:tell me|let me know|i(?:'d| would) like to (?:know|hear|learn)|"
    r"i (?:want|need|wanted) to know|"
    r"i(?:'m| am| was) (?:just )?(?:wondering|curious|asking)|(?:do|would) you know|what about|"
    r"how about|how much|how many|how long|can you|could you|what is|what's)\b"
)
TAKES_BACK = re.compile(r"\b(?:never mind|forget it|forget about it)$")


class Router:
    """Decides for all conversations of a server; remembers nothing."""

    def __init__(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge

    def needs_facts(self, text: str, before: str = "") -> bool:
        """Of a user's turn; `before` is the question routed a moment ago, if there was one."""
        found = self.knowledge.find(text)
        if is_question(text) and _is_near(found):
            return True
        if not before or not _follows_up(text):
            return False
        together = self.knowledge.find(f"{before} {text}")
        return _is_near(together) and found.everyday <= SLACK * max(found.score, LEAST_SCORE)

    def facts(self, question: str, before: str = "") -> tuple[Section, ...]:
        """What the text model should be shown for a question; the nearest first."""
        wider = f"{before} {question}" if before and _follows_up(question) else question
        found = self.knowledge.find(wider)
        return found.sections[:FACTS_SENT] if _is_near(found) else ()


def _is_near(found: Found) -> bool:
    return found.score >= LEAST_SCORE and found.score > found.everyday


def _follows_up(text: str) -> bool:
    """`And billed yearly?`, `No, I meant the business plan.`"""
    lower = text.lower().replace("’", "'")
    if len(lower.split()) > FOLLOW_UP_WORDS or not terms(lower):
        return False
    return bool(CORRECTS.search(lower) or (is_question(text) and REFERS_BACK.search(lower)))


def is_question(text: str) -> bool:
    """`And how much is it` and `Tell me about prices` ask; `Premium was great` does not."""
    lower = text.lower().replace("’", "'").strip(" .,!…-")
    if TAKES_BACK.search(lower):
        return False
    if ASKS_ANYWHERE.search(lower):
        return True
    lead = LEAD_IN.match(lower)
    return bool(ASKS_FIRST.match(lower, lead.end() if lead else 0))
