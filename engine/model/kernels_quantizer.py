"""The codec between its transformers in Triton, in float32: quantizer and upsampling.

A level is one launch: every program settles the former level's code for itself, takes its entry
off what is left, and compares that with some entries of its own. Oracles: quantizer.py, conv.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.model.kernels_conv import PRECISION
from engine.model.tiles import ROWS

ENTRIES = 32  # of a codebook that one program compares


@triton.jit(do_not_specialize=["slots", "level"])
def _nearest(
    rest, value, index, former, rest_out, codes, level, table, half_norm, value_out, index_out,
    slots, dim, bins, blocks, codes_stride,
    FIRST: tl.constexpr, LAST: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr, BB: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One level: settle the former level's code, then compare what is left with some entries.

    FIRST: there is no former level. LAST: there is nothing left to compare.
    """
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row_in, n_in = row < slots, n < bins
    if not FIRST:
        j = tl.arange(0, BB)
        seen = row_in[:, None] & (j < blocks)[None, :]
        best = tl.load(value + row[:, None] * blocks + j[None, :], mask=seen, other=float("inf"))
        which = tl.argmin(best, 1)
        found = tl.load(index + row * blocks + which, mask=row_in, other=0)
        if tl.program_id(0) == 0:
            tl.store(codes + row * codes_stride + level - 1, found.to(tl.int64), mask=row_in)
    if not LAST:
        total = tl.zeros((BM, BN), tl.float32)
        for first in range(0, dim, BD):
            d = first + tl.arange(0, BD)
            both = row_in[:, None] & (d < dim)[None, :]
            left = tl.load(rest + row[:, None] * dim + d[None, :], mask=both, other=0.0)
            if not FIRST:
                entry = former + found[:, None] * dim + d[None, :]
                left = left - tl.load(entry, mask=both, other=0.0)
                if tl.program_id(0) == 0:
                    tl.store(rest_out + row[:, None] * dim + d[None, :], left, mask=both)
            entries = tl.load(
                table + n[None, :] * dim + d[:, None],
                mask=n_in[None, :] & (d < dim)[:, None], other=0.0,
            )  # fmt: skip
            total = tl.dot(left, entries, total, input_precision=PRECISION)
        far = tl.load(half_norm + n, mask=n_in, other=float("inf"))[None, :] - total
        far = tl.where(n_in[None, :], far, float("inf"))
        place = row * tl.num_programs(0) + tl.program_id(0)
        tl.store(value_out + place, tl.min(far, 1), mask=row_in)
        tl.store(index_out + place, tl.program_id(0) * BN + tl.argmin(far, 1), mask=row_in)


@triton.jit
def _sum_entries(codes, tables, out, dim, bins, codes_stride, LEVELS: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    """The entries of one slot's codes, added level by level."""
    slot = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for level in tl.static_range(LEVELS):
        code = tl.load(codes + slot * codes_stride + level)
        total += tl.load(tables + (level * bins + code) * dim + d, mask=d < dim, other=0.0)
    tl.store(out + slot * dim + d, total, mask=d < dim)


def nearest(latent: Tensor, tables: Tensor, half_norms: Tensor, codes: Tensor) -> None:
    """Residual quantization: latent [S, D], tables [L, bins, D], into codes [S, L] int64.

    The first of equally near entries, as argmin takes it.
    """
    slots, dim = latent.shape
    levels, bins = codes.shape[1], tables.shape[1]
    blocks = triton.cdiv(bins, ENTRIES)
    value = latent.new_empty(2, slots, blocks)
    index = torch.empty(2, slots, blocks, dtype=torch.int32, device=latent.device)
    rest = [latent, torch.empty_like(latent), torch.empty_like(latent)]
    for level in range(levels + 1):
        first, last = level == 0, level == levels
        # What a level reads no other program of it writes: two buffers take turns.
        source = rest[0] if level < 2 else rest[1 + level % 2]
        _nearest[(1 if last else blocks, triton.cdiv(slots, ROWS))](
            source, value[(level + 1) % 2], index[(level + 1) % 2], tables[max(0, level - 1)],
            rest[1 + (level + 1) % 2], codes, level, tables[min(level, levels - 1)],
            half_norms[min(level, levels - 1)], value[level % 2], index[level % 2],
            slots, dim, bins, blocks, codes.stride(0),
            FIRST=first, LAST=last, BM=ROWS, BN=ENTRIES, BD=min(64, triton.next_power_of_2(dim)),
            BB=triton.next_power_of_2(blocks), PRECISION=PRECISION, num_warps=4,
        )  # fmt: skip


def sum_entries(codes: Tensor, tables: Tensor) -> Tensor:
    """codes [S, L] of tables [>= L, bins, D] -> the sum of their entries [S, D]."""
    assert codes.stride(-1) == 1, "the codes of a slot lie side by side"
    slots, levels = codes.shape
    _, bins, dim = tables.shape
    out = torch.empty(slots, dim, dtype=torch.float32, device=codes.device)
    _sum_entries[(slots,)](
        codes, tables, out, dim, bins, codes.stride(0),
        LEVELS=levels, BLOCK=triton.next_power_of_2(dim), num_warps=2,
    )  # fmt: skip
    return out


@triton.jit
def _upsample(x, before, weight, out, active, channels, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    slot = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    now = tl.load(x + slot * channels + c, mask=inside, other=0.0)
    then = tl.load(before + slot * channels + c, mask=inside, other=0.0)
    for place in tl.static_range(STRIDE):
        fresh = tl.load(weight + c * 2 * STRIDE + place, mask=inside, other=0.0)
        late = tl.load(weight + c * 2 * STRIDE + STRIDE + place, mask=inside, other=0.0)
        at = out + (slot * channels + c) * STRIDE + place
        tl.store(at, now * fresh + then * late, mask=inside)
    kept = tl.where(tl.load(active + slot) != 0, now, then)
    tl.store(before + slot * channels + c, kept, mask=inside)


def upsample(x: Tensor, before: Tensor, weight: Tensor, active: Tensor) -> Tensor:
    """The depthwise transposed convolution of one column: x, before [S, C] -> [S, C, stride].

    weight [C, 1, 2 * stride]; `before` becomes x for the active slots.
    """
    slots, channels = x.shape
    stride = weight.shape[-1] // 2
    out = torch.empty(slots, channels, stride, dtype=torch.float32, device=x.device)
    block = min(256, triton.next_power_of_2(channels))
    _upsample[(slots, triton.cdiv(channels, block))](
        x, before, weight, out, active, channels, STRIDE=stride, BLOCK=block, num_warps=2
    )
    return out
