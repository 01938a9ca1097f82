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

from engine.dialogue import events as ev
from engine.dialogue.events import SayState
from engine.dialogue.text import clean, spell
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
class SpokenWord:
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
    words: deque[SpokenWord]
    growing: bool = False  # more of it may come
    urgent: bool = False  # somebody is waiting for it: said in the next frame
    filler: bool = False  # said while an answer is being fetched
    begun: list[SpokenWord] = field(default_factory=list)
    pieces: deque[int] = field(default_factory=deque)  # of the current word, still to be fed
    since: int = 0  # frames since the current word was begun
    started: bool = False  # its `speaking` was reported
    seen: int = 0  # words shown so far: one that is said again is not shown again

    @property
    def spoken(self) -> str:
        return shown(self.begun)

    @property
    def word(self) -> SpokenWord:
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


def prepare(text: str, tokenizer: Tokenizer) -> list[SpokenWord]:
    """All words of a text, in order; nothing is dropped. Empty if there is nothing to say."""
    words: list[SpokenWord] = []
    for shown, spoken in _pairs(clean(text)):
        for i, part in enumerate(_parts(spoken)):
            ids = tuple(tokenizer.encode(part))
            words.append(SpokenWord("" if i else shown, part, ids, _pause(part)))
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


def _bounded(words: list[SpokenWord]) -> Iterator[SpokenWord]:
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
        yield SpokenWord(word.shown, word.spoken, word.ids, pause)


def shown(words: list[SpokenWord]) -> str:
    """The words as they were written."""
    return " ".join(word.shown for word in words if word.shown)


# -- agenda ----------------------------------------------------------------------------------------
#
# What an agent has been given to say: the text in hand, those waiting, what is reported of them.
#
# Order and bookkeeping, and the wait for the floor; the words' pace is `utterance.py`'s affair.

QUEUE_LIMIT = 10  # texts waiting to be said
FLOOR_WAIT_FRAMES = 25  # 2 s: the longest wait for a user who is speaking
ARM_FRAMES, ARM_LIMIT_FRAMES = 2, 8  # a word starts after 2 frames on a vote, after 8 anyway


@dataclass(slots=True)
class Arming:
    """The wait for the moment to begin a text; one that is urgent begins as soon as it may."""

    urgent: bool = False
    _waited: int = 0
    _for_the_floor: int = 0

    def is_time(self, voted: bool, user_speaks: bool) -> bool:
        """One more frame; voted: the model would start a word."""
        if user_speaks and self._for_the_floor < FLOOR_WAIT_FRAMES:
            self._for_the_floor += 1
            return False
        self._waited += 1
        return self.urgent or self._waited >= (ARM_FRAMES if voted else ARM_LIMIT_FRAMES)


class Agenda:
    """One conversation's texts. Reports go into `events`, which the director owns."""

    def __init__(self, tokenizer: Tokenizer, events: list[ev.Event]) -> None:
        self.current: Utterance | None = None
        self.queue: deque[Utterance] = deque()
        self._tokenizer = tokenizer
        self._events = events

    def __bool__(self) -> bool:
        return bool(self.current or self.queue)

    def add(self, say: ev.Say, filler: bool = False) -> bool:
        """Queue a text, an answer or filler before the others; whether it was accepted."""
        words = deque(prepare(say.text, self._tokenizer))
        urgent = bool(say.answer or filler)
        if not words and not say.growing:
            self._events.append(ev.Refused("say: nothing in this text can be spoken; send words"))
            return False
        if len(self.queue) >= QUEUE_LIMIT and not urgent:
            self._events.append(
                ev.Refused(f"say: {QUEUE_LIMIT} texts are waiting already; wait for one, or cancel")
            )
            return False
        said = Utterance(say.id, say.text, words, say.growing, urgent, filler)
        if not filler:  # one that is not needed after all was never there
            self._events.append(ev.Saying(say.id, SayState.QUEUED, say.text))
        if urgent:
            self.queue.appendleft(said)
        else:
            self.queue.append(said)
        return True

    def grow(self, more: ev.More) -> None:
        """Add a clause to a growing text; one that is over is left alone."""
        for said in (self.current, *self.queue):
            if said and said.id == more.id and said.growing:
                said.words += prepare(more.text, self._tokenizer)
                said.text = f"{said.text} {more.text}".strip()
                said.growing = not more.last

    def take_next(self) -> Utterance:
        """The first text that waits comes into hand."""
        self.current = self.queue.popleft()
        return self.current

    def begin(self) -> None:
        """The text in hand has the floor: its next word begins."""
        if not self.current.started:
            self.current.started = True
            self._report(SayState.SPEAKING)
        self.current.begin_word()

    def feed_piece(self) -> int:
        """The next piece of the word in hand; the word is shown with its first one."""
        piece, shown = self.current.next_piece()
        if shown:
            self._events.append(ev.Text(f" {shown}", given=True))
        return piece

    def finish(self, state: SayState) -> None:
        """The text in hand is over."""
        if self.current.started or not self.current.filler:
            self._report(state)
        self.current = None

    def drop_waiting(self) -> None:
        for said in self.queue:  # a filler never waits
            self._events.append(ev.Saying(said.id, SayState.CANCELLED, said.text))
        self.queue.clear()

    def _report(self, state: SayState) -> None:
        said = self.current
        self._events.append(ev.Saying(said.id, state, said.text, said.spoken))
