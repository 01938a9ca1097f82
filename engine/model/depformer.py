"""The small transformer over the codebooks of one frame: step k predicts the agent's row k.

Only the agent's steps exist here (the user's rows are always given, and later steps cannot change
earlier ones). It starts empty on every frame, so it has no state; attention is plainly causal.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.model.attention import attend_few
from engine.model.config import LMConfig
from engine.model.linear import Linear
from engine.model.transformer import Gating, RMSNorm

Pick = Callable[[int, Tensor], Tensor]  # (step, logits [S, card] float32) -> tokens [S]


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


class Depformer(nn.Module):
    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        dim, steps = config.depformer_dim, config.codebooks
        self.input = Linear(config.dim, steps * dim)  # depformer_in of all steps in one product
        self.text_emb = nn.Embedding(config.text_card + 1, dim)
        self.emb = nn.ModuleList(nn.Embedding(config.card + 1, dim) for _ in range(steps - 1))
        self.layers = nn.ModuleList(DepthLayer(config) for _ in range(config.depformer_num_layers))
        self.linears = nn.ModuleList(Linear(dim, config.card) for _ in range(steps))

    def forward(self, hidden: Tensor, text: Tensor, pick: Pick) -> Tensor:
        """hidden [S, dim] of the temporal transformer, text [S] -> codes [S, Q], as picked.

        `pick` decides each step; what it returns is what the next step is told.
        """
        steps, heads = self.config.codebooks, self.config.depformer_num_heads
        inputs = self.input(hidden).unflatten(-1, (steps, -1))  # [S, Q, dim]
        slots, depth_dim = hidden.shape[0], inputs.shape[-1]
        shape = (len(self.layers), 2, slots, heads, steps, depth_dim // heads)
        kv = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
        said, codes = self.text_emb(text), []
        for step in range(steps):
            x = inputs[:, step] + said  # [S, dim]
            for layer, columns in zip(self.layers, kv, strict=True):
                x = layer(x, step, columns)
            codes.append(pick(step, self.linears[step](x).float()))
            if step + 1 < steps:
                said = self.emb[step](codes[-1])
        return torch.stack(codes, 1)
