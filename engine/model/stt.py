"""The recogniser: reads the codec's codes of the user, writes text tokens, hears pauses.

A temporal transformer without depformer, over 32 codebooks, greedy. One step is one frame; what
its tokens mean as words and turns is not known here. Source: kyutai-labs/moshi, LMGen for
`model_type stt` (step 0 sees initial tokens only, step i the codes of frame i - 1).
"""

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import FRAME_RATE, FRAME_SAMPLES, PAD
from engine.model.config import expect, gated_width
from engine.model.lm import Temporal
from engine.model.mimi import Mimi
from engine.model.transformer import Active, Linear

SETTLING_FRAMES = 150  # of digital silence, until the codes no longer change
DONE = 0  # which value of a pause head says that the user is done


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
        for key, wanted in FIXED.items():
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


FIXED = {  # what config.json must say where it says anything
    "dep_q": 0,
    "existing_text_padding_id": PAD,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "cross_attention": False,
}


class Recogniser(Temporal):
    """Weights. Unlike PersonaPlex's, its window is all columns of the context."""

    def __init__(self, config: SttConfig) -> None:
        super().__init__(config, config.context)
        self.config = config
        heads = config.pause_heads
        self.pauses = Linear(config.dim, heads * config.pause_values) if heads else None

    def pause(self, hidden: Tensor) -> Tensor | None:
        """hidden [..., dim] -> every head's values as probabilities [..., heads, values]."""
        if self.pauses is None:
            return None
        values = self.pauses(hidden).float()
        return values.unflatten(-1, (self.config.pause_heads, -1)).softmax(-1)


class Hearing:
    """The recogniser at work for a number of slots. Slots not active in a step do not change.

    silence: the codes [n_q] that `step_on_silence` reads.
    """

    def __init__(self, stt: Recogniser, slots: int, silence: Tensor | None = None) -> None:
        self.stt, self.rings, self.silence = stt, stt.rings(slots), silence
        device, config = self.rings.position.device, stt.config
        initial = [config.text_card, *(config.card,) * config.n_q]
        self.initial = torch.tensor(initial, device=device)  # [1 + n_q]
        self.text = torch.zeros(slots, dtype=torch.int64, device=device)  # of the last step

    def narrow(self, slots: int) -> "Hearing":
        """The first slots: the same memory."""
        some = copy(self)
        some.rings, some.text = self.rings.narrow(slots), self.text[:slots]
        return some

    def clear(self, slot: int) -> None:
        """Back to before step 0."""
        self.rings.clear(slot)
        self.text[slot] = 0

    def state(self, slot: int) -> list[Tensor]:
        """Everything that a slot's future depends on, as views (tests compare it)."""
        return [self.rings.used(slot), self.rings.position[slot], self.text[slot]]

    def step(self, codes: Tensor, active: Active) -> tuple[Tensor, Tensor | None]:
        """codes [S, n_q] of one frame -> text tokens [S], P(pause of 0.5, 1, 2, 3 s) [S, heads].

        A slot's first step does not look at its codes.
        """
        column = self.column(codes)
        self.hidden = self.stt.step(self.stt.embed(column), self.rings, active)
        text = self.stt.text_logits(self.hidden).argmax(-1)
        active.keep(self.text, text)
        pause = self.stt.pause(self.hidden)
        return text, None if pause is None else pause[..., DONE]

    def step_on_silence(self, active: Active) -> tuple[Tensor, Tensor | None]:
        """The step on digital silence, which brings out what is still to be written."""
        return self.step(self.silence.expand(len(self.text), -1), active)

    def column(self, codes: Tensor) -> Tensor:
        """What the step reads [S, 1 + n_q]: the last text token and the codes."""
        first = self.rings.position[:, None] == 0
        return torch.where(first, self.initial, torch.cat([self.text[:, None], codes], 1))


def silence_codes(mimi: Mimi, codebooks: int) -> Tensor:
    """The codes [codebooks] to which the codec settles on digital silence."""
    device = next(mimi.parameters()).device
    stream, active = mimi.encoder_stream(1), Active.of([0], 1, device)
    pcm = torch.zeros(1, FRAME_SAMPLES, device=device)
    for _ in range(SETTLING_FRAMES):
        codes = mimi.encode(pcm, stream, active, codebooks)
    return codes[0]
