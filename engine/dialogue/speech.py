"""What an agent has been given to say, in order and at a natural pace.

`Agenda` holds the text in hand and those that wait, and reports what becomes of them. `Utterance`
paces one text, word by word: the model's votes decide when a word starts, within limits. `Arming`
is the wait for the floor before a text. All of it belongs to the director and takes prepared words;
`prepare_command` makes them, in another thread.
"""

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from engine.dialogue import events as ev
from engine.dialogue.events import SayState
from engine.dialogue.text import SpokenWord, clean, prepare
from engine.runtime.backend import Tokenizer

QUEUE_LIMIT = 10  # texts waiting to be said
QUEUE_FULL = f"say: {QUEUE_LIMIT} texts are waiting already; wait for one, or cancel"
NOTHING_TO_SAY = "say: nothing in this text can be spoken; send words"
FLOOR_WAIT_FRAMES = 25  # 2 s: the longest wait for a user who is speaking
ARM_FRAMES, ARM_LIMIT_FRAMES = 2, 8  # a word starts after 2 frames on a vote, after 8 anyway
DRY_FRAMES = 12  # how long a growing text may be out of words
CLAUSE_ENDS = (",", ";", ":", ".", "?", "!")  # of a word, where a text may go on after a stop
PHRASES_KEPT = 64  # fillers and apologies, for all tokenizers


def prepare_command(
    command: ev.Command, tokenizer: Tokenizer, rest: Callable[[], object] | None = None
) -> ev.Command:
    """The command with the words of its texts. Any thread but the scheduler's."""
    match command:
        case ev.Say(text=text, growing=True) | ev.More(text=text):
            return replace(command, text=clean(text), words=prepare(text, tokenizer, rest))
        case ev.Say(text=text, fixed=True):
            return replace(command, words=prepare_phrase(text, tokenizer))
        case ev.Say(text=text):
            return replace(command, words=prepare(text, tokenizer, rest))
        case ev.Hold(fillers=fillers, apology=apology):
            fillers = tuple(replace(s, words=prepare_phrase(s.text, tokenizer)) for s in fillers)
            if apology:
                apology = replace(apology, words=prepare_phrase(apology.text, tokenizer))
            return replace(command, fillers=fillers, apology=apology)
    return command


@functools.lru_cache(PHRASES_KEPT)
def prepare_phrase(text: str, tokenizer: Tokenizer) -> tuple[SpokenWord, ...]:
    """The words of one of our fixed phrases, which are prepared once."""
    return prepare(text, tokenizer)


class Agenda:
    """One conversation's texts. Reports go into `events`, which the director owns."""

    def __init__(self, events: list[ev.Event]) -> None:
        self.current: Utterance | None = None
        self.queue: deque[Utterance] = deque()
        self._events = events

    def add(self, say: ev.Say, filler: bool = False) -> bool:
        """Queue a text, an answer or filler before the others; whether it was accepted."""
        urgent = bool(say.answer or filler)
        if not say.words and not say.growing:
            self._events.append(ev.Refused(NOTHING_TO_SAY, say.id))
            return False
        if len(self.queue) >= QUEUE_LIMIT and not urgent:
            self._events.append(ev.Refused(QUEUE_FULL, say.id))
            return False
        said = Utterance(say.id, say.text, deque(say.words), say.growing, urgent, filler)
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
                said.words += more.words
                said.text = f"{said.text} {more.text}".strip()
                said.parts += not more.last
                said.growing = not more.last

    def take_next(self) -> "Utterance":
        """The first text that waits comes into hand."""
        self.current = self.queue.popleft()
        self._events.append(ev.TakenUp(self.current.id))
        return self.current

    def begin(self) -> None:
        """The text in hand has the floor: its next word begins."""
        said = self.current
        if not said.started:
            said.started = True
            self._report(SayState.SPEAKING)
        said.begun.append(said.words.popleft())
        said.pieces.extend(said.word.ids)
        said.since = 0

    def feed_piece(self) -> int:
        """The next piece of the word in hand; the word is shown with its first one."""
        said = self.current
        if len(said.begun) > said.seen:
            said.seen = len(said.begun)
            if said.word.shown:
                self._events.append(ev.Text(f" {said.word.shown}", given=True))
        return said.pieces.popleft()

    def finish(self, state: SayState) -> None:
        if self.current.started or not self.current.filler:
            self._report(state)
        self.current = None

    def resume(self) -> None:
        """The text in hand was stopped for nothing: it goes on from the start of its clause."""
        self.current.step_back_to_clause()
        self._report(SayState.RESUMED)

    def drop_waiting(self) -> None:
        for said in self.queue:  # a filler never waits
            self._events.append(ev.Saying(said.id, SayState.CANCELLED, said.text))
        self.queue.clear()

    def _report(self, state: SayState) -> None:
        said = self.current
        self._events.append(ev.Saying(said.id, state, said.text, said.spoken, said.parts))


class Pace(Enum):
    """What one frame of a text that is being said holds."""

    PIECE, WAIT, WORD, END = (auto() for _ in range(4))  # WORD: the next word begins


@dataclass(slots=True)
class Utterance:
    """A text on its way: the words to come, the words begun, the word being fed."""

    id: int
    text: str
    words: deque[SpokenWord]
    growing: bool = False  # more of it may come
    urgent: bool = False  # somebody is waiting for it: said in the next frame
    filler: bool = False  # said while an answer is being fetched
    parts: int = 1  # of a growing text that have come
    begun: list[SpokenWord] = field(default_factory=list)
    pieces: deque[int] = field(default_factory=deque)  # of the current word, still to be fed
    since: int = 0  # frames since the current word was begun
    started: bool = False  # its `speaking` was reported
    resumed: bool = False  # it was stopped once, for nothing, and went on
    seen: int = 0  # words shown so far: one that is said again is not shown again

    @property
    def spoken(self) -> str:
        """The words begun, as they were written."""
        return " ".join(word.shown for word in self.begun if word.shown)

    @property
    def word(self) -> SpokenWord:
        return self.begun[-1]

    def pace(self, voted: bool, quiet: bool) -> Pace:
        """Go on by a frame; voted: the model would start a word, quiet: the agent is silent."""
        self.since += 1
        if self.pieces:
            return Pace.PIECE  # never cut inside a word
        if self.since < self.word.need:
            return Pace.WAIT
        if not self.words:  # its audio has ended, or surely must have
            ended = voted and quiet and not self.growing
            limit = self.word.ring_out + (DRY_FRAMES if self.growing else 0)
            return Pace.END if ended or self.since >= limit else Pace.WAIT
        return Pace.WORD if voted or self.since >= self.word.limit else Pace.WAIT

    def step_back_to_clause(self) -> None:
        """Take back the words of the clause that was cut: they are said again."""
        self.resumed = True
        self.pieces.clear()
        while self.begun and not self.begun[-1].shown.endswith(CLAUSE_ENDS):
            self.words.appendleft(self.begun.pop())

    def step_back(self) -> None:
        """Take back a word that is only half fed: it is said again from its start."""
        if self.pieces:
            self.words.appendleft(self.begun.pop())
            self.pieces.clear()


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
