"""From a recogniser's tokens to words with times (listening.md 1.2).

PAD closes the word being written; EPAD closes it too and is the moment where one word ends and the
next begins; every other token is a piece. Times are frames of the user's audio.
"""

from dataclasses import dataclass, field

from engine.config import EPAD, PAD
from engine.runtime.backend import Transcription


@dataclass
class Word:
    """One word; its end is open until the next word, or silence, shows it."""

    start: int  # frames
    ids: list[int] = field(default_factory=list)
    text: str = ""  # so far; complete when it is written
    end: int | None = None
    written: bool = False  # no piece is added any more
    noticed: bool = False  # by whoever waits for a word (transcript.py)


class WordReader:
    """Reads one stream. `read` once a step of the recogniser."""

    def __init__(self, transcription: Transcription) -> None:
        self._tokenizer = transcription.tokenizer
        self._delay = transcription.delay_frames
        self._steps = 0
        self._pending: Word | None = None  # being written
        self._last: Word | None = None  # the newest one
        self._boundary: int | None = None  # of the last EPAD, until a word begins

    def read(self, token: int, position: int) -> Word | None:
        """Take a token; the word that it began or added to, if any.

        position: columns the stream has, this one and the initial one included (the step's index
        plus one while stream and audio are equally long).
        """
        self._steps += 1
        if self._steps < self._delay:
            return None  # before the first sound can have been written down
        now = self._time(position)
        if token not in (EPAD, PAD):
            return self._read_piece(token, now, self._time(position - 1))
        self._close()
        if token == EPAD:
            self._end(now)
            self._boundary = now
        return None

    def finish(self, position: int) -> None:
        """A turn is over: no word of it goes on."""
        self._close()
        self._end(self._time(position))
        self._last = self._boundary = None

    def _time(self, position: int) -> int:
        return max(0, position - self._delay)

    def _read_piece(self, token: int, now: int, before: int) -> Word:
        if self._pending is None or self._tokenizer.piece(token).startswith("▁"):
            self._begin(before)
        word = self._pending
        word.ids.append(token)
        word.text = self._tokenizer.decode(word.ids).strip().rstrip("\ufffd")
        return word

    def _begin(self, before: int) -> None:
        """A word begins where the last EPAD was, or, without one, a frame ago."""
        self._close()
        if self._boundary is None:
            self._end(before)
        start = before if self._boundary is None else self._boundary
        self._pending = self._last = Word(start)
        self._boundary = None

    def _close(self) -> None:
        if self._pending:
            self._pending.text = self._tokenizer.decode(self._pending.ids).strip()
            self._pending.written = True
            self._pending = None

    def _end(self, at: int) -> None:
        if self._last and self._last.end is None:
            self._last.end = at
