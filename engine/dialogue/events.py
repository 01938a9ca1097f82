"""What passes between a session and its director: commands in, events out. Data only."""

from dataclasses import dataclass
from enum import StrEnum


class SayState(StrEnum):
    QUEUED = "queued"
    SPEAKING = "speaking"
    DONE = "done"
    CANCELLED = "cancelled"


class RouteState(StrEnum):
    ASKING = "asking"
    ANSWERING = "answering"
    DONE = "done"
    FAILED = "failed"
    STALE = "stale"


class Source(StrEnum):
    """Who handed a question over."""

    MARKER = "marker"  # the model wrote `!!!`
    PHRASE = "phrase"  # the model said that it would look
    USER = "user"  # a finished turn of the user that needs the facts
    CLIENT = "client"  # an `ask` message


# -- commands: posted by the session, read by the director before a tick ---------------------------


@dataclass(frozen=True, slots=True)
class Say:
    """Speak this text. `growing`: more of it follows as `More`."""

    id: int
    text: str
    replace: bool = False  # cancel what is being said and what waits, then say this
    growing: bool = False
    answer: int = 0  # the id of the hold that this ends; 0: none


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
    """An answer is being fetched: stay silent until it comes (a `Say` with `answer`).

    The fillers are said while nothing comes, the apology when nothing will.
    """

    id: int
    fillers: tuple[Say, ...] = ()
    apology: Say | None = None
    announced: bool = False  # the agent has said by itself that it looks: no first filler


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
    """What the user has said in this turn so far, in seconds of the user's audio (wire.md 3).

    An event of the transcript; as a command it stands in for one.
    """

    text: str
    start: float
    end: float
    final: bool  # the turn is over


Command = Say | More | Cancel | EndTurn | Pause | Resume | Hold | Release | SetRouting | UserText


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


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that is not carried out, in one sentence for the client."""

    message: str


@dataclass(frozen=True, slots=True)
class HoldEnded:
    """A hold ended without its answer: `stale` (the user spoke) or `timeout`.

    id 0 is a hold of the director's own that nobody has taken up yet.
    """

    id: int
    state: str


@dataclass(frozen=True, slots=True)
class Triggered:
    """The model has handed over; the director holds with id 0 until a `Hold` comes."""

    source: Source


@dataclass(frozen=True, slots=True)
class MarkerIgnored:
    """A marker that came when none was due; it passed as one `!`."""


@dataclass(frozen=True, slots=True)
class Route:
    """A question on its way to its answer (wire.md 3)."""

    id: int
    state: RouteState
    question: str
    source: Source
    knowledge: bool = False  # the product's facts were sent along
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Closing:
    """The conversation will end soon, through no fault of the client."""

    reason: str
    seconds_left: float


Event = Text | UserText | Saying | Refused | HoldEnded | Triggered | MarkerIgnored | Route | Closing
