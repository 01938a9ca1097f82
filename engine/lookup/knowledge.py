"""The product's facts and how to find the ones that matter: BM25 over the sections of *.md files.

A folder of Markdown; each `##` section is one fact sheet. What stands in HTML comments inside a
section is searched but never sent. No model, no network; a search takes well under a millisecond.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ConfigError

if TYPE_CHECKING:
    import bm25s

KNOWLEDGE_FOLDER = Path(__file__).parents[2] / "assets" / "knowledge"
COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
SUFFIXES = ("ies", "ing", "ed", "es", "e", "s")
K1, B = 0.8, 0.25  # how much repetition counts; how much a long section is marked down
NAMES = 12  # that a recogniser is told
STOP_WORDS = re.compile(
    r"a|an|the|and|or|of|to|in|on|at|for|with|by|from|as|up|down|out|off|about|into|over|"
    r"is|are|was|were|be|been|am|do|does|did|have|has|had|can|could|will|would|should|may|might|"
    r"it|its|this|that|these|those|there|here|i|me|my|we|us|our|you|your|he|she|they|them|"
    r"what|which|who|when|where|why|how|if|than|but|so|then|just|really|very|too|also|well|"
    r"please|um|uh|one|some|any|all|no|not|yes|other|else|thing|now|need|want|get|got|know|tell|said|say"
)


@dataclass(frozen=True, slots=True)
class Section:
    """One fact sheet."""

    title: str
    text: str  # what the text model is shown
    searched: str  # title, text and the words people use for it


@dataclass(frozen=True, slots=True)
class Found:
    """How near a question is to the facts, and to everyday talk."""

    score: float  # BM25 of the best section
    everyday: float  # BM25 of the best everyday sentence
    sections: tuple[Section, ...]  # the best first


def terms(text: str) -> list[str]:
    """Words for the search: lower case, stop words out, endings cut."""
    words = re.findall(r"[a-z]+|\d+", text.lower().replace("’", "'").replace("'s", ""))
    return [stem(word) for word in words if not STOP_WORDS.fullmatch(word)]


def stem(word: str) -> str:
    """`transcribes`, `transcribing` -> `transcrib`; rough, and the same on both sides."""
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word.removesuffix(suffix)
    return word


def read_sections(text: str) -> list[Section]:
    """The `##` sections of one Markdown text."""
    sections = []
    for part in re.split(r"^## +", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        facts = " ".join(COMMENT.sub("", body).split())
        hints = " ".join(COMMENT.findall(body))
        sections.append(Section(title.strip(), facts, f"{title} {facts} {hints}"))
    return sections


class Knowledge:
    """The facts of one server. Read-only after it is made."""

    def __init__(self, sections: Sequence[Section], everyday: Sequence[str] = ()) -> None:
        self.sections = tuple(sections)
        self._corpus = [terms(section.searched) for section in sections]
        self._corpus += [terms(sentence) for sentence in everyday]
        self._known = {term for document in self._corpus for term in document}

    @cached_property
    def index(self) -> "bm25s.BM25":
        """Made when it is first needed; the server makes it while it starts."""
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it reports each index at DEBUG
        index = bm25s.BM25(k1=K1, b=B)
        index.index(self._corpus, show_progress=False)
        return index

    @classmethod
    def load(cls, folder: Path = KNOWLEDGE_FOLDER, everyday: Sequence[str] = ()) -> "Knowledge":
        """All *.md of a folder. Raises ConfigError if there is nothing in it."""
        sections = [
            section
            for path in sorted(folder.glob("*.md"))
            for section in read_sections(path.read_text(encoding="utf-8"))
        ]
        if not sections:
            raise ConfigError(f"knowledge: no ## section in {folder}/*.md; add one, or unset it")
        return cls(sections, everyday)

    def names(self) -> str:
        """What the facts are about: words that they never write without a capital."""
        text = " ".join(f"{section.title}. {section.text}" for section in self.sections)
        words = Counter(re.findall(r"[A-Za-z]{4,}", text))
        names = [word for word, times in words.most_common() if times > 1 and word[0].isupper()]
        return " ".join([name for name in names if name.lower() not in words][:NAMES])

    def find(self, question: str) -> Found:
        asked = [term for term in terms(question) if term in self._known]
        if not asked:
            return Found(0.0, 0.0, ())
        scores = self.index.get_scores(asked)
        count = len(self.sections)
        best = scores[:count].argsort()[::-1]
        everyday = float(scores[count:].max()) if len(scores) > count else 0.0
        sections = tuple(self.sections[i] for i in best if scores[i] > 0)
        return Found(float(scores[best[0]]), everyday, sections)
