"""Picking an audio token of every slot in one Triton launch: sort, top-k, race, and what is told.

Ranks by a full sort of the vocabulary (2048 entries: one program a slot). Oracle: sampling.race.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 8


@triton.jit
def _order(bits):
    """Float bits as integers that sort like the floats; its own inverse."""
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _pick(
    logits, noise, temperature, width, told, out, card, l_stride, n_stride, t_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    value = tl.load(logits + slot * l_stride + i, mask=i < card, other=float("-inf"))
    key = _order(value.to(tl.float32).to(tl.int32, bitcast=True))
    # The later the index the smaller the key: of equals, the first wins.
    packed = (key.to(tl.int64) << 32) | (BLOCK - 1 - i).to(tl.int64)
    packed = tl.sort(packed, descending=True)
    index = BLOCK - 1 - (packed & 0xFFFFFFFF).to(tl.int32)
    ranked = _order((packed >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
    chance = tl.exp((ranked - tl.max(ranked, 0)) / tl.load(temperature + slot))
    kept = (i < tl.maximum(tl.load(width + slot), 1)) & (i < card)
    race = chance / tl.load(noise + slot * n_stride + i, mask=kept, other=1.0)
    winner = tl.argmax(tl.where(kept, race, -1.0), 0)
    picked = tl.sum(tl.where(i == winner, index, 0), 0).to(tl.int64)
    given = tl.load(told + slot * t_stride)
    tl.store(out + slot, tl.where(given < 0, picked, given))


def pick(logits: Tensor, noise: Tensor, temperature: Tensor, width: Tensor, told: Tensor) -> Tensor:
    """logits [S, V], noise [S, >= V] by rank, width [S] (0: greedy), told [S] -> [S]."""
    slots, card = logits.shape
    out = torch.empty(slots, dtype=torch.int64, device=logits.device)
    _pick[(slots,)](
        logits, noise, temperature, width, told, out, card,
        logits.stride(0), noise.stride(0), told.stride(0),
        BLOCK=triton.next_power_of_2(card), num_warps=WARPS,
    )  # fmt: skip
    return out
