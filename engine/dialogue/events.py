"""What passes between a session and its director: commands in, events out. Data only.

The texts of commands carry their words when they reach the director (`speech.prepare_command`).
"""

from dataclasses import dataclass
from enum import StrEnum

from engine.dialogue.text import SpokenWord
from engine.lookup.handover import Source
from engine.lookup.question import HoldEnd, Route


class SayState(StrEnum):
    QUEUED = "queued"
    SPEAKING = "speaking"
    RESUMED = "resumed"  # after a stop for nothing: it is being spoken again
    DONE = "done"
    CANCELLED = "cancelled"


# -- commands: posted by the session, read by the director before a tick ---------------------------


@dataclass(frozen=True, slots=True)
class Say:
    """Speak this text. `growing`: more of it follows as `More`."""

    id: int
    text: str
    words: tuple[SpokenWord, ...] = ()  # of the text, once it is prepared
    replace: bool = False  # cancel what is being said and what waits, then say this
    growing: bool = False
    answer: int = 0  # the id of the hold that this ends; 0: none
    fixed: bool = False  # a phrase of ours, which was prepared at the start


@dataclass(frozen=True, slots=True)
class More:
    """The next part of a growing text; `last` closes it."""

    id: int
    text: str
    last: bool = False
    words: tuple[SpokenWord, ...] = ()  # of the text, once it is prepared


@dataclass(frozen=True, slots=True)
class Refuse:
    """Report a refusal of the session's own, in order with the texts before it."""

    message: str


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
    """An answer is being fetched: stay silent until it comes (a `Say` with `answer`).

    Where the director holds already for a hand-over of its own, it goes on under this id. The
    fillers are said while nothing comes, the apology when nothing will.
    """

    id: int
    fillers: tuple[Say, ...] = ()
    apology: Say | None = None
    announced: bool = False  # the agent has said by itself that it looks: no first filler


@dataclass(frozen=True, slots=True)
class HoldBack:
    """Perhaps an answer will come: hold, but only from the agent's next word on."""

    id: int


@dataclass(frozen=True, slots=True)
class Release:
    """No answer will come for this hold."""

    id: int


@dataclass(frozen=True, slots=True)
class SetRouting:
    """Watch the model's own words for a hand-over, or not."""

    on: bool


@dataclass(frozen=True, slots=True)
class UserText:
    """What the user has said in this turn so far, in seconds of the user's audio (docs/api.md).

    An event of the transcript; as a command it stands in for one.
    """

    text: str
    start: float
    end: float
    final: bool  # the turn is over
    pause: bool = False  # it may be: the user has fallen silent after these words


Command = (
    Say
    | More
    | Refuse
    | Cancel
    | EndTurn
    | Pause
    | Resume
    | Hold
    | HoldBack
    | Release
    | SetRouting
    | UserText
)


# -- events: leave with the frame they belong to ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """What the agent says in this frame; `given` if it was told to say it."""

    text: str
    given: bool


@dataclass(frozen=True, slots=True)
class Saying:
    """A text to be said changed its state; `spoken` are its words begun."""

    id: int
    state: SayState
    text: str
    spoken: str = ""
    parts: int = 1  # of a growing text that had come, the closing one apart


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A text waits no longer: its place in the queue is free."""

    id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that is not carried out, in one sentence for the client."""

    message: str
    id: int = 0  # of the text that is not said, if it is one


@dataclass(frozen=True, slots=True)
class HoldEnded:
    """A hold ended without its answer."""

    id: int
    end: HoldEnd


@dataclass(frozen=True, slots=True)
class Triggered:
    """The model has handed over; the director holds under this id until a `Hold` takes it up."""

    id: int
    source: Source


@dataclass(frozen=True, slots=True)
class MarkerIgnored:
    """A marker that came when none was due; it passed as one `!`."""


@dataclass(frozen=True, slots=True)
class Closing:
    """The conversation will end soon, through no fault of the client."""

    reason: str
    seconds_left: float


Event = (
    Text
    | UserText
    | Saying
    | TakenUp
    | Refused
    | HoldEnded
    | Triggered
    | MarkerIgnored
    | Route
    | Closing
)
