"""The backend for machines without GPU, weights or accounts: honest about what it is.

It greets and says so, plays the user's own speech back after 0.7 s of silence (like a call-test
service), and speaks any text it is given word by word through eSpeak NG, through the same
director, scheduler and wire as the model. Not a model: it understands nothing.
"""

import ctypes
import functools
import os
import random
import re
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from engine.config import EPAD, FRAME_SAMPLES, PAD, SAMPLE_RATE, VOICE_NAMES, SamplingConfig
from engine.runtime.backend import Heard, Opening, Spoken

GREETINGS = (
    "Hello! I am a test voice, not the PersonaPlex model.",
    "Hi there! This is a test voice, not the PersonaPlex model.",
)
GREETING_DELAY_FRAMES = 3  # a client that connects in order to say something comes first
LOUD = 10 ** (-36 / 20)  # peak of a frame that counts as speech
SPEECH_FRAMES = 4  # loud frames before an utterance is worth playing back
SILENCE_FRAMES = 9  # 0.72 s of quiet end an utterance
SILENCE_FRAMES_WITH_WORDS = 19  # 1.5 s: by then its words are known, and what they ask for
ONSET_FRAMES = 3  # loud frames in a row that interrupt a playback
PRE_ROLL_FRAMES = 2  # kept from before the first loud frame
MAX_UTTERANCE_FRAMES = 250  # 20 s; older speech is forgotten
WORD_GAP_SAMPLES = SAMPLE_RATE // 25  # 40 ms between words
LEAD_FRAMES = 1  # a word sounds with its text: it is voted for in the last one's last frame
RATE_WPM = 190  # eSpeak's setting; single words are spoken slower than in a sentence
FIRST_ID = 4  # 0 to 3 are EPAD, BOS, EOS, PAD


class EmbeddedBackend:
    """Keeps the contract of `backend.py` without a model."""

    name = "embedded"
    transcribes = False
    ticks = None
    limited_by = "asked"  # neither memory nor time limits it

    def __init__(self, slots: int = 4) -> None:
        self.slots = slots
        self.tokenizer = WordwiseTokenizer()
        self.voices = VOICE_NAMES
        self._open: dict[int, EmbeddedConversation] = {}
        self._active: list[int] = []
        load_synthesizer()  # a missing library fails here, at start, not in a conversation

    def prepare(self, opening: Opening) -> None:
        """It reads no files."""

    def open(self, slot: int, opening: Opening) -> Iterator[None]:
        self._open[slot] = EmbeddedConversation(opening)
        yield from ()

    def tune(self, slot: int, sampling: SamplingConfig) -> None:
        """Nothing is sampled here, so there is nothing to change."""

    def listen(self, pcm: np.ndarray, active: np.ndarray) -> Heard:
        self._active = [int(slot) for slot in np.flatnonzero(active)]
        text = np.full(self.slots, PAD, np.int64)  # [S]
        for slot in self._active:
            text[slot] = self._open[slot].listen(pcm[slot])
        return Heard(text=text)

    def speak(self, text: np.ndarray, hush: np.ndarray) -> Spoken:
        pcm = np.zeros((self.slots, FRAME_SAMPLES), np.float32)  # [S, 1920]
        for slot in self._active:
            pcm[slot] = self._open[slot].speak(int(text[slot]), bool(hush[slot]))
        return Spoken(pcm=pcm)

    def close(self, slot: int) -> None:
        self._open.pop(slot, None)

    def renew(self, slot: int) -> None:
        """Nothing is remembered here that could run out."""

    def context_used(self, slot: int) -> float:
        return 0.0  # it remembers nothing


class EmbeddedConversation:
    """All state of one slot: a partner that yields to the user and loses nothing they say."""

    def __init__(self, opening: Opening) -> None:
        # Where the user's words are written down, an answer may come instead of the playback.
        quiet = SILENCE_FRAMES_WITH_WORDS if opening.transcribe else SILENCE_FRAMES
        self.user = UtteranceCollector(quiet)
        self.heard: np.ndarray | None = None  # to be played back when nothing else sounds
        self.mouth = Mouth(espeak_voice(opening.voice))
        self.tokenizer = WordwiseTokenizer()
        greeting = random.Random(opening.seed).choice(GREETINGS)
        self.script = deque(self.tokenizer.encode(word) for word in greeting.split())
        self.pieces: deque[int] = deque()  # of the script's current word
        self.delay = GREETING_DELAY_FRAMES
        self.greeted = False  # its first word was begun
        self.bootstrapped = False
        self.sampled = PAD
        self.held = np.zeros(FRAME_SAMPLES, np.float32)  # the frame that leaves in the next tick

    def listen(self, pcm: np.ndarray) -> int:
        """Take a user frame [1920]; the text token that would be fed next."""
        if self.bootstrapped:
            utterance = self.user.add(pcm)
            if self.user.onset >= ONSET_FRAMES:  # the user speaks: greet no more, play nothing back
                self._cut_greeting()
                if self.mouth.playback:
                    self.mouth.stop()
            if utterance is not None:
                self.heard = utterance
            if self.heard is not None and not self.user.onset and self.mouth.play(self.heard):
                self.heard = None
        self.sampled = self._sample()
        return self.sampled

    def _cut_greeting(self) -> None:
        """Its first word is said even to a user who speaks at once: somebody is there."""
        kept = 0 if self.greeted else 1
        while len(self.script) > kept:
            self.script.pop()

    def _sample(self) -> int:
        """The next token of the greeting, else EPAD wherever a word may start, else PAD."""
        if self.pieces:
            return self.pieces.popleft()
        if not self.mouth.wants_word or self.mouth.playback:
            return PAD
        if self.script:
            if self.delay:
                self.delay -= 1
                return PAD
            self.pieces.extend(self.script.popleft())
            self.greeted = True
        return EPAD

    def speak(self, token: int, hush: bool) -> np.ndarray:
        """Feed a token; the frame [1920] of the token before it."""
        if token != self.sampled:  # something else is being said: no greeting over it
            self.script.clear()
            self.pieces.clear()
        if hush:  # the agent is to be silent: a playback does not wait for its end
            self.heard = None
            if self.mouth.playback:
                self.mouth.stop()
        self.mouth.feed(token, self.tokenizer)
        out, frame = self.held, self.mouth.frame()
        self.held = np.zeros_like(frame) if hush else frame
        self.bootstrapped = True
        return out


class UtteranceCollector:
    """The user's side of a slot: collects an utterance until `silence_frames` of quiet end it."""

    def __init__(self, silence_frames: int = SILENCE_FRAMES) -> None:
        self.silence_frames = silence_frames
        self.frames: deque[np.ndarray] = deque(maxlen=MAX_UTTERANCE_FRAMES)
        self.loud = self.quiet = self.onset = 0

    def add(self, pcm: np.ndarray) -> np.ndarray | None:
        """Take a user frame [1920]; the utterance [n] when it has just ended, else None."""
        is_loud = float(np.abs(pcm).max()) > LOUD
        self.onset = self.onset + 1 if is_loud else 0
        self.quiet = 0 if is_loud else self.quiet + 1
        self.loud += is_loud
        self.frames.append(pcm.copy())
        if not self.loud:
            while len(self.frames) > PRE_ROLL_FRAMES:
                self.frames.popleft()
        if self.quiet < self.silence_frames or not self.loud:
            return None
        spoken = list(self.frames)[: -self.silence_frames + 1]
        worth = self.loud >= SPEECH_FRAMES
        self.frames.clear()
        self.loud = 0
        return np.concatenate(spoken) if worth else None


@dataclass
class Mouth:
    """The agent's side of a slot: words fed piece by piece become queued samples."""

    voice: tuple[str, int]
    audio: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # not yet played
    word: bytes = b""  # of the word being fed
    open: bool = False  # a word is being fed
    playback: bool = False  # what is queued is the user's own speech

    def feed(self, token: int, tokenizer: "ByteTokenizer") -> None:
        """Take a text token; a word sounds as soon as the token after it shows its end."""
        if token < FIRST_ID:
            return self._finish_word()
        opens, data = tokenizer.data(token)
        if opens:
            self._finish_word()
        self.open = True
        self.word += data
        if tokenizer.closes(token):
            self._finish_word()

    def _finish_word(self) -> None:
        if not self.open:
            return
        voice, pitch = self.voice
        samples = synthesize(self.word.decode(errors="replace"), voice, pitch, RATE_WPM)
        before = np.zeros(0, np.float32) if self.playback else self.audio
        gap = np.zeros(WORD_GAP_SAMPLES if len(before) else 0, np.float32)
        self.audio = np.concatenate([before, gap, samples])
        self.word, self.open, self.playback = b"", False, False

    def play(self, samples: np.ndarray) -> bool:
        """Queue the user's own speech; False while words are sounding."""
        if len(self.audio) or self.open:
            return False
        self.audio, self.playback = samples, True
        return True

    def stop(self) -> None:
        """What is queued is not played."""
        self.audio, self.playback = self.audio[:0], False

    def frame(self) -> np.ndarray:
        """The next 1920 samples; silence where nothing is queued."""
        out = np.zeros(FRAME_SAMPLES, np.float32)
        head = self.audio[:FRAME_SAMPLES]
        out[: len(head)] = head
        self.audio = self.audio[FRAME_SAMPLES:]
        self.playback = self.playback and len(self.audio) > 0
        return out

    @property
    def wants_word(self) -> bool:
        """Whether the next word may start: what sounds ends before that word can be fed."""
        return not self.open and len(self.audio) <= LEAD_FRAMES * FRAME_SAMPLES


@dataclass(frozen=True)  # all instances are equal: a table made from one serves all
class ByteTokenizer:
    """UTF-8 bytes, two to a piece; the first piece of a word opens with ▁.

    id = 4 + (opens · 257 + second byte + 1, or + 0 without one) · 256 + first byte.
    A lone ▁ (an empty word) is the one piece with no byte at all.
    """

    LONE: ClassVar[int] = FIRST_ID + 2 * 257 * 256

    def __len__(self) -> int:
        return self.LONE + 1

    def encode(self, text: str) -> list[int]:
        ids = []
        for word in text.split() or [""]:
            data = word.encode()
            pairs = [data[i : i + 2] for i in range(0, len(data), 2)]
            ids += [self._id(pair, i == 0) for i, pair in enumerate(pairs)] or [self.LONE]
        return ids

    def _id(self, pair: bytes, opens: bool) -> int:
        second = pair[1] + 1 if len(pair) == 2 else 0
        return FIRST_ID + (opens * 257 + second) * 256 + pair[0]

    def data(self, token: int) -> tuple[bool, bytes]:
        """(whether it opens a word, its bytes) of an id."""
        if token == self.LONE:
            return True, b""
        rest, first = divmod(token - FIRST_ID, 256)
        opens, second = divmod(rest, 257)
        return bool(opens), bytes([first, second - 1] if second else [first])

    def closes(self, token: int) -> bool:
        """Whether a word surely ends with this id; of two bytes nobody knows."""
        return False

    def piece(self, token: int) -> str:
        if token < FIRST_ID:
            return ("<unk>", "<s>", "</s>", "<pad>")[token]
        opens, data = self.data(token)
        text = data.decode("ascii") if data.isascii() else "".join(f"<0x{b:02X}>" for b in data)
        return "▁" + text if opens else text


@dataclass(frozen=True)
class WordwiseTokenizer(ByteTokenizer):
    """Up to seven bytes to a piece: most words are one, and sound with their text.

    Such an id lies above those of `ByteTokenizer`, which stay valid: BASE + the number that the
    piece's bytes are behind one more byte, 1 + opens + 2 · closes.
    """

    BASE: ClassVar[int] = ByteTokenizer.LONE + 1
    MOST: ClassVar[int] = 7  # bytes: with the one before them an id is below 2 ** 59

    def encode(self, text: str) -> list[int]:
        ids = []
        for word in text.split() or [""]:
            data = word.encode()
            parts = [data[i : i + self.MOST] for i in range(0, len(data), self.MOST)]
            for i, part in enumerate(parts):
                how = 1 + (i == 0) + 2 * (i == len(parts) - 1)
                ids.append(self.BASE + int.from_bytes(bytes([how]) + part))
            if not parts:
                ids.append(self.LONE)
        return ids

    def data(self, token: int) -> tuple[bool, bytes]:
        if token < self.BASE:
            return super().data(token)
        how, part = self._unpack(token)
        return how in (2, 4), part

    def closes(self, token: int) -> bool:
        return token >= self.BASE and self._unpack(token)[0] >= 3

    def _unpack(self, token: int) -> tuple[int, bytes]:
        number = token - self.BASE
        data = number.to_bytes((number.bit_length() + 7) // 8)
        return data[0], data[1:]


def espeak_voice(name: str) -> tuple[str, int]:
    """The eSpeak variant and pitch that stand in for a voice: `NATF2` -> (`en-us+f3`, 55)."""
    match = re.fullmatch(r"(NAT|VAR)([FM])(\d)", name)
    assert match, f"{name} is not one of the embedded voices"
    family, gender, number = match[1], match[2].lower(), int(match[3])
    return f"en-us+{gender}{number + 1}", (55 if family == "NAT" else 38)


# -- eSpeak NG -------------------------------------------------------------------------------------

AUDIO_OUTPUT_SYNCHRONOUS = 2  # eSpeak's constants, from here
CHARS_UTF8 = 1
PARAMETER_RATE, PARAMETER_PITCH = 1, 3
POSITION_CHARACTER = 1
TRIM_LEVEL = 10 ** (-45 / 20)  # quieter samples at either end of a word are cut
EDGE_SAMPLES = SAMPLE_RATE // 100  # 10 ms kept around what is left, faded
WORDS_CACHED = 2048

CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Synthesizer:
    """The process's one eSpeak instance: one word in, its samples out, by ctypes.

    The library calls back while `espeak_Synth` runs. It keeps one global state, so all calls go
    through one lock. Source: espeak-ng `speak_lib.h`; library and data come with the
    `espeakng-loader` package.
    """

    def __init__(self) -> None:
        import espeakng_loader  # here: tests on a GPU machine need no voice

        self._lock = threading.Lock()
        self._chunks: list[bytes] = []
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = os.fsencode(espeakng_loader.get_data_path())
        self.sample_rate = self._library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)
        assert self.sample_rate > 0, f"eSpeak NG found no data in {data!r}"
        self._callback = CALLBACK(self._collect)  # kept: the library holds only the pointer
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]

    def _collect(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, count * 2))
        return 0

    def say(self, text: str, voice: str, pitch: int, rate: int) -> np.ndarray:
        """Samples of a word: float32 [n] at 24 kHz, silence at both ends cut.

        voice is an eSpeak name such as `en-us+f3`, pitch 0 to 100, rate in words per minute.
        Text without anything to say (punctuation) gives 0 samples.
        """
        import soxr  # likewise

        data = text.replace("\0", "").encode()
        with self._lock:
            self._chunks.clear()
            self._library.espeak_SetVoiceByName(voice.encode())
            self._library.espeak_SetParameter(PARAMETER_RATE, rate, 0)
            self._library.espeak_SetParameter(PARAMETER_PITCH, pitch, 0)
            self._library.espeak_Synth(
                data, len(data) + 1, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None
            )
            raw = b"".join(self._chunks)
        samples = np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32768
        samples = soxr.resample(samples, self.sample_rate, SAMPLE_RATE).astype(np.float32)
        loud = np.flatnonzero(np.abs(samples) > TRIM_LEVEL)
        if not loud.size:
            return np.zeros(0, np.float32)
        cut = samples[max(0, loud[0] - EDGE_SAMPLES) : loud[-1] + EDGE_SAMPLES].copy()
        edge = min(EDGE_SAMPLES, len(cut) // 2)
        ramp = np.linspace(0, 1, edge, dtype=np.float32)  # so that words join without a click
        cut[:edge] *= ramp
        cut[len(cut) - edge :] *= ramp[::-1]
        return cut


@functools.cache
def load_synthesizer() -> Synthesizer:
    """The shared instance; made on first use."""
    return Synthesizer()


@functools.lru_cache(WORDS_CACHED)
def synthesize(text: str, voice: str = "en-us", pitch: int = 50, rate: int = 175) -> np.ndarray:
    """`Synthesizer.say`, remembered: conversations say the same small words again and again."""
    samples = load_synthesizer().say(text, voice, pitch, rate)
    samples.flags.writeable = False
    return samples
