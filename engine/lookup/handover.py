"""When the model's own words hand a question over: marker, phrases and the pieces shown of them.

Part of the director, frame by frame; with routing off every token passes untouched. In order: the
free agent's tokens (`OwnWords`), the latch that says when a hand-over counts, the `!!!` marker, the
announcing phrases, pieces to text, and the fixed words of `assets/phrases.toml`. The other two
triggers are the client's `ask` and the user's own turn (`routing.py`).
"""

import codecs
import functools
import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engine.config import EPAD, PAD
from engine.errors import ConfigError
from engine.lookup.evidence import is_question
from engine.runtime.backend import Tokenizer

COOLDOWN_FRAMES = 25  # between two hand-overs
TURN_FRAMES = 188  # 15 s: how old the user's last turn may be
PHRASE_FRAMES = 38  # 3 s after a question of the user
WORDS_SAID = 2  # by the user since the last hand-over
LOUD_SAID = 6  # the same without a recogniser, in loud frames
TAIL_CHARS = 80  # of the agent's own words that a phrase may end
MAX_GAP_FRAMES = 6  # of padding inside one marker
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
BYTES_ONLY = re.compile(r"▁?(<0x[0-9A-F]{2}>)+")
PHRASES_FILE = Path(__file__).parents[2] / "assets" / "phrases.toml"


class Source(StrEnum):
    """Who handed a question over."""

    MARKER = "marker"  # the model wrote `!!!`
    PHRASE = "phrase"  # the model said that it would look
    USER = "user"  # a finished turn of the user that needs the facts
    CLIENT = "client"  # an `ask` message


@dataclass(frozen=True, slots=True)
class TriggerRules:
    threshold: int = 3  # `!` that make a marker
    phrases: tuple[str, ...] = ()  # lower case, letters, blanks and apostrophes


@dataclass(frozen=True, slots=True)
class OwnToken:
    """What becomes of one token of the free agent."""

    fed: int
    shown: str = ""
    source: Source | None = None  # it handed over
    ignored: bool = False  # a marker that did not count


class OwnWords:
    """The free agent's own tokens: shown, fed, and watched for a hand-over while `on`.

    Without rules it can never be on.
    """

    def __init__(
        self, tokenizer: Tokenizer, rules: TriggerRules | None = None, on: bool = True
    ) -> None:
        self.latch = Latch()
        self.on = on and rules is not None
        self._tokenizer = tokenizer
        self._decoder = PieceDecoder()
        self._marker = MarkerDetector(tokenizer, rules.threshold) if rules else None
        self._phrases = tuple(f" {phrase}" for phrase in rules.phrases) if rules else ()
        self._tail = " "  # of the agent's words, as phrases are written
        self._tidier = BangTidier()

    def switch(self, on: bool) -> str:
        """Watch or not from now on; what is still to be shown."""
        left = self.leave()
        self.on = on and self._marker is not None
        return left

    def take(self, token: int) -> OwnToken:
        if not self.on:
            return OwnToken(token, self._text(token))
        seen = self._marker.detect(token, self.latch.armed)
        if seen.fired:
            return OwnToken(seen.fed, self._show(seen.due), Source.MARKER)
        shown = self._show(seen.due)
        phrase = self._ends_in_phrase(shown) and self.latch.armed_for_phrase
        return OwnToken(seen.fed, shown, Source.PHRASE if phrase else None, seen.swallowed)

    def leave(self) -> str:
        """The agent is not free any more: what is still to be shown."""
        self._tail = " "
        return self._show(self._marker.finish()) if self._marker else ""

    def _ends_in_phrase(self, shown: str) -> bool:
        """Whether the agent's words, with these, end in `let me check` or the like."""
        text = re.sub(r"[^a-z' ]", "", shown.lower().replace("’", "'"))
        self._tail = re.sub(r" +", " ", self._tail + text)[-TAIL_CHARS:]
        return bool(text.strip()) and self._tail.endswith(self._phrases)

    def _show(self, tokens: tuple[int, ...]) -> str:
        return self._tidier.tidy("".join(self._text(token) for token in tokens))

    def _text(self, token: int) -> str:
        return "" if token <= PAD else self._decoder.feed(self._tokenizer.piece(token))


class Latch:
    """One hand-over per thing the user said."""

    def __init__(self) -> None:
        self._frame = 0
        self._fired_at = -COOLDOWN_FRAMES
        self._turn_at: int | None = None
        self._words = self._loud = 0  # said by the user since the last hand-over
        self._asked = True  # the last turn was a question; without its words it may have been

    def take_frame(self, loud: bool, turn_ended: bool) -> None:
        """Once a frame, in every mode. loud: of the user, where loudness stands for words."""
        self._frame += 1
        self._loud += loud
        if turn_ended:
            self._turn_at, self._asked = self._frame, True

    def note_turn(self, text: str) -> None:
        self._words += len(text.split())
        self._turn_at, self._asked = self._frame, is_question(text)

    def fire(self) -> None:
        """A question was handed over, by whatever trigger."""
        self._fired_at = self._frame
        self._words = self._loud = 0

    @property
    def armed(self) -> bool:
        said = self._words >= WORDS_SAID or self._loud >= LOUD_SAID
        cool = self._frame - self._fired_at >= COOLDOWN_FRAMES
        return said and cool and self._age <= TURN_FRAMES

    @property
    def armed_for_phrase(self) -> bool:
        return self.armed and self._asked and self._age <= PHRASE_FRAMES

    @property
    def _age(self) -> int:
        """Frames since the user's last turn ended."""
        return TURN_FRAMES + 1 if self._turn_at is None else self._frame - self._turn_at


@dataclass(frozen=True, slots=True)
class Bang:
    """A piece that ends in `!`."""

    count: int  # trailing `!`
    pure: bool  # nothing else in it but a leading ▁


@dataclass(frozen=True, slots=True)
class Sighting:
    """What becomes of one sampled token."""

    fed: int
    due: tuple[int, ...] = ()  # tokens to be shown now
    fired: bool = False
    swallowed: bool = False  # a repeated `!` that was no marker


@functools.lru_cache(8)
def bang_table(tokenizer: Tokenizer) -> dict[int, Bang]:
    """Every id whose piece ends in `!`, by a scan of all pieces; remembered per tokenizer."""
    table = {}
    for token in range(PAD + 1, len(tokenizer)):
        piece = tokenizer.piece(token).replace("<0x21>", "!")
        if piece.endswith("!"):
            text = piece.removeprefix("▁")
            table[token] = Bang(len(text) - len(text.rstrip("!")), not text.strip("!"))
    return table


class MarkerDetector:
    """Looks for `threshold` exclamation marks, however they are split and padded."""

    def __init__(self, tokenizer: Tokenizer, threshold: int) -> None:
        self.threshold = threshold
        self._table = bang_table(tokenizer)
        self._count = 0  # `!` in a row so far
        self._gap = 0  # frames of padding since
        self._pending: int | None = None  # a fed `!` that is not shown yet

    def detect(self, token: int, armed: bool) -> Sighting:
        """Take a sampled token, before it is fed. armed: a marker would count now."""
        if token in (PAD, EPAD):
            self._gap += 1
            return Sighting(token, self.finish() if self._gap > MAX_GAP_FRAMES else ())
        bang = self._table.get(token)
        self._gap = 0
        if bang is None or not bang.pure:
            due = self.finish()
            if bang and bang.count >= self.threshold and armed:  # a whole marker behind a text
                return Sighting(PAD, due, fired=True)
            self._count = bang.count if bang else 0
            return Sighting(token, (*due, token))
        self._count += bang.count
        if self._count >= self.threshold and armed:
            self._count, self._pending = 0, None
            return Sighting(PAD, fired=True)
        self._pending = token if self._pending is None else self._pending
        repeated = self._count >= 2
        return Sighting(PAD if repeated else token, swallowed=self._count >= self.threshold)

    def finish(self) -> tuple[int, ...]:
        """Forget what was counted; the token that is still to be shown, if any."""
        due = () if self._pending is None else (self._pending,)
        self._count, self._gap, self._pending = 0, 0, None
        return due


class BangTidier:
    """Keeps two `!` in a row off the display, across pieces."""

    def __init__(self) -> None:
        self._after_bang = False

    def tidy(self, text: str) -> str:
        """A piece of text as it may be shown; empty if nothing is left of it."""
        if self._after_bang:
            text = re.sub(r"^\s*!+", "", text)
        text = re.sub(r"!{2,}", "!", text)
        if text.strip():
            self._after_bang = text.endswith("!")
        return text


class PieceDecoder:
    """Pieces to text, one call a piece: ▁ is a blank, bytes wait until they are valid UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, piece: str) -> str:
        """The text that is complete with this piece; may be empty in the middle of a character."""
        if not BYTES_ONLY.fullmatch(piece):
            return self.finish() + piece.replace("▁", " ")
        blank = self.finish() + " " if piece.startswith("▁") else ""
        data = bytes(int(byte, 16) for byte in BYTE.findall(piece))
        return blank + self._utf8.decode(data)

    def finish(self) -> str:
        """What is left of an unfinished character, as U+FFFD; usually nothing."""
        left = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return left


@dataclass(frozen=True, slots=True)
class Phrases:
    announcements: tuple[str, ...]  # the agent's own: it will look
    fillers: tuple[str, ...]  # the first after 0.7 s, the second after 8 s
    no_key: str
    failed: str
    late: str
    broken_off: str
    system: str  # the prompt of the text model
    without_facts: str
    doubt: str  # the rule by which the text model may pass
    smalltalk: tuple[str, ...]  # everyday sentences that need no facts

    @property
    def spoken(self) -> tuple[str, ...]:
        """Those that the agent says."""
        return (*self.fillers, self.no_key, self.failed, self.late, self.broken_off)


def load_phrases(path: Path = PHRASES_FILE) -> Phrases:
    """Raises ConfigError naming what is wrong in the file."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        apologies, answerer = data["apologies"], data["answerer"]
        phrases = Phrases(
            announcements=tuple(map(str, data["announcements"])),
            fillers=tuple(map(str, data["fillers"])),
            **{name: str(apologies[name]) for name in ("no_key", "failed", "late", "broken_off")},
            system=" ".join(answerer["system"].split()),
            without_facts=str(answerer["without_facts"]),
            doubt=" ".join(answerer["doubt"].split()),
            smalltalk=tuple(map(str, data["smalltalk"])),
        )
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path.name}: {error}; mend the file") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path.name}: {error} is missing or of a wrong kind; add it") from None
    if bad := [text for text in phrases.announcements if re.search(r"[^a-z' ]", text)]:
        raise ConfigError(f"{path.name}: announcement {bad[0]!r}; use a-z, blanks, apostrophes")
    return phrases
