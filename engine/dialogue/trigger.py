"""When the model's own words hand over: marker and phrases behind one latch (listening.md 3.3).

Part of the director, frame by frame; with routing off every token passes untouched. The other two
triggers, the client's `ask` and the user's own turn, come in from the session as a hold.
"""

import re
from dataclasses import dataclass

from engine.config import PAD
from engine.dialogue.events import Source
from engine.dialogue.marker import BangTidier, MarkerDetector
from engine.dialogue.pieces import PieceDecoder
from engine.dialogue.questions import is_question
from engine.dialogue.transcript import Transcript
from engine.runtime.backend import Tokenizer

COOLDOWN_FRAMES = 25  # between two hand-overs
TURN_FRAMES = 188  # 15 s: how old the user's last turn may be
PHRASE_FRAMES = 38  # 3 s after a question of the user
WORDS_SAID = 2  # by the user since the last hand-over
LOUD_SAID = 6  # the same without a recogniser, in loud frames
TAIL_CHARS = 80  # of the agent's own words that a phrase may end


@dataclass(frozen=True, slots=True)
class TriggerRules:
    """What counts as a hand-over."""

    threshold: int = 3  # `!` that make a marker
    phrases: tuple[str, ...] = ()  # lower case, letters, blanks and apostrophes


@dataclass(frozen=True, slots=True)
class Own:
    """What becomes of one token of the free agent."""

    fed: int
    shown: str = ""
    source: Source | None = None  # it handed over
    ignored: bool = False  # a marker that did not count


class Latch:
    """One hand-over per thing the user said."""

    def __init__(self) -> None:
        self._frame = 0
        self._fired_at = -COOLDOWN_FRAMES
        self._turn_at: int | None = None
        self._words = self._loud = 0  # said by the user since the last hand-over
        self._asked = True  # the last turn was a question; without its words it may have been

    def tick(self, floor: Transcript) -> None:
        """Once a frame, in every mode."""
        self._frame += 1
        self._loud += floor.loud
        if floor.turn_ended:
            self._turn_at, self._asked = self._frame, True

    def turned(self, text: str) -> None:
        """The user's turn in words."""
        self._words += len(text.split())
        self._turn_at, self._asked = self._frame, is_question(text)

    def fire(self) -> None:
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


class PhraseWatch:
    """Recognises `let me check` and the like at the end of the agent's own words."""

    def __init__(self, phrases: tuple[str, ...]) -> None:
        self._endings = tuple(f" {phrase}" for phrase in phrases)
        self._tail = " "

    def see(self, shown: str) -> bool:
        text = re.sub(r"[^a-z' ]", "", shown.lower().replace("’", "'"))
        self._tail = re.sub(r" +", " ", self._tail + text)[-TAIL_CHARS:]
        return bool(text.strip()) and self._tail.endswith(self._endings)

    def forget(self) -> None:
        self._tail = " "


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
        self._phrases = PhraseWatch(rules.phrases if rules else ())
        self._tidier = BangTidier()

    def switch(self, on: bool) -> str:
        """Watch or not from now on; what is still to be shown."""
        left = self.leave()
        self.on = on and self._marker is not None
        return left

    def see(self, token: int) -> Own:
        """Judge a sampled token of a free agent."""
        if not self.on:
            return Own(token, self._text(token))
        seen = self._marker.see(token, self.latch.armed)
        if seen.fired:
            return Own(seen.fed, self._show(seen.due), Source.MARKER)
        shown = self._show(seen.due)
        phrase = self._phrases.see(shown) and self.latch.armed_for_phrase
        return Own(seen.fed, shown, Source.PHRASE if phrase else None, seen.swallowed)

    def leave(self) -> str:
        """The agent is not free any more: what is still to be shown."""
        self._phrases.forget()
        return self._show(self._marker.flush()) if self._marker else ""

    def _show(self, tokens: tuple[int, ...]) -> str:
        return self._tidier.tidy("".join(self._text(token) for token in tokens))

    def _text(self, token: int) -> str:
        return "" if token <= PAD else self._decoder.feed(self._tokenizer.piece(token))
