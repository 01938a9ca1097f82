"""Dimensions of a checkpoint and a recogniser, the public ones as defaults; no file is read here.

Source of the numbers: config.json of a checkpoint, or nvidia/personaplex-7b-v1 where it is silent.
"""

import math
from dataclasses import dataclass, field, fields

from engine.config import FRAME_RATE, FRAME_SAMPLES, PAD, SAMPLE_RATE
from engine.errors import ModelError

SILENCE_TOKENS = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)  # the agent's, in prompts and hush
SINE_TOKENS = (430, 1268, 381, 1611, 1095, 1495, 56, 472)  # 440 Hz at 0.5: the user's, in prompts


def expect(good: bool, what: str, value: object, expected: str) -> None:
    """Raises ModelError naming the entry of config.json, its value and what would do."""
    if not good:
        raise ModelError(f"config.json: {what} is {value}; this engine needs {expected}")


def expect_heads(what: str, dim: int, heads: int) -> None:
    """Raises ModelError unless every head has a whole number of rotary pairs."""
    expect(dim % (2 * heads) == 0, what, dim, f"a multiple of {2 * heads}, twice its heads")


def from_dict(cls: type, values: dict, where: str):
    """A config dataclass from a json object; lists become tuples. Raises ModelError."""
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    expect(not unknown, f"{where}.{unknown[0] if unknown else ''}", "unknown", f"only {known}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """One of the two transformers of the codec, at 25 Hz."""

    d_model: int = 512
    num_heads: int = 8
    num_layers: int = 8
    dim_feedforward: int = 2048
    context: int = 250  # columns of 40 ms
    max_period: float = 10_000

    def __post_init__(self) -> None:
        expect_heads("mimi.transformer.d_model", self.d_model, self.num_heads)


@dataclass(frozen=True, slots=True)
class QuantizerConfig:
    dimension: int = 256
    n_q: int = 32  # levels in the file
    bins: int = 2048


@dataclass(frozen=True, slots=True)
class MimiConfig:
    """The codec."""

    sample_rate: int = SAMPLE_RATE
    frame_rate: float = FRAME_RATE
    channels: int = 1
    dimension: int = 512  # latent width
    n_filters: int = 64  # width of the first convolution
    ratios: tuple[int, ...] = (8, 6, 5, 4)  # decoder order
    n_residual_layers: int = 1
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    compress: int = 2
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    num_codebooks: int = 8

    def __post_init__(self) -> None:
        expect(self.sample_rate == SAMPLE_RATE, "mimi.sample_rate", self.sample_rate, "24000")
        expect(self.frame_rate == FRAME_RATE, "mimi.frame_rate", self.frame_rate, "12.5")
        expect(self.channels == 1, "mimi.channels", self.channels, "1")
        expect(self.n_residual_layers == 1, "mimi.n_residual_layers", self.n_residual_layers, "1")
        expect(
            FRAME_SAMPLES % self.hop_samples == 0, "mimi.ratios", self.ratios, "a divisor of 1920"
        )
        width = self.transformer.d_model
        expect(width == self.dimension, "mimi.transformer.d_model", width, f"{self.dimension}")

    @property
    def hop_samples(self) -> int:
        """Samples of one column between SEANet and the resampling (960: 25 Hz)."""
        return math.prod(self.ratios)

    @property
    def columns(self) -> int:
        """Columns of the codec's transformers per frame (2)."""
        return FRAME_SAMPLES // self.hop_samples


@dataclass(frozen=True, slots=True)
class LMConfig:
    """The temporal transformer and the depformer."""

    dim: int = 4096
    num_heads: int = 32
    num_layers: int = 32
    hidden_scale: float = 4.125
    context: int = 3000  # frames
    max_period: float = 10_000
    n_q: int = 16  # audio rows, agent first
    dep_q: int = 16  # depth steps of the checkpoint; only the agent's are used
    card: int = 2048
    text_card: int = 32_000
    text_padding_id: int = PAD
    depformer_dim: int = 1024
    depformer_num_heads: int = 16
    depformer_num_layers: int = 6
    depformer_dim_feedforward: int = 4224  # before the 2/3 rule
    delays: tuple[int, ...] = (0, 0, *(1,) * 7, 0, *(1,) * 7)
    silence_tokens: tuple[int, ...] = SILENCE_TOKENS
    sine_tokens: tuple[int, ...] = SINE_TOKENS

    def __post_init__(self) -> None:
        q = self.codebooks
        expect_heads("lm.dim", self.dim, self.num_heads)
        expect(self.n_q == 2 * q, "lm.n_q", self.n_q, "an even number: agent and user")
        expect(self.dep_q in (q, 2 * q), "lm.dep_q", self.dep_q, f"{q} or {2 * q}")
        good = len(self.delays) == self.n_q + 1 and set(self.delays) <= {0, 1}
        expect(good, "lm.delays", self.delays, f"{self.n_q + 1} numbers, each 0 or 1")
        expect(self.delays[0] == 0, "lm.delays[0]", self.delays[0], "0 for the text row")
        expect(self.text_padding_id == PAD, "lm.text_padding_id", self.text_padding_id, f"{PAD}")
        for name in ("silence_tokens", "sine_tokens"):
            tokens = getattr(self, name)
            good = len(tokens) == q and all(0 <= t < self.card for t in tokens)
            expect(good, f"lm.{name}", tokens, f"{q} numbers from 0 to {self.card - 1}")

    @property
    def codebooks(self) -> int:
        """Q: audio rows of one voice, and depth steps that are run."""
        return self.n_q // 2

    @property
    def hidden(self) -> int:
        """Width of the gated feed-forward of the temporal transformer."""
        return gated_width(self.dim, int(self.hidden_scale * self.dim))

    @property
    def depth_hidden(self) -> int:
        return gated_width(self.depformer_dim, self.depformer_dim_feedforward)


def gated_width(dim: int, feedforward: int) -> int:
    """Two thirds of a plain feed-forward's width, as gating has three matrices instead of two."""
    return (21 * dim) // 8 if feedforward == 4 * dim else (2 * feedforward) // 3


@dataclass(frozen=True, slots=True)
class ModelConfig:
    lm: LMConfig = field(default_factory=LMConfig)
    mimi: MimiConfig = field(default_factory=MimiConfig)

    def __post_init__(self) -> None:
        q = self.mimi.num_codebooks
        expect(q == self.lm.codebooks, "mimi.num_codebooks", q, f"{self.lm.codebooks}, as lm.n_q/2")
        bins = self.mimi.quantizer.bins
        expect(bins == self.lm.card, "mimi.quantizer.bins", bins, f"{self.lm.card}, as lm.card")

    @classmethod
    def from_json(cls, config: dict) -> "ModelConfig":
        """Of a checkpoint's config.json; what it does not say is as in the public model."""
        mimi = dict(config.get("mimi", {}))
        parts = {"transformer": TransformerConfig, "quantizer": QuantizerConfig}
        for name in parts.keys() & mimi.keys():
            mimi[name] = from_dict(parts[name], mimi[name], f"mimi.{name}")
        lm = from_dict(LMConfig, config.get("lm", {}), "lm")
        return cls(lm, from_dict(MimiConfig, mimi, "mimi"))


STT_FIXED = {  # what config.json must say where it says anything
    "dep_q": 0,
    "existing_text_padding_id": PAD,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "cross_attention": False,
}


@dataclass(frozen=True, slots=True)
class SttConfig:
    """Dimensions of a recogniser; the defaults are kyutai/stt-1b-en_fr's."""

    dim: int = 2048
    num_heads: int = 16
    num_layers: int = 16
    hidden: int = 5632  # width of the gated feed-forward
    context: int = 750  # columns of the KV ring, all of them seen
    max_period: float = 100_000
    n_q: int = 32
    card: int = 2048
    text_card: int = 8000
    delay_frames: int = 6  # by which the text lags behind the sound
    pause_heads: int = 4  # 0: none in the file
    pause_values: int = 6  # of each head

    @classmethod
    def from_json(cls, config: dict) -> "SttConfig":
        """Of config.json, which may hold much that concerns training only. Raises ModelError."""
        for key, wanted in STT_FIXED.items():
            value = config.get(key, wanted)
            expect(value == wanted, key, value, repr(wanted))
        delays = config.get("delays", [])
        expect(not any(delays), "delays", delays, "zeros: a recogniser's rows are not delayed")
        names = ("dim", "num_heads", "num_layers", "context", "max_period", "n_q", "card")
        sizes = {name: config[name] for name in (*names, "text_card") if name in config}
        dim = sizes.setdefault("dim", 2048)
        seconds = config.get("stt_config", {}).get("audio_delay_seconds", 0.5)
        return cls(
            **sizes,
            hidden=gated_width(dim, int(config.get("hidden_scale", 4.125) * dim)),
            delay_frames=int(seconds * FRAME_RATE),
        )
