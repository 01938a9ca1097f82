"""A text to be said, as the words the director feeds one by one (listening.md 2.2).

Each word keeps what was written (for the transcript) beside the pieces that are fed (for the
voice), and how fast and how late the word after it may start.
"""

import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from engine.dialogue.speakable import clean, spell
from engine.runtime.backend import Tokenizer

FASTEST_FRAMES_PER_LETTER = 0.6  # about 20 letters a second
SLOWEST_FRAMES_PER_LETTER = 1.2
SHORTEST_LIMIT_FRAMES = 8
CLAUSE_PAUSE_FRAMES, SENTENCE_PAUSE_FRAMES = 6, 10
MAX_WORD_LETTERS = 30  # a script without blanks would be one word of minutes
DRY_FRAMES = 12  # a growing text may run out of words for so long
MAX_SENTENCE_WORDS = 40  # longer ones drift from the model's own plan of its prosody


class Pace(Enum):
    """What one frame of a text that is being said holds."""

    PIECE, WAIT, WORD, END = (auto() for _ in range(4))  # WORD: the next word begins


@dataclass(frozen=True, slots=True)
class Word:
    """One spoken word."""

    shown: str  # what was written; "" where the written word goes on (`$14` is two spoken words)
    spoken: str
    ids: tuple[int, ...]  # its pieces, fed in consecutive frames
    pause: int = 0  # frames by which the next word may be later

    @property
    def need(self) -> int:
        """Frames from its start before the next word may start."""
        return max(len(self.ids) + 1, math.ceil(FASTEST_FRAMES_PER_LETTER * len(self.spoken)))

    @property
    def ring_out(self) -> int:
        """Frames from its start after which it has surely been spoken."""
        slow = math.ceil(SLOWEST_FRAMES_PER_LETTER * len(self.spoken)) + 2
        return max(SHORTEST_LIMIT_FRAMES, slow, self.need)

    @property
    def limit(self) -> int:
        """Frames from its start when the next word starts at the latest."""
        return self.ring_out + self.pause


@dataclass(slots=True)
class Utterance:
    """A text on its way: the words to come, the words begun, the word being fed."""

    id: int
    text: str
    words: deque[Word]
    growing: bool = False  # more of it may come
    urgent: bool = False  # somebody is waiting for it: said in the next frame
    filler: bool = False  # said while an answer is being fetched
    begun: list[Word] = field(default_factory=list)
    pieces: deque[int] = field(default_factory=deque)  # of the current word, still to be fed
    since: int = 0  # frames since the current word was begun
    started: bool = False  # its `speaking` was reported
    seen: int = 0  # words shown so far: one that is said again is not shown again

    @property
    def spoken(self) -> str:
        return shown(self.begun)

    @property
    def word(self) -> Word:
        """The word begun last."""
        return self.begun[-1]

    def pace(self, voted: bool, quiet: bool) -> Pace:
        """Go on by a frame; voted: the model would start a word, quiet: the agent is silent."""
        self.since += 1
        if self.pieces:
            return Pace.PIECE  # never cut inside a word
        if self.since < self.word.need:
            return Pace.WAIT
        if not self.words:
            return Pace.END if self._has_rung_out(voted and quiet) else Pace.WAIT
        return Pace.WORD if voted or self.since >= self.word.limit else Pace.WAIT

    def _has_rung_out(self, ended: bool) -> bool:
        """After the last word: whether its audio has ended, or surely must have."""
        limit = self.word.ring_out + (DRY_FRAMES if self.growing else 0)
        return (ended and not self.growing) or self.since >= limit

    def begin_word(self) -> None:
        word = self.words.popleft()
        self.begun.append(word)
        self.pieces.extend(word.ids)
        self.since = 0

    def next_piece(self) -> tuple[int, str]:
        """The piece to feed, and what is shown with it (with the first piece of a word)."""
        new = len(self.begun) > self.seen
        self.seen = max(self.seen, len(self.begun))
        return self.pieces.popleft(), self.word.shown if new else ""

    def step_back(self) -> None:
        """Take back a word that is only half fed: it is said again from its start."""
        if self.pieces:
            self.words.appendleft(self.begun.pop())
            self.pieces.clear()


def prepare(text: str, tokenizer: Tokenizer) -> list[Word]:
    """All words of a text, in order; nothing is dropped. Empty if there is nothing to say."""
    words: list[Word] = []
    for shown, spoken in _pairs(clean(text)):
        for i, part in enumerate(_parts(spoken)):
            ids = tuple(tokenizer.encode(part))
            words.append(Word("" if i else shown, part, ids, _pause(part)))
    return list(_bounded(words))


def _parts(spoken: str) -> list[str]:
    """A word in bounded parts: nothing can be cancelled inside one, or played before its end."""
    return [spoken[i : i + MAX_WORD_LETTERS] for i in range(0, len(spoken), MAX_WORD_LETTERS)]


def _pairs(text: str) -> list[tuple[str, str]]:
    """(shown, spoken) words; what cannot be spoken (a dash) is shown with the word before it."""
    pairs: list[tuple[str, str]] = []
    opening: list[str] = []  # tokens that cannot be spoken, before the first word
    for token in text.split():
        spoken = spell(token)
        if spoken:
            pairs.append((" ".join([*opening, token]), spoken[0]))
            pairs += [("", word) for word in spoken[1:]]
            opening = []
        elif pairs:
            pairs[-1] = (f"{pairs[-1][0]} {token}".strip(), pairs[-1][1])
        else:
            opening.append(token)
    return pairs


def _pause(spoken: str) -> int:
    if re.search(r"[.?!…]$", spoken):
        return SENTENCE_PAUSE_FRAMES
    return CLAUSE_PAUSE_FRAMES if re.search(r"[,;:]$", spoken) else 0


def _bounded(words: list[Word]) -> Iterator[Word]:
    """Give sentences of more than 40 words a pause: at their last comma, else where they are."""
    start = comma = 0
    breaks = set()
    for i, word in enumerate(words):
        if word.pause:
            comma = i + 1
        if word.pause == SENTENCE_PAUSE_FRAMES:
            start = i + 1
        elif i + 1 - start >= MAX_SENTENCE_WORDS:
            start = comma if comma > start else i + 1
            breaks.add(start - 1)
    for i, word in enumerate(words):
        pause = SENTENCE_PAUSE_FRAMES if i in breaks else word.pause
        yield Word(word.shown, word.spoken, word.ids, pause)


def shown(words: list[Word]) -> str:
    """The words as they were written."""
    return " ".join(word.shown for word in words if word.shown)
