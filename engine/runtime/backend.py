"""The one contract between a conversation and whatever makes speech.

Not an implementation and not a registry: `embedded.py` and `personaplex.py` keep this contract.
All arrays are numpy; rows of inactive slots are meaningless. Only the scheduler's thread calls it,
but for `prepare` and `context_used`.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.config import SamplingConfig

if TYPE_CHECKING:
    from engine.runtime.load import TickTable


class Tokenizer(Protocol):
    """Text ids of the model. `PAD` and `EPAD` are in `engine.config`."""

    def __len__(self) -> int:
        """The number of ids: 0 to len − 1 all have a piece."""

    def encode(self, text: str) -> list[int]:
        """Ids of a word (or of a whole prompt); the first piece opens with ▁."""

    def piece(self, token: int) -> str:
        """The piece of an id; bytes that are no character of their own come as `<0xNN>`."""


class WordTokenizer(Protocol):
    """Text ids of a recogniser; 0 and 3 are as in the model's."""

    def piece(self, token: int) -> str:
        """The piece of an id; ▁ opens a word."""

    def decode(self, tokens: list[int]) -> str:
        """The text of the pieces of one word."""


@dataclass(frozen=True, slots=True)
class Transcription:
    """What it takes to read a recogniser's tokens."""

    tokenizer: WordTokenizer
    delay_frames: int  # by which a word's token lags behind its sound

    @property
    def flush_steps(self) -> int:
        """Steps on silence until all that was said is written: 7 for a delay of 6 frames."""
        return self.delay_frames + 1


@dataclass(frozen=True, slots=True)
class Opening:
    """What a slot needs to start one conversation."""

    voice: str  # one of Backend.voices
    text_ids: tuple[int, ...] = ()  # the wrapped persona, tokenised (dialogue/persona.py)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0  # >= 0; the conversation is reproducible given the same audio
    transcribe: bool = False  # run the recogniser for this slot, where there is one


@dataclass(frozen=True, slots=True)
class Heard:
    """What `listen` brings back. S slots."""

    text: np.ndarray  # [S] int64: the text token sampled for the next frame
    user_codes: np.ndarray | None = None  # [S, 8] int64
    stt_text: np.ndarray | None = None  # [S] int64: the recogniser's token; −1: not run there
    pause: np.ndarray | None = None  # [S, 4] float32: pause heads of 0.5, 1, 2, 3 s


@dataclass(frozen=True, slots=True)
class HeardRow:
    """What is known of one slot's user frame: by the model's recogniser, by a CPU's ears."""

    stt_text: int | None = None  # the recogniser's token; None: it did not run
    pause: np.ndarray | None = None  # [4] float32: its pause heads
    # Whether somebody speaks, of each frame that the ears have heard since the last row: none
    # while they lag behind, then several. None: there are no ears.
    speech: tuple[bool, ...] | None = None
    writing: bool = False  # a turn is over, and the ears write it down


@dataclass(frozen=True, slots=True)
class Spoken:
    """What `speak` brings back. S slots."""

    pcm: np.ndarray  # [S, 1920] float32, 24 kHz
    codes: np.ndarray | None = None  # [S, 8] int64: the complete agent frame, delays undone


class Backend(Protocol):
    """Makes speech for `slots` conversations, one 80 ms frame at a time.

    The first tick of a slot after `open` is its bootstrap: its pcm row is ignored, `listen` picks
    the text of frame 0, and the pcm of `speak` is thrown away. From then on tick i takes user
    frame i, picks the text of frame i + 1 and returns the pcm of frame i.
    """

    name: str  # what `/healthz` and `ready` call the model
    slots: int
    limited_by: str  # what made that number: memory, time, asked, most, cpu
    tokenizer: Tokenizer
    voices: tuple[str, ...]  # names; the first is the default
    ticks: "TickTable | None"  # how long a tick takes, where it was measured
    transcribes: bool  # whether a recogniser is loaded; only then there is what follows
    transcription: Transcription
    transcribing: bool  # the recogniser's switch, for all slots: off, it costs nothing

    def prepare(self, opening: Opening) -> None:
        """Read, level and hash what `open` needs from files. Raises EngineError.

        May take its time: any thread but the scheduler's calls it. Without it, `open` does it.
        """

    def open(self, slot: int, opening: Opening) -> Iterator[None]:
        """Run a slot's prompts; each `next` is one bounded piece of work, exhausted means ready."""

    def limit_piece(self, columns: int) -> None:
        """The next piece of a prompt or renewal takes so many columns at most: a size in `ticks`.

        Called only where the pieces were timed.
        """

    def tune(self, slot: int, sampling: SamplingConfig) -> None:
        """Change how an open slot samples, from the next tick on."""

    def listen(self, pcm: np.ndarray, active: np.ndarray) -> Heard:
        """Take user pcm [S, 1920] float32 for the slots active [S] bool; pick text tokens.

        Inactive slots are exact no-ops: not a bit of their state changes.
        """

    def speak(self, text: np.ndarray, hush: np.ndarray) -> Spoken:
        """Feed text [S] int64 to the slots of the last `listen`; make their agent frames.

        hush [S] bool makes the frame whose text is fed now silent.
        """

    def flush(self, slots: list[int]) -> dict[int, HeardRow]:
        """One step of the recogniser alone for open slots, reading digital silence.

        Brings out the words that are still on their way; each step makes that slot's text one
        frame longer than its audio. Slots the recogniser does not run for are left out.
        """

    def context_used(self, slot: int) -> float:
        """How much of its memory a slot has filled, 0 to 1. May be called from any thread."""

    def renew(self, slot: int) -> Generator[None, None, int] | None:
        """Work that gives a slot whose context runs out a new one; None where none is due.

        It returns the number of the conversation's last frames that the new one holds. Where the
        slot is closed before the work is exhausted, the work must be closed first.
        """

    def close(self, slot: int) -> None:
        """Free a slot. Nothing of its conversation stays readable."""
