"""Picking a token of every slot in one Triton launch: top-k, race, and what is told.

One program a slot. Audio's vocabulary (2048 entries) is ranked by a full sort; text's (32 000) is
first cut to what can win: the width-th largest logit is found by halving the range of the keys.
Oracle: sampling.race.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.config import PAD

WARPS, TEXT_WARPS = 8, 32
KEY_BITS, COUNT_BITS = 32, 20  # of a logit's key, and room for a count of entries


@triton.jit
def _order(bits):
    """Float bits as integers that sort like the floats; its own inverse."""
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _key(value, inside):
    """A logit's place in the ranking: where nothing is, below every number and every NaN."""
    return tl.where(inside, _order(value.to(tl.int32, bitcast=True)), -(2**31))


@triton.jit
def _race(packed, temperature, most, noise, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """packed [WIDTH], keys and below them BLOCK - 1 - index -> the index that wins of `most`."""
    i = tl.arange(0, WIDTH)
    packed = tl.sort(packed, descending=True)
    index = BLOCK - 1 - (packed & 0xFFFFFFFF).to(tl.int32)
    ranked = _order((packed >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
    kept = i < most
    chance = tl.exp((ranked - tl.max(tl.where(kept, ranked, float("-inf")), 0)) / temperature)
    race = chance / tl.load(noise + i, mask=kept, other=1.0)
    race = tl.where(race >= 0, race, 0.0)  # NaN has no chance; if all are, the first in rank wins
    winner = tl.argmax(tl.where(kept, race, -1.0), 0)
    return tl.sum(tl.where(i == winner, index, 0), 0).to(tl.int64)


@triton.jit
def _pick(
    logits, noise, temperature, width, told, out, card, l_stride, n_stride, t_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    value = tl.load(logits + slot * l_stride + i, mask=i < card, other=float("-inf"))
    key = _key(value.to(tl.float32), i < card)
    # The later the index the smaller the key: of equals, the first wins.
    packed = (key.to(tl.int64) << 32) | (BLOCK - 1 - i).to(tl.int64)
    most = tl.maximum(tl.load(width + slot), 1)
    noises = noise + slot * n_stride
    heat, most = tl.load(temperature + slot), tl.minimum(most, card)
    picked = _race(packed, heat, most, noises, BLOCK, BLOCK)
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


@triton.jit
def _pick_text(
    logits, noise, temperature, width, bias, kept, out, card, pad, l_stride, n_stride, b_stride,
    BITS: tl.constexpr, COUNT_BITS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    value = tl.load(logits + slot * l_stride + i, mask=i < card, other=float("-inf"))
    value += tl.where(i == pad, tl.load(bias + slot * b_stride), 0.0)
    key = _key(value, i < card)
    most = tl.minimum(tl.maximum(tl.load(width + slot), 1), WIDTH).to(tl.int32)
    low = tl.full((), -(2**31), tl.int64)  # becomes the largest key that `most` entries reach
    for turn in tl.static_range(BITS // 2):  # two bits a turn: three counts in one number
        step = 1 << (BITS - 2 - 2 * turn)
        counts = tl.zeros((BLOCK,), tl.int64)
        for part in tl.static_range(3):
            reached = key >= (low + (part + 1) * step).to(tl.int32)
            counts += reached.to(tl.int64) << (COUNT_BITS * part)
        count = tl.sum(counts, 0)
        for _ in tl.static_range(3):  # counts fall: each that still suffices is a step up
            low += tl.where((count & ((1 << COUNT_BITS) - 1)) >= most, step, 0)
            count = count >> COUNT_BITS
    above, equal = key > low.to(tl.int32), key == low.to(tl.int32)
    # Both counted in one number: there are less than `most` above.
    so_far = tl.cumsum(above.to(tl.int32) + equal.to(tl.int32) * (2 * WIDTH), 0)
    whole = tl.sum(above.to(tl.int32), 0)
    place = tl.where(above, so_far % (2 * WIDTH), whole + so_far // (2 * WIDTH)) - 1
    packed = (key.to(tl.int64) << 32) | (BLOCK - 1 - i).to(tl.int64)
    wins = (above | equal) & (place < most)
    tl.store(kept + slot * WIDTH + place, packed, mask=wins)
    tl.debug_barrier()  # what one thread has stored another reads
    j = tl.arange(0, WIDTH)
    finalists = tl.load(kept + slot * WIDTH + j, mask=j < most, other=-(2**63))
    heat, noises = tl.load(temperature + slot), noise + slot * n_stride
    tl.store(out + slot, _race(finalists, heat, most, noises, WIDTH, BLOCK))


def pick_text(
    logits: Tensor, noise: Tensor, temperature: Tensor, width: Tensor, bias: Tensor, most: int
) -> Tensor:
    """logits [S, V] float32, noise [S, >= most] by rank, width [S] up to `most` (0: greedy) -> [S].

    bias [S] is added to the logit of PAD.
    """
    slots, card = logits.shape
    out = torch.empty(slots, dtype=torch.int64, device=logits.device)
    kept = torch.empty(slots, most, dtype=torch.int64, device=logits.device)
    _pick_text[(slots,)](
        logits, noise, temperature, width, bias, kept, out, card, PAD,
        logits.stride(0), noise.stride(0), bias.stride(0),
        BITS=KEY_BITS, COUNT_BITS=COUNT_BITS, WIDTH=most, BLOCK=triton.next_power_of_2(card),
        num_warps=TEXT_WARPS,
    )  # fmt: skip
    return out
