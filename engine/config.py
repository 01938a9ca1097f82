"""Numbers and settings: constants of the frame clock, and frozen dataclasses that check themselves.

Not a global settings object: whoever needs a setting is given it.
"""

from dataclasses import dataclass

from engine.errors import ConfigError

SAMPLE_RATE = 24_000  # Hz, mono
FRAME_RATE = 12.5  # frames per second
FRAME_SAMPLES = int(SAMPLE_RATE / FRAME_RATE)  # 1920 samples, 80 ms: the budget of one step
FRAME_SECONDS = 1 / FRAME_RATE

PAD = 3  # text token "no new word in this frame"
EPAD = 0  # text token "a word starts in the next frame" (end of padding)
AGENT_CODEBOOKS = 8  # Mimi levels of one voice, Q

VOICE_NAMES = (  # the voices of the public checkpoint; the first is our default
    *("NATF2", "NATF0", "NATF1", "NATF3", "NATM0", "NATM1", "NATM2", "NATM3"),
    *("VARF0", "VARF1", "VARF2", "VARF3", "VARF4", "VARM0", "VARM1", "VARM2", "VARM3", "VARM4"),
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """A closed range of one setting."""

    low: float
    high: float

    def check(self, name: str, value: float) -> None:
        """Raises ConfigError naming the setting, its value and the range."""
        if not self.low <= value <= self.high:  # NaN fails too
            raise ConfigError(f"{name} is {value}; use {self.low:g} to {self.high:g}")


TEMPERATURE = Bounds(0, 2)
TOP_K = Bounds(1, 2**31 - 1)
PAD_BIAS = Bounds(-4, 4)
REPETITION_PENALTY = Bounds(0.5, 2)
REPETITION_CONTEXT = Bounds(1, 4096)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How tokens are picked, per conversation (wire.md 2)."""

    text_temperature: float = 0.7  # 0 is greedy
    audio_temperature: float = 0.8  # 0 is greedy
    text_top_k: int = 25  # clamped to the vocabulary
    audio_top_k: int = 250  # clamped to the vocabulary
    pad_bias: float = 0.0  # added to the logit of PAD: positive speaks less
    repetition_penalty: float = 1.0  # logit > 0 divided by it, else multiplied
    repetition_context: int = 64  # last fed text tokens it looks at; PAD and EPAD exempt

    def __post_init__(self) -> None:
        TEMPERATURE.check("text_temperature", self.text_temperature)
        TEMPERATURE.check("audio_temperature", self.audio_temperature)
        TOP_K.check("text_topk", self.text_top_k)
        TOP_K.check("audio_topk", self.audio_top_k)
        PAD_BIAS.check("pad_mult", self.pad_bias)
        REPETITION_PENALTY.check("repetition_penalty", self.repetition_penalty)
        REPETITION_CONTEXT.check("repetition_penalty_context", self.repetition_context)


GREEDY = SamplingConfig(text_temperature=0, audio_temperature=0)
