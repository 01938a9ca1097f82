"""Picking tokens: every slot by its own settings and its own random draws.

The draws of a slot come from its own generator and their number depends on its own settings only,
so what it says does not depend on its neighbours. Source of the method: nvidia/personaplex and
kyutai-labs/moshi draw with the exponential race, argmax(p / q) with q ~ Exp(1).
"""

from collections.abc import Callable, Iterable
from copy import copy

import torch
from torch import Tensor

from engine.config import EPAD, PAD, REPETITION_CONTEXT, SamplingConfig
from engine.model.config import LMConfig
from engine.model.transformer import Active

KERNEL_WIDTH = 256  # widest top-k of text that the kernel can do
HISTORY = int(REPETITION_CONTEXT.high)  # fed text tokens remembered for the penalty


def race(logits: Tensor, temperature: Tensor, top_k: int, noise: Tensor) -> Tensor:
    """logits [S, V], temperature [S] > 0, noise [S, >= k] by rank -> tokens [S], unnormalised."""
    probabilities = torch.softmax(logits / temperature[:, None], -1)
    top, ids = probabilities.topk(top_k)  # [S, k], descending
    winner = (top / noise[:, :top_k]).argmax(-1, keepdim=True)
    return ids.gather(1, winner)[:, 0]


class Picker:
    """One vocabulary's settings per slot, on the device as tensors and on the host for the shape.

    The widths of the top-k in use are known to the host: a slot's own width, never a neighbour's,
    decides which of equally likely tokens are kept.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self.vocabulary = vocabulary
        self.temperature = torch.ones(slots, device=device)
        self.width = torch.zeros(slots, dtype=torch.int64, device=device)  # 0: greedy
        self.widths: dict[int, int] = {}  # by slot; as many random numbers one pick takes

    def set(self, slot: int, temperature: float, top_k: int) -> None:
        width = min(top_k, self.vocabulary) if temperature > 0 else 0
        self.temperature[slot] = temperature or 1.0
        self.width[slot] = self.widths[slot] = width

    def clear(self, slot: int) -> None:
        self.widths.pop(slot, None)

    def narrow(self, slots: int) -> "Picker":
        """The first slots, the same memory and settings."""
        some = copy(self)
        some.temperature, some.width = self.temperature[:slots], self.width[:slots]
        return some

    def pick(self, logits: Tensor, noise: Tensor) -> Tensor:
        """logits [S, V] float32, noise [S, V] -> tokens [S]; greedy ties: the first."""
        picked = None
        for width in sorted({*self.widths.values()} or {0}):
            some = race(logits, self.temperature, width, noise) if width else logits.argmax(-1)
            picked = some if picked is None else torch.where(self.width == width, some, picked)
        return picked


class Sampler:
    """Text and audio picks of all slots, with the random numbers of the current tick.

    On a GPU kernels pick, and look at no setting on the host: a CUDA graph cannot. Where the text
    kernel would pick wrongly, `special` says so, and `pick_text` has to pick again.
    """

    def __init__(self, slots: int, config: LMConfig, device: torch.device) -> None:
        self.codebooks = config.codebooks
        self.text = Picker(slots, config.text_card, device)
        self.audio = Picker(slots, config.card, device)
        draws = config.text_card + config.codebooks * config.card
        self.noise = torch.ones(slots, draws, device=device)  # text, then every codebook
        cuda = device.type == "cuda"
        self.staged = torch.ones(slots, draws).pin_memory() if cuda else self.noise
        self._name_noise()
        self.audio_kernel: Callable[..., Tensor] | None = None  # where there are kernels
        self.text_kernel: Callable[..., Tensor] | None = None
        self.drawn: set[int] = set()  # slots whose numbers of the next tick lie in `staged`
        self.generators = [torch.Generator() for _ in range(slots)]
        self.pad_bias = torch.zeros(slots, device=device)
        self.penalty = torch.ones(slots, device=device)
        self.span = torch.ones(slots, dtype=torch.int64, device=device)  # tokens looked back at
        self.penalised: set[int] = set()
        self.fed = torch.full((slots, HISTORY + 1), config.text_card, device=device)  # last: spare
        self.count = torch.zeros(slots, dtype=torch.int64, device=device)
        self._age = torch.arange(HISTORY, device=device)

    def _name_noise(self) -> None:
        text = self.text.vocabulary
        self.text_noise = self.noise[:, :text]
        self.audio_noise = self.noise[:, text:].unflatten(1, (self.codebooks, -1))

    def narrow(self, slots: int) -> "Sampler":
        """The first slots: the same memory, settings and generators."""
        some = copy(self)
        some.text, some.audio = self.text.narrow(slots), self.audio.narrow(slots)
        for name in ("noise", "staged", "pad_bias", "penalty", "span", "fed", "count"):
            setattr(some, name, getattr(self, name)[:slots])
        some._name_noise()
        return some

    @property
    def special(self) -> bool:
        """Whether some slot's text needs more than the kernel: a wide top-k, or a penalty."""
        wide = any(width > KERNEL_WIDTH for width in self.text.widths.values())
        return self.text_kernel is not None and (wide or bool(self.penalised))

    def tune(self, slot: int, sampling: SamplingConfig) -> None:
        self.drawn.discard(slot)
        self.text.set(slot, sampling.text_temperature, sampling.text_top_k)
        self.audio.set(slot, sampling.audio_temperature, sampling.audio_top_k)
        self.pad_bias[slot] = sampling.pad_bias
        self.penalty[slot] = sampling.repetition_penalty
        self.span[slot] = sampling.repetition_context
        self.penalised.discard(slot)
        if sampling.repetition_penalty != 1:
            self.penalised.add(slot)

    def seed(self, slot: int, seed: int) -> None:
        self.generators[slot].manual_seed(seed)
        self.drawn.discard(slot)

    def clear(self, slot: int) -> None:
        self.text.clear(slot)
        self.audio.clear(slot)
        self.penalised.discard(slot)
        self.fed[slot] = self.text.vocabulary
        self.count[slot] = 0
        self.pad_bias[slot] = 0

    def draw(self, active: Active) -> None:
        """New random numbers for the active slots; each from its own generator, as it needs."""
        self.draw_ahead(active.slots)
        self.drawn.difference_update(active.slots)
        if self.noise.is_cuda:
            self.noise.copy_(self.staged, non_blocking=True)

    def draw_ahead(self, slots: Iterable[int]) -> None:
        """The same, on the host alone: done while a device is busy, it costs no time."""
        split, card = self.text.vocabulary, self.audio.vocabulary
        for slot in set(slots) - self.drawn:
            text, audio = self.text.widths[slot], self.audio.widths[slot]
            numbers = torch.empty(text + self.codebooks * audio)
            numbers.exponential_(generator=self.generators[slot])
            row = self.staged[slot]
            row[:text] = numbers[:text]
            row[split:].view(-1, card)[:, :audio] = numbers[text:].view(self.codebooks, audio)
            self.drawn.add(slot)

    def pick_text(self, logits: Tensor) -> Tensor:
        """logits [S, text_card] -> tokens [S], after penalty and bias; changes the logits."""
        if self.penalised:
            logits = self._penalise(logits)
        logits[:, PAD] += self.pad_bias
        return self.text.pick(logits, self.text_noise)

    def pick_text_in_graph(self, logits: Tensor) -> Tensor:
        """The same, by the kernel where there is one: right unless `special`."""
        if self.text_kernel is None:
            return self.pick_text(logits)
        settings = self.text.temperature, self.text.width, self.pad_bias
        return self.text_kernel(logits, self.text_noise, *settings, KERNEL_WIDTH)

    def pick_audio(self, codebook: int, logits: Tensor, given: Tensor) -> Tensor:
        """logits [S, card], given [S] (-1: nothing is given) -> tokens [S]."""
        noise, audio = self.audio_noise[:, codebook], self.audio
        if self.audio_kernel:
            return self.audio_kernel(logits, noise, audio.temperature, audio.width, given)
        return torch.where(given < 0, audio.pick(logits.float(), noise), given)

    def feed(self, text: Tensor, active: Active) -> None:
        """Remember the text tokens [S] that the active slots were really given."""
        place = torch.where(active.mask, self.count % HISTORY, HISTORY)
        self.fed.scatter_(1, place[:, None], text[:, None])
        self.count += active.mask

    def _penalise(self, logits: Tensor) -> Tensor:
        """Divide (or multiply, below 0) the logits of recently fed tokens; PAD, EPAD exempt."""
        age = (self.count[:, None] - 1 - self._age) % HISTORY  # [S, HISTORY]
        recent = torch.where(age < self.span[:, None], self.fed[:, :-1], self.text.vocabulary)
        shape = len(logits), self.text.vocabulary + 1
        seen = torch.zeros(shape, dtype=torch.bool, device=logits.device)
        seen = seen.scatter_(1, recent, True)[:, :-1]
        seen[:, EPAD] = False  # one by one: a list of columns is a copy that the host waits for
        seen[:, PAD] = False
        factor = self.penalty[:, None]
        return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)
