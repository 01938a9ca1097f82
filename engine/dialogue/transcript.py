"""What the user says and when: the director's ears, one per conversation (listening.md 1).

With a recogniser: words, turns and its pause heads. Without one, or while it is switched off: the
energy rule alone, and no words. No torch, no clock but the frames it is given.
"""

from collections import deque
from dataclasses import dataclass

from engine.config import FRAME_SECONDS
from engine.dialogue import events as ev
from engine.dialogue.floor import Floor
from engine.dialogue.turn import TurnRule
from engine.dialogue.words import Word, WordReader
from engine.runtime.backend import HeardRow, Transcription

TURNS_KEPT = 20
BARGE_IN_FRAMES = 3  # of speech without words
WORD_LETTERS = 2  # of a word that interrupts at once


@dataclass(slots=True)
class Waiting:
    """TURN_END was seen; its last words are on their way."""

    steps: int  # still to come, until what was said before it is written
    flush: bool = True  # nothing but silence was read since: the recogniser may run ahead


class Transcript:
    """`hear` once a frame; `flush` for each step of the recogniser between two frames."""

    def __init__(self, transcription: Transcription | None = None) -> None:
        self.speaking = False  # user_speaking
        self.onset_frames = 0  # of sounding speech, since it started: a piece may come late
        self.turn_ended = False  # in this frame
        self.loud = False  # this frame, where loudness stands for words
        self.word: Word | None = None  # that became worth an interruption in this frame
        self._frames = 0  # heard, the bootstrap included
        self._ahead = 0  # steps of a flush since the last frame
        self._energy = Floor()
        self._rule = TurnRule(energy=self._energy)
        self._reader = WordReader(transcription) if transcription else None
        self._flush_steps = transcription.flush_steps if transcription else 0
        self._turn: list[Word] = []
        self._waiting: Waiting | None = None
        self.turns: deque[ev.UserText] = deque(maxlen=TURNS_KEPT)  # the finished ones

    @property
    def frame(self) -> int:
        """Frames of the user's audio so far."""
        return self._frames - 1

    @property
    def flushing(self) -> bool:
        """Whether steps on silence would bring out the rest of a turn now."""
        return self._waiting is not None and self._waiting.flush

    def interruption(self, said: str) -> int | None:
        """How many frames ago the user began to speak, if that is enough to interrupt the agent.

        said: the agent's last words; one of them in the user's mouth is an echo.
        """
        if self.word and not sounds_like(self.word.text, said):
            return self.frame - self.word.start
        return self.onset_frames if self.onset_frames >= BARGE_IN_FRAMES else None

    # -- what comes in -----------------------------------------------------------------------------

    def hear(self, peak: float, heard: HeardRow) -> list[ev.UserText]:
        """Take one user frame: its peak (0 to 1) and the recogniser's step, if it ran."""
        self._frames += 1
        self._ahead = 0
        self.word = None
        if self._reader is None or heard.stt_text is None:
            return self._hear_energy(peak)
        self.loud = False
        events, piece = self._read(heard.stt_text)
        self.turn_ended = self._rule.hear(peak, piece, heard.pause)
        self._set_speaking(self._rule.speaking, self._rule.sounding)
        if self._waiting:
            self._waiting.flush = False
        elif self.turn_ended:
            self._waiting = Waiting(self._flush_steps)
            return events
        return events + self._count_down()

    def flush(self, heard: HeardRow) -> list[ev.UserText]:
        """Take a step on silence that belongs to no frame."""
        self._ahead += 1
        events, _piece = self._read(heard.stt_text)
        return events + self._count_down()

    def _hear_energy(self, peak: float) -> list[ev.UserText]:
        self._energy.hear(peak)
        self.loud, self.turn_ended = self._energy.quiet_frames == 0, self._energy.turn_ended
        self._set_speaking(self._energy.speaking, self._energy.speaking)
        over = self._reader and (self._waiting or self.turn_ended)
        return self._finish() if over else []  # its recogniser was switched off meanwhile

    def _set_speaking(self, speaking: bool, sounding: bool) -> None:
        self.speaking = speaking
        self.onset_frames = self.onset_frames + 1 if sounding else 0

    # -- words -------------------------------------------------------------------------------------

    def _read(self, token: int) -> tuple[list[ev.UserText], bool]:
        """The turn as it is now, if this token added to it, and whether it is a piece."""
        word = self._reader.read(token, self._frames + self._ahead)
        if word is None:
            return [], False
        if not self._turn or self._turn[-1] is not word:
            self._turn.append(word)
        if not word.noticed and sum(map(str.isalpha, word.text)) >= WORD_LETTERS:
            word.noticed, self.word = True, word
        text = self._user_text(final=False)
        return ([text] if text.text else []), True

    def _count_down(self) -> list[ev.UserText]:
        """One step closer to the end of a turn."""
        if not self._waiting:
            return []
        self._waiting.steps -= 1
        return [] if self._waiting.steps else self._finish()

    def _finish(self) -> list[ev.UserText]:
        """The turn is complete: its final text, if there is any."""
        self._waiting = None
        self._reader.finish(self._frames + self._ahead)
        self._rule.finish()
        turn = self._user_text(final=True)
        self._turn.clear()
        if not turn.text:
            return []
        self.turns.append(turn)
        return [turn]

    def _user_text(self, final: bool) -> ev.UserText:
        """The words of the turn so far; no time lies beyond what was heard."""
        if not self._turn:
            return ev.UserText("", 0.0, 0.0, final)
        text = " ".join(word.text for word in self._turn if word.text)
        start, last = self._turn[0].start, self._turn[-1]
        end = min(self.frame, last.start + 1 if last.end is None else last.end)
        return ev.UserText(text, seconds(start), seconds(max(start, end)), final)


def sounds_like(word: str, text: str) -> bool:
    """Whether a word, perhaps not written to its end yet, is one of a text: an echo of it."""
    plain = letters_of(word)
    return any(letters_of(other).startswith(plain) for other in text.split())


def letters_of(word: str) -> str:
    return "".join(filter(str.isalnum, word.lower()))


def seconds(frames: int) -> float:
    return round(frames * FRAME_SECONDS, 3)
