"""Who has the floor: when the user speaks, what is said, and when a turn is over.

`UserFloor` is what the director listens to, one per conversation. It reads the model's recogniser
(`WordReader`) and decides with `TurnRule`. Without one, `SpeechRule` decides alone, on what a
CPU's ears say of each frame (`runtime/ears.py`) or, without ears, on how loud it is. The only
clock is the count of frames.
"""

import re
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from engine.config import EPAD, FRAME_SECONDS, PAD
from engine.dialogue import events as ev
from engine.runtime.backend import HeardRow, Transcription

LOUD = 10 ** (-36 / 20)  # peak of a frame that counts as speech
AUDIBLE = 10 ** (-45 / 20)  # peak of a frame that is not silent

# speech rule
START_LOUD, START_WINDOW = 3, 4  # speaking starts after 3 loud frames of 4
END_QUIET = 5  # and ends after 5 quiet ones
TURN_LOUD, TURN_QUIET = 4, 9  # a turn is >= 4 loud frames and then 9 quiet ones (0.72 s)

# turn rule
HEAD = 2  # the pause of 2 s
DONE, TALKING = 0.6, 0.4  # above: the user is done; below: still talking
HITS = 2  # frames in a row that count
MIN_FRAMES = 12  # of a conversation before its first turn can end
QUIET_FRAMES = 5  # 400 ms
LAST_PIECE_FRAMES = 7  # since the last piece, for the fallback
PIECE_FRAMES = 4  # for which a piece shows that the user speaks

# Speech that interrupts the agent without a word of it being known. Where words will come, a back-
# channel must have time to be over before: "uh-huh" and "okay" take up to 0.7 s.
BARGE_IN_FRAMES, BARGE_IN_FRAMES_WITH_WORDS = 6, 9
WORD_LETTERS = 2  # of a word that interrupts at once
BACKCHANNEL = re.compile(  # a turn of these alone
    r"(?:(?:thats |how |oh )?(?:absolutely|a?ha|ah+|alright|awesome|brilliant|cheers|cool|"
    r"definitely|er|exactly|excellent|fine|good|got|gotcha|great|h+m+|huh|i|indeed|interesting|it|"
    r"kay|lovely|m+h?m*|nice|oh+|ok|okay|perfect|really|right|see|sure|thanks?|true|uh|uhh?uh|um|"
    r"understood|wonderful|wow|ya|yeah|yep|yes|you|yup|all right|fair enough|for sure|go on|"
    r"good to know|makes sense|no (?:problem|worries)|of course|sounds (?:good|great)|"
    r"(?:thanks|thank you) (?:so much|very much|a lot))(?: |$))+"
)
BACKCHANNEL_WORDS = 4  # at most: longer turns say something


class UserFloor:
    """What the user says and when: the director's ears, one per conversation.

    With a recogniser: words, turns and its pause heads. Without one, or while it is switched off:
    the speech rule alone. words_come: somebody else writes the user's turns down (`ev.UserText`).
    """

    def __init__(
        self, transcription: Transcription | None = None, words_come: bool = False
    ) -> None:
        self.has_words = transcription is not None or words_come
        self.speaking = False  # user_speaking
        self.writing = False  # a turn is over, and its words are on their way
        self.onset_frames = 0  # since sounding speech started: a piece may come late
        self.speech_frames = 0  # of these, with speech
        self.turn_ended = False  # in this frame
        self.loud = False  # this frame, where loudness stands for words
        self.word: HeardWord | None = None  # that became worth an interruption in this frame
        self._frames = 0  # taken, the bootstrap included
        self._ahead = 0  # steps of the recogniser since the last frame
        self._speech = SpeechRule()
        self._rule = TurnRule(speech=self._speech)
        self._reader = WordReader(transcription) if transcription else None
        self._steps_to_end = transcription.flush_steps if transcription else 0
        self._turn: list[HeardWord] = []
        self._closing_steps = 0  # after TURN_END, until what was said before it is written
        self._only_silence = False  # was read since

    @property
    def frame(self) -> int:
        """Frames of the user's audio so far."""
        return self._frames - 1

    @property
    def in_turn(self) -> bool:
        """Whether words are coming: somebody speaks, or what was said is not written to its end."""
        unwritten = self._rule.has_piece and not self._rule.has_ended
        return self.has_words and (
            self.speaking or self.writing or unwritten or self._closing_steps > 0
        )

    @property
    def runs_ahead(self) -> bool:
        """Whether steps on silence would bring out the rest of a turn now."""
        return self._closing_steps > 0 and self._only_silence

    def said_word(self, said: str) -> bool:
        """Whether a word came in this frame that interrupts the agent.

        A back-channel does not, nor does one of the agent's own last words (`said`): an echo.
        """
        word = self.word.text if self.word else ""
        return bool(word) and not is_backchannel(word) and not sounds_like(word, said)

    def interruption(self, has_word: bool) -> int | None:
        """How many frames ago the user began to speak, if that is enough to interrupt the agent."""
        if has_word:
            return self.frame - self.word.start
        enough = BARGE_IN_FRAMES_WITH_WORDS if self.has_words else BARGE_IN_FRAMES
        return self.onset_frames - 1 if self.speech_frames >= enough else None

    def take_frame(self, peak: float, heard: HeardRow) -> list[ev.UserText]:
        """One user frame: its peak (0 to 1) and the recogniser's step, if it ran."""
        self._frames += 1
        self._ahead = 0
        self.word = None
        self.writing = heard.writing
        if self._reader is None or heard.stt_text is None:
            self.loud = self.turn_ended = False
            for speech in (peak > LOUD,) if heard.speech is None else heard.speech:
                self._speech.take_frame(speech)
                self.loud, self.turn_ended = speech, self.turn_ended or self._speech.turn_ended
                self._set_speaking(self._speech.speaking, self._speech.speaking, speech)
            over = self._reader and (self._closing_steps or self.turn_ended)
            return self._finish() if over else []  # its recogniser was switched off meanwhile
        self.loud = False
        events, piece = self._read(heard.stt_text)
        self.turn_ended = self._rule.take_frame(peak, piece, heard.pause)
        self._set_speaking(self._rule.speaking, self._rule.sounding, self._rule.sounding)
        if self._closing_steps:
            self._only_silence = False
        elif self.turn_ended:
            self._closing_steps, self._only_silence = self._steps_to_end, True
            return events
        return events + self._count_down()

    def take_step(self, heard: HeardRow) -> list[ev.UserText]:
        """One step of the recogniser on silence that belongs to no frame."""
        self._ahead += 1
        events, _piece = self._read(heard.stt_text)
        return events + self._count_down()

    def _set_speaking(self, speaking: bool, sounding: bool, speech: bool) -> None:
        self.speaking = speaking
        if not sounding:
            self.onset_frames = self.speech_frames = 0
        elif not self.onset_frames:
            self.onset_frames = self.speech_frames = START_LOUD  # that had to come first
        else:
            self.onset_frames += 1
            self.speech_frames += speech

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
        if not self._closing_steps:
            return []
        self._closing_steps -= 1
        return [] if self._closing_steps else self._finish()

    def _finish(self) -> list[ev.UserText]:
        """The turn is complete: its final text, if there is any."""
        self._closing_steps = 0
        self._reader.finish(self._frames + self._ahead)
        self._rule.finish()
        turn = self._user_text(final=True)
        self._turn.clear()
        return [turn] if turn.text else []

    def _user_text(self, final: bool) -> ev.UserText:
        """The words of the turn so far; no time lies beyond what was heard."""
        if not self._turn:
            return ev.UserText("", 0.0, 0.0, final)
        text = " ".join(word.text for word in self._turn if word.text)
        start, last = self._turn[0].start, self._turn[-1]
        end = min(self.frame, last.start + 1 if last.end is None else last.end)
        return ev.UserText(text, seconds(start), seconds(max(start, end)), final)


@dataclass
class SpeechRule:
    """When the user speaks and a turn is over, by which frames are speech (or loud) alone."""

    speaking: bool = False  # user_speaking
    loud_frames: int = 0  # of the turn so far
    turn_ended: bool = False  # true in the one frame in which a turn ends
    quiet_frames: int = 0  # in a row
    window: deque[bool] = field(default_factory=lambda: deque(maxlen=START_WINDOW))

    def take_frame(self, loud: bool) -> None:
        self.window.append(loud)
        self.quiet_frames = 0 if loud else self.quiet_frames + 1
        self.loud_frames += loud
        if self.speaking and self.quiet_frames >= END_QUIET:
            self.speaking = False
        elif not self.speaking and sum(self.window) >= START_LOUD:
            self.speaking = True
        self.turn_ended = self.quiet_frames >= TURN_QUIET and self.loud_frames >= TURN_LOUD
        if self.quiet_frames >= TURN_QUIET:
            self.loud_frames = 0


@dataclass
class TurnRule:
    """When the user speaks and a turn is over, with a recogniser.

    It is not shown the words: only that a piece came, how loud the frame was, and the pause heads.
    Where there are no heads, the speech rule beside it stands in for them.
    """

    speaking: bool = False  # user_speaking
    sounding: bool = False  # the part of it that is heard, not written
    speech: SpeechRule = field(default_factory=SpeechRule)
    has_piece: bool = False  # one came since the last turn
    has_ended: bool = False  # TURN_END was given for it
    frames: int = 0
    last_piece: int = -PIECE_FRAMES  # frame
    hits: int = 0  # frames in a row in which the user was done
    talking: int = 0  # and still talking
    quiet: int = 0  # and not loud

    def take_frame(self, peak: float, piece: bool, pause: np.ndarray | None) -> bool:
        """One frame: its peak, whether a piece was written, pause [4]. True: TURN_END."""
        self.frames += 1
        self.speech.take_frame(peak > LOUD)
        if piece:
            self.has_piece, self.has_ended, self.hits = True, False, 0
            self.last_piece = self.frames
        done = None if pause is None else float(pause[min(HEAD, len(pause) - 1)])
        self.hits = self.hits + 1 if done is not None and done > DONE else 0
        self.talking = self.talking + 1 if done is not None and done < TALKING else 0
        self.quiet = self.quiet + 1 if peak < LOUD else 0
        if done is None:
            self.sounding = self.speech.speaking
        else:
            self.sounding = self.talking >= HITS and peak > AUDIBLE
        since_piece = self.frames - self.last_piece  # frames; 0 in its own
        self.speaking = self.sounding or since_piece < PIECE_FRAMES
        if not self.has_piece or self.has_ended or self.frames < MIN_FRAMES:
            return False
        silent = self.quiet >= QUIET_FRAMES and since_piece >= LAST_PIECE_FRAMES
        self.has_ended = self.hits >= HITS or silent
        return self.has_ended

    def finish(self) -> None:
        """The turn's words are out: what is written from now on is the next one."""
        self.has_piece, self.hits = False, 0


@dataclass
class HeardWord:
    """One word; its end is open until the next word, or silence, shows it."""

    start: int  # frames
    ids: list[int] = field(default_factory=list)
    text: str = ""  # so far; complete when it is written
    end: int | None = None
    written: bool = False  # no piece is added any more
    noticed: bool = False  # by the floor, as worth an interruption


class WordReader:
    """From one recogniser's tokens to words with times.

    PAD closes the word being written. EPAD closes it too, and is the moment where one word ends and
    the next begins. Every other token is a piece. Times are frames of the user's audio.
    """

    def __init__(self, transcription: Transcription) -> None:
        self._tokenizer = transcription.tokenizer
        self._delay = transcription.delay_frames
        self._steps = 0
        self._pending: HeardWord | None = None  # being written
        self._last: HeardWord | None = None  # the newest one
        self._boundary: int | None = None  # of the last EPAD, until a word begins

    def read(self, token: int, position: int) -> HeardWord | None:
        """One step's token; the word that it began or added to, if any.

        position: columns the stream has, this one and the initial one included (the step's index
        plus one while stream and audio are equally long).
        """
        self._steps += 1
        if self._steps < self._delay:
            return None  # before the first sound can have been written down
        if token in (EPAD, PAD):
            self._close()
            if token == EPAD:
                self._boundary = self._time(position)
                self._end(self._boundary)
            return None
        if self._pending is None or self._tokenizer.piece(token).startswith("▁"):
            self._close()  # a word begins where the last EPAD was, or, without one, a frame ago
            if self._boundary is None:
                self._boundary = self._time(position - 1)
                self._end(self._boundary)
            self._pending = self._last = HeardWord(self._boundary)
            self._boundary = None
        word = self._pending
        word.ids.append(token)
        word.text = self._tokenizer.decode(word.ids).strip().rstrip("\ufffd")
        return word

    def finish(self, position: int) -> None:
        """A turn is over: no word of it goes on."""
        self._close()
        self._end(self._time(position))
        self._last = self._boundary = None

    def _time(self, position: int) -> int:
        return max(0, position - self._delay)

    def _close(self) -> None:
        if self._pending:
            self._pending.text = self._tokenizer.decode(self._pending.ids).strip()
            self._pending.written = True
            self._pending = None

    def _end(self, at: int) -> None:
        if self._last and self._last.end is None:
            self._last.end = at


def is_backchannel(text: str) -> bool:
    """Whether these words only say that somebody listens: "uh-huh", "okay, thanks", or nothing."""
    words = re.sub(r"[^a-z ]", "", text.lower().replace("-", "")).split()
    return len(words) <= BACKCHANNEL_WORDS and bool(BACKCHANNEL.fullmatch(" ".join(words) or "oh"))


def is_echo(text: str, said: str) -> bool:
    """Whether all words of a turn are the agent's own: its loudspeaker was heard."""
    return bool(said) and all(sounds_like(word, said) for word in text.split())


def sounds_like(word: str, text: str) -> bool:
    """Whether a word, perhaps not written to its end yet, is one of a text: an echo of it."""
    plain, *others = ("".join(filter(str.isalnum, w.lower())) for w in (word, *text.split()))
    return any(other.startswith(plain) for other in others)


def seconds(frames: int) -> float:
    return round(frames * FRAME_SECONDS, 3)
