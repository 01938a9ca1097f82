"""int8: weights scaled per output channel, keys and values per head and column.

Activations keep their precision (W8A16). `w8a16` is an operator of its own, so that every
path, compiled or not, meets the same function: Triton on a GPU, plain sums on a CPU.
"""

import torch
from torch import Tensor

MOST = 127  # steps on either side of zero
TINY_SCALE = 6e-8  # smallest float16: keeps zeros from dividing by zero


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> (int8 [N, K], scale [N] float32); weight = int8 * scale, rounded."""
    exact = weight.float()
    scale = (exact.abs().amax(1) / MOST).clamp(min=TINY_SCALE)
    steps = torch.round(exact / scale[:, None]).clamp(-MOST, MOST)
    return steps.to(torch.int8), scale


def quantise_columns(kv: Tensor) -> tuple[Tensor, Tensor]:
    """kv [..., D] -> (int8 [..., D], scale [...] float16)."""
    exact = kv.float()
    scale = (exact.abs().amax(-1) / MOST).clamp(min=TINY_SCALE).half()
    steps = torch.floor(exact / scale.float()[..., None] + 0.5)
    return steps.clamp(-MOST, MOST).to(torch.int8), scale


def exact_columns(kv: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What `quantise_columns` kept, as numbers again [..., D]."""
    return (kv.float() * scale.float()[..., None]).to(dtype)


@torch.library.custom_op("personaplex::w8a16", mutates_args=())
def w8a16(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [..., K] times int8 weight [N, K] transposed, times scale [N] -> [..., N]."""
    rows = x.reshape(-1, x.shape[-1])
    if x.is_cuda:
        from engine.model.kernels import matmul  # triton: only where there is a GPU

        out = matmul(rows.contiguous(), weight, scale)
    else:
        # Row by row: how many rows there are must not change the order of any sum.
        exact = weight.float()
        out = torch.stack([torch.mv(exact, row) for row in rows.float()]) * scale
    return out.to(x.dtype).view(*x.shape[:-1], -1)


@w8a16.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
