"""Whether a sentence asks for something; by its words, not by a model. English only."""

import re

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


def is_question(text: str) -> bool:
    """`And how much is it` and `Tell me about prices` ask; `Premium was great` does not."""
    lower = text.lower().replace("’", "'").strip(" .,!…-")
    if TAKES_BACK.search(lower):
        return False
    if ASKS_ANYWHERE.search(lower):
        return True
    lead = LEAD_IN.match(lower)
    return bool(ASKS_FIRST.match(lower, lead.end() if lead else 0))
