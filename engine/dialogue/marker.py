"""The `!!!` by which the model hands a question over (listening.md 3).

Works on the tokens the model samples, before they are fed, so a marker is neither spoken nor
shown. When a marker counts at all is `trigger.py`'s affair.
"""

import functools
import re
from dataclasses import dataclass

from engine.config import EPAD, PAD
from engine.runtime.backend import Tokenizer

MAX_GAP_FRAMES = 6  # of padding inside one marker
THRESHOLDS = (2, 3)
BYTE_BANG = "<0x21>"
TABLES_KEPT = 8


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


@functools.lru_cache(TABLES_KEPT)
def bang_table(tokenizer: Tokenizer) -> dict[int, Bang]:
    """Every id whose piece ends in `!`, by a scan of all pieces; remembered per tokenizer."""
    table = {}
    for token in range(PAD + 1, len(tokenizer)):
        piece = tokenizer.piece(token).replace(BYTE_BANG, "!")
        if piece.endswith("!"):
            text = piece.removeprefix("▁")
            table[token] = Bang(len(text) - len(text.rstrip("!")), not text.strip("!"))
    return table


class MarkerDetector:
    """Looks for `threshold` exclamation marks, however they are split and padded."""

    def __init__(self, tokenizer: Tokenizer, threshold: int) -> None:
        assert threshold in THRESHOLDS, threshold
        self.threshold = threshold
        self._table = bang_table(tokenizer)
        self._count = 0  # `!` in a row so far
        self._gap = 0  # frames of padding since
        self._pending: int | None = None  # a fed `!` that is not shown yet

    def see(self, token: int, armed: bool) -> Sighting:
        """Judge a sampled token; `armed`: a marker would count now."""
        if token in (PAD, EPAD):
            self._gap += 1
            return Sighting(token, self.flush() if self._gap > MAX_GAP_FRAMES else ())
        bang = self._table.get(token)
        self._gap = 0
        if bang is None or not bang.pure:
            return self._see_text(token, bang, armed)
        self._count += bang.count
        if self._count >= self.threshold and armed:
            self._count, self._pending = 0, None
            return Sighting(PAD, fired=True)
        self._pending = token if self._pending is None else self._pending
        repeated = self._count >= 2
        return Sighting(PAD if repeated else token, swallowed=self._count >= self.threshold)

    def _see_text(self, token: int, bang: Bang | None, armed: bool) -> Sighting:
        due = self.flush()
        if bang is None:
            return Sighting(token, (*due, token))
        if bang.count >= self.threshold and armed:  # text and a whole marker in one piece
            return Sighting(PAD, due, fired=True)
        self._count = bang.count
        return Sighting(token, (*due, token))

    def flush(self) -> tuple[int, ...]:
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
