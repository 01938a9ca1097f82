"""The recogniser: the user's codes of the codec in, text tokens and pauses out.

A temporal transformer without depformer, over 32 codebooks, greedy. One step is one frame; what
its tokens mean as words and turns is not known here. Source: kyutai-labs/moshi, LMGen for
`model_type stt` (step 0 sees initial tokens only, step i the codes of frame i - 1).
"""

from copy import copy

import torch
from torch import Tensor

from engine.config import FRAME_SAMPLES
from engine.model.config import SttConfig
from engine.model.lm import Temporal
from engine.model.mimi import Mimi
from engine.model.transformer import Active, Linear

SETTLING_FRAMES = 25  # of silence beyond one window of the codec, measured
DONE = 0  # which value of a pause head says that the user is done


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
    """The recogniser at work; slots not active in a step do not change. silence: codes [n_q]."""

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
        self.rings.clear(slot)
        self.text[slot] = 0

    def state(self, slot: int) -> list[Tensor]:
        """Everything that a slot's future depends on, as views (tests compare it)."""
        return [*self.rings.used(slot), self.rings.position[slot], self.text[slot]]

    def step(self, codes: Tensor, active: Active) -> tuple[Tensor, Tensor | None]:
        """codes [S, n_q] -> text [S], pauses [S, heads]. A slot's first step ignores its codes."""
        column = self.column(codes)
        self.hidden = self.stt.step(self.stt.embed(column), self.rings, active)
        text = self.stt.text_logits(self.hidden).argmax(-1)
        active.update(self.text, text)
        pause = self.stt.pause(self.hidden)
        return text, None if pause is None else pause[..., DONE]

    def column(self, codes: Tensor) -> Tensor:
        """What the step reads [S, 1 + n_q]: the last text token and the codes."""
        first = self.rings.position[:, None] == 0
        return torch.where(first, self.initial, torch.cat([self.text[:, None], codes], 1))


def silence_codes(mimi: Mimi, codebooks: int) -> Tensor:
    """The codes [codebooks] to which the codec settles on digital silence.

    They change until its window holds nothing else, and somewhat longer, because every layer looks
    back over a window of its own. How much longer is measured, not proven: 25 frames suffice. With
    the public codec that makes 150 in all.
    """
    window = mimi.config.transformer.context // mimi.frame_columns
    device = next(mimi.parameters()).device
    stream, active = mimi.encoder_stream(1), Active.of([0], 1, device)
    pcm = torch.zeros(1, FRAME_SAMPLES, device=device)
    for _ in range(window + SETTLING_FRAMES):
        codes = mimi.encode(pcm, stream, active, codebooks)
    return codes[0]
