"""A streamed answer cut into clauses that can be spoken while the rest is still being written.

Bounds the answer too: three sentences, and so many words. Cleaning and spelling are
`speakable.py`'s affair; here only list marks go, because they show at line starts alone.
"""

import re

FIRST_WORDS = 4  # of the first clause: speech starts with it
LONG_WORDS = 12  # a clause without any punctuation is cut here
MAX_SENTENCES = 3
MAX_WORDS = 90
LONGEST_BRACKET = 200  # characters; a bracket longer than this is none
LIST_MARK = re.compile(r"^\s*(?:[-*•+]|\d{1,2}[.)])\s+", re.MULTILINE)
LIST_MARK_BEGUN = re.compile(r"(?:^|\n)\s*(?:[-*•+]|\d{1,2}[.)]?)?\s*$")
BREAK = re.compile(r"""(?P<end>[.!?…]+["'”’)*_\]]*(?=\s)|\n)|[,;:](?=\s)""")
ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|mr|mrs|ms|dr|st|vs|approx|no|inc|ltd|etc|a\.m|p\.m)|\b[a-z])\.$",
    re.IGNORECASE,
)


class Clauses:
    """Feed pieces of text, take whole clauses; `full` when no more should be read."""

    def __init__(self) -> None:
        self.full = False
        self._text = ""
        self._sentences = self._words = 0

    def feed(self, text: str) -> list[str]:
        """The clauses that are complete now."""
        self._text += text
        clauses = []
        while not self.full and (cut := self._find_cut()):
            end, is_sentence = cut
            clauses += self._take(end, is_sentence)
        return clauses

    def finish(self) -> list[str]:
        """The stream is over: what is left of it."""
        return [] if self.full else self._take(len(self._text), True)

    def _take(self, end: int, is_sentence: bool) -> list[str]:
        clause, self._text = LIST_MARK.sub("", self._text[:end]).strip(), self._text[end:]
        words = clause.split()
        if not words:
            return []
        kept = words[: MAX_WORDS - self._words]
        self._words += len(kept)
        self._sentences += is_sentence
        self.full = self._sentences >= MAX_SENTENCES or self._words >= MAX_WORDS
        return [" ".join(kept)]

    def _find_cut(self) -> tuple[int, bool] | None:
        """Where the first whole clause ends, and whether a sentence ends with it."""
        for match in BREAK.finditer(self._text):
            before = self._text[: match.end()]
            if _inside_bracket(before) or LIST_MARK_BEGUN.search(before.rstrip("\n") or "x"):
                continue
            words, is_sentence = len(before.split()), match["end"] is not None
            if is_sentence and ABBREVIATION.search(before):
                continue
            if words >= self._least or (is_sentence and words):
                return match.end(), is_sentence
        return self._cut_long()

    @property
    def _least(self) -> int:
        return FIRST_WORDS if self._words == 0 else 2

    def _cut_long(self) -> tuple[int, bool] | None:
        words = list(re.finditer(r"\S+\s", self._text))
        if len(words) < LONG_WORDS or _inside_bracket(self._text):
            return None
        return words[LONG_WORDS - 1].end(), False


def _inside_bracket(text: str) -> bool:
    """Whether a bracket is open, as in a link whose end has not come yet."""
    for opening, closing in ("[]", "()"):
        at = text.rfind(opening)
        if at > text.rfind(closing) and len(text) - at < LONGEST_BRACKET:
            return True
    return False
