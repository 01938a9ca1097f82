"""What passes between a session and its director: commands in, events out. Data only."""

from dataclasses import dataclass
from enum import StrEnum


class SayState(StrEnum):
    QUEUED = "queued"
    SPEAKING = "speaking"
    DONE = "done"
    CANCELLED = "cancelled"


# -- commands: posted by the session, read by the director before a tick ---------------------------


@dataclass(frozen=True, slots=True)
class Say:
    """Speak this text. `growing`: more of it follows as `More`."""

    id: int
    text: str
    replace: bool = False  # cancel what is being said and what waits, then say this
    growing: bool = False
    answer: bool = False  # ends a hold: the answer of what was asked


@dataclass(frozen=True, slots=True)
class More:
    """The next clause of a growing text; `last` closes it."""

    id: int
    text: str
    last: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop after the current word; drop what waits."""


@dataclass(frozen=True, slots=True)
class EndTurn:
    """Stop now, silently; drop what waits (0x03 1)."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Stay silent and keep listening (0x03 2)."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Leave the pause (0x03 0)."""


@dataclass(frozen=True, slots=True)
class Hold:
    """An answer is being fetched: stay silent until it comes (a `Say` with `answer`)."""

    id: int


@dataclass(frozen=True, slots=True)
class Release:
    """No answer will come for this hold."""

    id: int


Command = Say | More | Cancel | EndTurn | Pause | Resume | Hold | Release


# -- events: leave with the frame they belong to ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """What the agent says in this frame; `given` if it was told to say it."""

    text: str
    given: bool


@dataclass(frozen=True, slots=True)
class UserText:
    """What the user has said in this turn so far, in seconds of the user's audio (wire.md 3)."""

    text: str
    start: float
    end: float
    final: bool  # the turn is over


@dataclass(frozen=True, slots=True)
class UserTurn:
    """A finished turn of the user in words, for whoever decides what to do about it."""

    text: str


@dataclass(frozen=True, slots=True)
class Saying:
    """A text to be said changed its state; `spoken` are its words begun."""

    id: int
    state: SayState
    text: str
    spoken: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that is not carried out, in one sentence for the client."""

    message: str


@dataclass(frozen=True, slots=True)
class HoldEnded:
    """A hold ended without its answer: `stale` (the user spoke) or `timeout`."""

    id: int
    state: str


@dataclass(frozen=True, slots=True)
class Closing:
    """The conversation will end soon, through no fault of the client."""

    reason: str
    seconds_left: float


Event = Text | UserText | UserTurn | Saying | Refused | HoldEnded | Closing
