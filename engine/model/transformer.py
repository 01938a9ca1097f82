"""Transformer stacks: the gated RMSNorm one of the language models, the LayerNorm one of the codec.

A stack knows its weights only. What it attends to, and for whom, comes with each call as a `Step`
or a `Chunk` (attention.py).
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.attention import Rings, Rotation
from engine.model.linear import Linear

RMS_EPS = 1e-8


class Attends(Protocol):
    """A push to KV rings, as the layers see it."""

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv [S, T, 3, H, D] -> [S, T, H * D]."""


class RMSNorm(nn.Module):
    """Root-mean-square norm with float32 inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(dim), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        exact, alpha = x.float(), self.alpha.float()
        if x.is_cuda:  # one kernel there; on a CPU it is many small ones
            return F.rms_norm(exact, alpha.shape, alpha, RMS_EPS).to(x.dtype)
        norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)  # [..., 1]
        scale = norm.square_().mul_(1 / alpha.numel()).add_(RMS_EPS).rsqrt_()
        return (exact * scale).mul_(alpha).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)

    def forward(self, x: Tensor, push: Attends, layer: int) -> Tensor:
        qkv = self.in_proj(x).unflatten(-1, (3, self.heads, -1))  # [S, T, 3, H, D]
        return self.out_proj(push.attend(layer, qkv))  # [S, T, dim]


class Gating(nn.Module):
    """silu(g) * u between two products."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_in = Linear(dim, 2 * hidden)
        self.linear_out = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.linear_in(x).chunk(2, -1)  # [..., hidden] each
        return self.linear_out(F.silu(gate).mul_(up))


class GatedLayer(nn.Module):
    """A layer of the temporal transformer (and of the recogniser)."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.self_attn = Attention(dim, heads)
        self.gating = Gating(dim, hidden)

    def forward(self, x: Tensor, push: Attends, layer: int) -> Tensor:
        x = x + self.self_attn(self.norm1(x), push, layer)
        return x + self.gating(self.norm2(x))


class CodecLayer(nn.Module):
    """A layer of the codec's transformers."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn = Attention(dim, heads)
        self.linear1, self.linear2 = Linear(dim, hidden), Linear(hidden, dim)
        self.layer_scale_1 = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.layer_scale_2 = nn.Parameter(torch.empty(dim), requires_grad=False)

    def forward(self, x: Tensor, push: Attends, layer: int) -> Tensor:
        heard = self.self_attn(self.norm1(x), push, layer)
        if x.is_cuda:  # one launch each, where launches cost
            x = torch.addcmul(x, heard, self.layer_scale_1)
            thought = self.linear2(F.gelu(self.linear1(self.norm2(x))))
            return torch.addcmul(x, thought, self.layer_scale_2)
        x = x + heard * self.layer_scale_1
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x)))) * self.layer_scale_2


class Transformer(nn.Module):
    """A stack of layers; `rings` makes the memory it needs for a number of slots."""

    def __init__(self, layers: list[nn.Module], max_period: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.max_period = max_period

    def forward(self, x: Tensor, push: Attends) -> Tensor:
        """x [S, T, dim] -> [S, T, dim]."""
        for index, layer in enumerate(self.layers):
            x = layer(x, push, index)
        return x

    def rings(self, slots: int, capacity: int, dtype: torch.dtype | None = None) -> Rings:
        """Empty KV rings on the device, in the dtype of the norms unless another is asked for."""
        first = self.layers[0]
        sample, heads = next(first.norm1.parameters()), first.self_attn.heads
        rotation = Rotation(sample.shape[0] // heads, self.max_period, sample.device)
        return Rings(len(self.layers), slots, heads, rotation, capacity, dtype or sample.dtype)
