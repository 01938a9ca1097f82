"""What an agent has been given to say: the text in hand, those waiting, what is reported of them.

Order and bookkeeping, and the wait for the floor; the words' pace is `utterance.py`'s affair.
"""

from collections import deque
from dataclasses import dataclass

from engine.dialogue import events as ev
from engine.dialogue.events import SayState
from engine.dialogue.utterance import Utterance, prepare
from engine.runtime.backend import Tokenizer

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
