"""A backend whose text head reads from a script, and a probe beside each director.

For `bench routing`: the head wants to say its line whether or not it may, as the model would; the
probe sees every token that is really fed. No speech is made: a frame is loud while words sound.
"""

import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from engine.config import EPAD, FRAME_SAMPLES, PAD, VOICE_NAMES, SamplingConfig
from engine.dialogue.director import Director, Mode
from engine.dialogue.transcript import BARGE_IN_FRAMES
from engine.runtime.backend import Heard, Opening, Spoken
from engine.runtime.embedded import ByteTokenizer

VOTE_RATE = 0.3  # how often the head would start a word while it has nothing to say
WORD_FRAMES = 5  # about two and a half words a second
SOUND_FRAMES = 4  # for which a fed piece is heard
LOUD = 0.2


class Head:
    """One conversation's text head."""

    def __init__(self, seed: int) -> None:
        self.line: deque[int] = deque()
        self._rng = random.Random(seed)

    def plan(self, text: str, tokenizer: ByteTokenizer) -> None:
        """What the model wants to say from now on."""
        line: deque[int] = deque()
        for word in text.split():
            tokens = [EPAD, *tokenizer.encode(word)]
            line.extend(tokens + [PAD] * (WORD_FRAMES - len(tokens)))
        self.line = line  # in one go: the scheduler's thread reads it

    def sample(self) -> int:
        line = self.line
        if line:
            return line.popleft()
        return EPAD if self._rng.random() < VOTE_RATE else PAD


@dataclass
class Probe:
    """What one director did, seen from the scheduler's thread."""

    director: Director | None = None
    held_at: float = 0.0  # time.monotonic() at which the last hold began
    own_while_held: int = 0  # tokens of the model's own that were fed during a hold
    spoken_frames: int = 0
    padding_frames: int = 0  # of them
    cancel_excess: list[int] = field(default_factory=list)  # frames beyond the current word
    _mode: Mode = Mode.FREE
    _cancel: int | None = None

    def see(self, token: int) -> None:
        """The token fed in this step."""
        if self.director is None:
            return
        before, self._mode = self._mode, self.director.mode
        if before is self._mode is Mode.HOLD:
            self.own_while_held += token != PAD
        elif before is Mode.FREE and self._mode is Mode.HOLD:
            self.held_at = time.monotonic()
        if self._mode is Mode.SPEAK:
            self.spoken_frames += 1
            self.padding_frames += token in (PAD, EPAD)
        self._time_cancel(before, token)

    def _time_cancel(self, before: Mode, token: int) -> None:
        """From the barge-in until the text is left: frames that are no piece of the word."""
        if before is Mode.SPEAK and self.director.floor.onset_frames == BARGE_IN_FRAMES:
            self._cancel = 0
        if self._cancel is None:
            return
        self._cancel += token in (PAD, EPAD)
        if self._mode is not Mode.SPEAK:
            self.cancel_excess.append(self._cancel)
            self._cancel = None


class ScriptedBackend:
    """The contract of `backend.py` for scripts; a conversation's seed names its head and probe."""

    name = "scripted"
    ticks, limited_by = None, "asked"
    transcribes = False
    voices = VOICE_NAMES

    def __init__(self, slots: int, talks: int) -> None:
        self.slots = slots
        self.tokenizer = ByteTokenizer()
        self.heads = [Head(i) for i in range(talks)]
        self.probes = [Probe() for _ in range(talks)]
        self._talk_of: dict[int, int] = {}  # slot -> talk
        self._sounding = np.zeros(slots, np.int64)  # [S] frames left to be heard
        self._active: list[int] = []

    def open(self, slot: int, opening: Opening) -> Iterator[None]:
        self._talk_of[slot] = opening.seed
        self._sounding[slot] = 0
        yield from ()

    def tune(self, slot: int, sampling: SamplingConfig) -> None:
        """The script stands."""

    def listen(self, pcm: np.ndarray, active: np.ndarray) -> Heard:
        self._active = [int(slot) for slot in np.flatnonzero(active)]
        text = np.full(self.slots, PAD, np.int64)  # [S]
        for slot in self._active:
            text[slot] = self.heads[self._talk_of[slot]].sample()
        return Heard(text=text)

    def speak(self, text: np.ndarray, hush: np.ndarray) -> Spoken:
        pcm = np.zeros((self.slots, FRAME_SAMPLES), np.float32)  # [S, 1920]
        for slot in self._active:
            token = int(text[slot])
            self.probes[self._talk_of[slot]].see(token)
            left = SOUND_FRAMES if token > PAD else max(0, self._sounding[slot] - 1)
            self._sounding[slot] = left
            pcm[slot] = LOUD if left and not hush[slot] else 0.0
        return Spoken(pcm=pcm)

    def close(self, slot: int) -> None:
        self._talk_of.pop(slot, None)

    def context_used(self, slot: int) -> float:
        return 0.0

    def renew(self, slot: int) -> None:
        """A script has no memory to fill."""
