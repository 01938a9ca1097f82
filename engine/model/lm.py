"""The language models: tokens of a frame in, the next text token and the agent's codes out.

`Temporal` is the large transformer over frames, `Depformer` the small one over the codebooks of
one frame, `LM` is both. Weights and one step only: loop.py decides which tokens go in and what
becomes of those that come out. The recogniser (stt.py) is a `Temporal` too.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from engine.model.config import LMConfig, SttConfig
from engine.model.transformer import (
    Active,
    Chunk,
    GatedLayer,
    Gating,
    Linear,
    RingPush,
    Rings,
    RMSNorm,
    Transformer,
    attend_few,
)

ZERO_ROW = 0  # of the embedding table: what token -1 stands for
Pick = Callable[[int, Tensor], Tensor]  # (step, logits [S, card] float32) -> tokens [S]


# -- temporal transformer --------------------------------------------------------------------------


class Embedding(nn.Module):
    """The tables of all rows in one, behind a row of zeros."""

    def __init__(self, config: LMConfig | SttConfig) -> None:
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
    """Transformer over frames. `window`: columns that a query sees, and the rings' capacity."""

    def __init__(self, config: LMConfig | SttConfig, window: int) -> None:
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
        self.fused: ModuleType | None = None  # the module of fused steps, on a GPU

    def rings(self, slots: int, dtype: torch.dtype | None = None) -> Rings:
        """Empty KV memory for a number of slots; int8 if asked for, else as the weights."""
        return self.transformer.rings(slots, self.window, dtype)

    def embed(self, column: Tensor) -> Tensor:
        """One column of tokens [S, K] -> [S, dim]."""
        if self.fused:
            return self.fused.embed_column(self.embedding, column)
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
        """Take the fused kernels from now on, if the weights lie on a GPU."""
        if self.embedding.table.is_cuda:
            from engine.model.gpu import fused  # triton, which every PyTorch for a GPU brings

            self.fused = fused


# -- depformer -------------------------------------------------------------------------------------
#
# Step k predicts the agent's row k. Only the agent's steps exist: the user's rows are always given,
# and later steps cannot change earlier ones. It starts empty on every frame, so it has no state.


class DepthLayer(nn.Module):
    """One layer: norms shared by all steps, every product of its own for each step."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        dim, steps = config.depformer_dim, range(config.codebooks)
        self.heads = config.depformer_num_heads
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.in_proj = nn.ModuleList(Linear(dim, 3 * dim) for _ in steps)
        self.out_proj = nn.ModuleList(Linear(dim, dim) for _ in steps)
        self.gating = nn.ModuleList(Gating(dim, config.depth_hidden) for _ in steps)
        products = zip(self.in_proj, self.out_proj, self.gating, strict=True)
        self._of_step = tuple(products)  # a ModuleList is slow to index

    def forward(self, x: Tensor, step: int, kv: Tensor) -> Tensor:
        """x [S, dim]; kv [2, S, H, Q, D] holds the columns of the steps before."""
        in_proj, out_proj, gating = self._of_step[step]
        qkv = in_proj(self.norm1(x)).unflatten(-1, (3, self.heads, -1))  # [S, 3, H, D]
        kv.select(3, step).copy_(qkv[:, 1:].transpose(0, 1))
        keys, values = kv[:, :, :, : step + 1]  # [S, H, step + 1, D] each
        x = x + out_proj(attend_few(qkv[:, 0], keys, values).flatten(1))
        return x + gating(self.norm2(x))


def empty_embedding(count: int, dim: int) -> nn.Embedding:
    """An embedding that is filled when the weights are read.

    `nn.Embedding` draws random numbers first. On the meta device that loads PyTorch's compiler,
    which takes two seconds of every start.
    """
    return nn.Embedding.from_pretrained(torch.empty(count, dim))


class Depformer(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        dim, steps = config.depformer_dim, config.codebooks
        self.steps = steps
        self.input = Linear(config.dim, steps * dim)  # depformer_in of all steps in one product
        self.text_emb = empty_embedding(config.text_card + 1, dim)
        self.emb = nn.ModuleList(empty_embedding(config.card + 1, dim) for _ in range(steps - 1))
        self.layers = nn.ModuleList(DepthLayer(config) for _ in range(config.depformer_num_layers))
        self.linears = nn.ModuleList(Linear(dim, config.card) for _ in range(steps))

    def forward(self, hidden: Tensor, text: Tensor, pick: Pick) -> Tensor:
        """hidden [S, dim], text [S] -> codes [S, Q]; a step reads what the former's `pick` gave."""
        steps, heads = self.steps, self.layers[0].heads
        inputs = self.input(hidden).unflatten(-1, (steps, -1))  # [S, Q, dim]
        slots, depth_dim = hidden.shape[0], inputs.shape[-1]
        shape = (len(self.layers), 2, slots, heads, steps, depth_dim // heads)
        kv = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
        previous, codes = self.text_emb(text), []
        for step in range(steps):
            x = inputs[:, step] + previous  # [S, dim]
            for layer, columns in zip(self.layers, kv, strict=True):
                x = layer(x, step, columns)
            codes.append(pick(step, self.linears[step](x).float()))
            if step + 1 < steps:
                previous = self.emb[step](codes[-1])
        return torch.stack(codes, 1)


class LM(Temporal):
    """Temporal transformer (its window is the reference's: context - 1) and depformer."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__(config, config.context - 1)
        self.config = config
        self.depformer = Depformer(config)

    def depth(self, hidden: Tensor, text: Tensor, pick: Pick) -> Tensor:
        """The agent's codes of one frame [S, Q], as picked."""
        if self.fused:
            return self.fused.depth(self.depformer, hidden, text, pick)
        return self.depformer(hidden, text, pick)
