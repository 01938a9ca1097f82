"""A hold: whose answer is waited for, how long, and what is said meanwhile (listening.md 2.2).

Counts frames for the director; it neither speaks nor chooses tokens.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from engine.dialogue.events import Hold, Say

FILLER_FRAMES = 9  # 0.7 s without a clause: the first filler
PATIENCE_FRAMES = 100  # 8 s: the second filler, and after as long again the apology
UNCLAIMED_FRAMES = 25  # a hold of the director's own that nobody took up
HUSH_AFTER_FRAMES = 6  # loud frames of a held agent before its audio is silenced as well


class Patience(Enum):
    """How a held frame ends."""

    WAIT, FILL, GIVE_UP = (auto() for _ in range(3))


@dataclass(slots=True)
class Held:
    """A hold in progress."""

    id: int = 0  # 0: the director's own, until a `Hold` takes it up
    fillers: deque[Say] = field(default_factory=deque)
    apology: Say | None = None
    loud: int = 0  # agent frames that were not silent
    _due_at: int = PATIENCE_FRAMES  # held frames until something is said
    _waited: int = 0  # held frames since something was said
    _reminded: bool = False

    def adopt(self, hold: Hold) -> None:
        """Take up what the session knows about this hold."""
        self.id, self.apology = hold.id, hold.apology
        self.fillers = deque(hold.fillers[1:] if hold.announced else hold.fillers)
        if hold.fillers and not hold.announced:
            self._due_at = FILLER_FRAMES

    def wait(self, loud: bool) -> Patience:
        """One more held frame; `loud`: the agent could be heard in the last one."""
        self.loud += loud
        self._waited += 1
        if self.id == 0:
            return Patience.GIVE_UP if self._waited >= UNCLAIMED_FRAMES else Patience.WAIT
        if self._waited < self._due_at:
            return Patience.WAIT
        first = self._due_at == FILLER_FRAMES
        self._due_at, self._waited = PATIENCE_FRAMES, 0
        if not first and self._reminded:
            return Patience.GIVE_UP
        self._reminded = self._reminded or not first
        return Patience.FILL if self.fillers else Patience.WAIT

    @property
    def hush(self) -> bool:
        return self.loud >= HUSH_AFTER_FRAMES
