"""The product's facts: read from a folder, searched by words, handed out up to a budget.

Every `##` section of a Markdown file is one fact sheet; what stands before the first is one too,
and so is a text file. HTML comments inside a section are searched but never sent. Here is the
search by words (BM25, well under a millisecond); by meaning is `evidence.py`.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ConfigError
from engine.lookup.names import Names

if TYPE_CHECKING:
    import bm25s

logger = logging.getLogger(__name__)

KNOWLEDGE_FOLDER = Path(__file__).parents[2] / "assets" / "knowledge"
SENT_CHARS = 8000  # of facts with a question: all of a small base, the best of a large one
COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
HEADING = re.compile(r"^(#{1,2}) +(.+?)[ #]*$")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SUFFIXES = ("ies", "ing", "ed", "es", "e", "s")
K1, B = 0.8, 0.25  # how much repetition counts; how much a long section is marked down
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
    hints: tuple[str, ...] = ()  # other words in which people ask for it

    @property
    def searched(self) -> str:
        return f"{self.title} {self.text} {' '.join(self.hints)}"

    @property
    def sheet(self) -> str:
        """As it is sent."""
        return f"{self.title}: {self.text}"

    def sentences(self) -> Iterator[str]:
        """What a question may lie near to."""
        yield self.title
        for sentence in SENTENCE_END.split(self.text):
            if sentence:
                yield f"{self.title}: {sentence}"
        yield from self.hints


@dataclass(frozen=True, slots=True)
class Found:
    """How near a question's words are to the facts, and to everyday talk."""

    score: float  # BM25 of the best section
    everyday: float  # BM25 of the best everyday sentence
    order: tuple[int, ...] = ()  # of the sections with any score, the best first


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


# -- reading ---------------------------------------------------------------------------------------


def read_sections(text: str, name: str = "") -> tuple[list[Section], list[str]]:
    """The sections of one Markdown text, and its `#` titles.

    A heading inside a code fence or a comment is none. What stands before the first `##` is a
    section under the `#` title, or under `name`.
    """
    sections: list[Section] = []
    heads: list[str] = []
    title, body, fence, comments = "", [], "", 0
    for line in text.splitlines():
        commented = comments > 0  # opened and not closed yet
        comments = max(0, comments + line.count("<!--") - line.count("-->"))
        mark = FENCE.match(line)
        heading = None if fence or commented else HEADING.match(line)
        if mark and not commented:
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence):
                fence = ""
        if heading:
            sections += _close(title or (heads[0] if heads else name), body)
            if heading[1] == "#":
                heads.append(heading[2].strip())
            title, body = heading[2].strip(), []
        else:
            body.append(line + "\n")
    return sections + _close(title or name, body), heads


def _close(title: str, body: Sequence[str]) -> list[Section]:
    """The section that these lines make; none if they say nothing."""
    whole = "".join(body)
    text = " ".join(COMMENT.sub("", whole).split())
    comments = " , ".join(COMMENT.findall(whole))
    hints = tuple(hint for part in comments.split(",") if (hint := " ".join(part.split())))
    return [Section(title, text, hints)] if text else []


def read_text(path: Path) -> str:
    """UTF-8 with or without its mark. Raises ConfigError for anything else."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"knowledge: {path} is not UTF-8 (byte {error.object[error.start]:#04x} at "
            f"{error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"knowledge: {path}: {error.strerror}; make it readable") from None


class Knowledge:
    """The facts of one folder. Read-only after it is made."""

    def __init__(
        self,
        sections: Sequence[Section],
        everyday: Sequence[str] = (),
        heads: Sequence[str] = (),
        folder: Path = KNOWLEDGE_FOLDER,
    ) -> None:
        self.sections = tuple(sections)
        self.folder = folder
        self.names = Names([*heads, *(section.title for section in sections)])
        self._corpus = [terms(section.searched) for section in sections]
        self._corpus += [terms(sentence) for sentence in everyday]
        self._known = {term for document in self._corpus for term in document}
        self.is_small = sum(len(section.sheet) + 1 for section in sections) <= SENT_CHARS

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
        """All .md and .txt of a folder and those below it.

        Other files are named in one warning. Raises ConfigError if there is nothing in it.
        """
        if not folder.is_dir():
            raise ConfigError(f"knowledge: {folder} is no folder; give one with *.md or *.txt")
        sections, heads, others = [], [], []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                continue
            match path.suffix.lower():
                case ".md":
                    found, titles = read_sections(read_text(path), path.stem)
                    sections += found
                    heads += titles
                case ".txt":
                    sections += _close(path.stem, [read_text(path)])
                case _:
                    others.append(path.name)
        if others:
            logger.warning("knowledge: only .md and .txt are read; left out: %s", ", ".join(others))
        if not sections:
            raise ConfigError(
                f"knowledge: no facts in {folder} (*.md, *.txt); add some, or unset it"
            )
        return cls(sections, everyday, heads, folder)

    def find(self, question: str) -> Found:
        asked = [term for term in terms(question) if term in self._known]
        if not asked:
            return Found(0.0, 0.0)
        scores = self.index.get_scores(asked)
        count = len(self.sections)
        best = scores[:count].argsort(kind="stable")[::-1]
        everyday = float(scores[count:].max()) if len(scores) > count else 0.0
        order = tuple(int(i) for i in best[:100] if scores[i] > 0)
        return Found(float(scores[best[0]]), everyday, order)

    def pick(self, order: Sequence[int]) -> tuple[Section, ...]:
        """What is sent of a base that is not small: the first of `order` that fit."""
        picked, left = [], SENT_CHARS
        for i in order:
            section = self.sections[i]
            if len(section.sheet) > left and not picked:  # one long section is cut
                section = Section(section.title, section.text[: left - len(section.title) - 3])
            if len(section.sheet) <= left:
                picked.append(section)
                left -= len(section.sheet) + 1
        return tuple(picked)
