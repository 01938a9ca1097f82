"""The temporal transformer, and the language model made of it and the depformer.

17 tokens of a frame in, the next text token and the next agent codes out. Weights and one step:
which tokens go in, and what becomes of those that come out, is loop.py. The recogniser (stt.py) is
the temporal transformer's second user.
"""

import importlib
import importlib.util
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn

from engine.model.attention import Chunk, RingPush, Rings
from engine.model.config import LMConfig
from engine.model.depformer import Depformer, Pick
from engine.model.linear import Linear
from engine.model.state import Active
from engine.model.transformer import GatedLayer, RMSNorm, Transformer

ZERO_ROW = 0  # of the embedding table: what token -1 stands for


class Sizes(Protocol):
    """What a temporal transformer needs of a configuration."""

    dim: int
    num_heads: int
    num_layers: int
    hidden: int
    max_period: float
    n_q: int  # audio rows
    card: int
    text_card: int


class Embedding(nn.Module):
    """The tables of all rows in one, behind a row of zeros."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        audio, text = config.card + 1, config.text_card + 1
        first = 1 + config.n_q * audio
        self.starts = (first, *(1 + row * audio for row in range(config.n_q)))  # text row first
        self.table = nn.Parameter(torch.empty(first + text, config.dim), requires_grad=False)
        self.offsets: Tensor | None = None  # [K], on the device of the table

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [..., K], row 0 text -> [..., dim]: audio rows in order, then text."""
        if self.offsets is None:
            self.offsets = torch.tensor(self.starts, device=self.table.device)
        rows = torch.where(tokens < 0, ZERO_ROW, tokens + self.offsets)
        text, *audio = self.table[rows].unbind(-2)  # K of [..., dim]
        total = audio[0].clone()
        for row in (*audio[1:], text):  # bf16 rounds at every addition: the order matters
            total += row
        return total


class Temporal(nn.Module):
    """Transformer over frames: the tokens of one in, hidden state and text logits out.

    `window`: columns that a query sees, itself included. It is the capacity of the KV rings.
    """

    def __init__(self, config: Sizes, window: int) -> None:
        super().__init__()
        self.window = window
        self.embedding = Embedding(config)
        layers = [
            GatedLayer(config.dim, config.num_heads, config.hidden)
            for _ in range(config.num_layers)
        ]
        self.transformer = Transformer(layers, config.max_period)
        self.out_norm = RMSNorm(config.dim)
        self.text_linear = Linear(config.dim, config.text_card)
        self.fused: ModuleType | None = None  # the module of fused steps, where it can run

    def rings(self, slots: int, dtype: torch.dtype | None = None) -> Rings:
        """Empty KV memory for a number of slots; int8 if asked for, else as the weights."""
        return self.transformer.rings(slots, self.window, dtype)

    def embed(self, column: Tensor) -> Tensor:
        """One column of tokens [S, K] -> [S, dim]."""
        if self.fused:
            return self.fused.embedded(self.embedding, column)
        return self.embedding(column)

    def step(self, embedded: Tensor, rings: Rings, active: Active) -> Tensor:
        """One frame: embedded [S, dim] -> hidden [S, dim]."""
        if self.fused:
            hidden = self.fused.step(self, embedded, rings, active)
        else:
            x = self.transformer(embedded[:, None], RingPush(rings, active))  # [S, 1, dim]
            hidden = self.out_norm(x[:, 0])
        rings.advance(active, 1)
        return hidden

    def prefill(self, embedded: Tensor, rings: Rings, slot: int) -> Tensor:
        """Many frames of one slot at once: embedded [T, dim] -> hidden [T, dim]."""
        chunk = Chunk(rings, slot, embedded.shape[0])
        x = self.transformer(embedded[None], chunk)  # [1, T, dim]
        chunk.advance()
        return self.out_norm(x[0])

    def text_logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., dim] -> float32 [..., text_card]."""
        if self.fused:
            return self.fused.product(self.text_linear, hidden).float()
        return self.text_linear(hidden).float()

    def use_fused_kernels(self) -> None:
        """Take the fused kernels from now on, if the weights lie on a GPU that triton knows."""
        if self.embedding.table.is_cuda and importlib.util.find_spec("triton"):
            self.fused = importlib.import_module("engine.model.gpu.fused")


class LM(Temporal):
    """Temporal transformer and depformer of a checkpoint.

    Its window is the public reference's: one column less than the context.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__(config, config.context - 1)
        self.config = config
        self.depformer = Depformer(config)

    def depth(self, hidden: Tensor, text: Tensor, pick: Pick) -> Tensor:
        """The agent's codes of one frame [S, Q], as picked."""
        if self.fused:
            return self.fused.depth(self.depformer, hidden, text, pick)
        return self.depformer(hidden, text, pick)
