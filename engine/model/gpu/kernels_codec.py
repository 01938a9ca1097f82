"""Triton kernels of the codec, in float32: one convolution for all of it, quantizer, upsampling.

`convolve` is a causal convolution over rows (slot, column) with what stands around it: the past
kept per slot, ELU before, GELU, scale and residual after. A product is the one of kernel 1; a
transposed one of two strides is the one of kernel 2 whose outputs are interleaved. The past is kept
twice, and a frame's number tells which half it reads: programs that still read are never overtaken
by those that write. Where a tile's inputs are split over programs, the last of them to arrive adds
the parts, always in the same order. Idle slots change nothing. The oracle is mimi.py.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.model.gpu.kernels import INTERPRETED, TILE_ROWS

PRECISION = "ieee" if INTERPRETED else "tf32x3"  # as exact as float32, on tensor cores
LONG_COLUMNS = 64  # outputs of a slot from which its rows fill larger tiles
LONG_ROWS = 512 if INTERPRETED else 64  # of such a tile; the interpreter pays by the program
MOST_PROGRAMS = 512  # into which the inputs of one row tile are split
MOST_TILES = 1 << 15
KEPT_BLOCK = 1024  # numbers of the past that are moved at once


@dataclass(frozen=True, slots=True)
class Filter:
    """A convolution's weights as the kernel reads them."""

    weight: Tensor  # [cout * shuffle, cin * kernel]
    bias: Tensor | None = None  # [cout]
    kernel: int = 1
    stride: int = 1
    past: int = 0  # columns before the first that it reads
    shuffle: int = 1  # outputs of a channel between two columns
    replicate: bool = False  # the first column ever stands for what was before it

    @property
    def inputs(self) -> int:
        return self.weight.shape[1] // self.kernel

    @property
    def outputs(self) -> int:
        return self.weight.shape[0] // self.shuffle


@dataclass(frozen=True, slots=True)
class Moment:
    """Which frame of every slot it is, and who takes part."""

    position: Tensor  # [S] int64, columns pushed before this frame
    pushed: int  # columns of a frame
    active: Tensor  # [S] bool


@triton.jit
def _elu(x):
    return tl.where(x > 0, x, tl.exp(tl.minimum(x, 0.0)) - 1.0)


@triton.jit
def _keep(
    x, past, position, active, slots, columns, cin, x_slot, x_channel, x_column,
    past_half, past_slot, PUSHED: tl.constexpr, PAST: tl.constexpr, ELU: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The last PAST columns of [past | x], for every active slot of this program."""
    for slot in range(tl.program_id(1), slots, tl.num_programs(1)):
        half = (tl.load(position + slot) // PUSHED) % 2
        mine, here = x + slot * x_slot, past + slot * past_slot
        numbers = tl.where(tl.load(active + slot) != 0, cin * PAST, 0)
        for first in range(0, numbers, BLOCK):
            i = first + tl.arange(0, BLOCK)
            inside = i < numbers
            channel, column = i // PAST, columns - PAST + i % PAST  # of x; below 0: the past's
            place = mine + channel * x_channel + column * x_column
            new = tl.load(place, mask=inside & (column >= 0), other=0.0)
            if ELU:
                new = _elu(new)
            place = here + half * past_half + channel * PAST + column + PAST
            old = tl.load(place, mask=inside & (column < 0), other=0.0)
            place = here + (1 - half) * past_half + i
            tl.store(place, tl.where(column < 0, old, new), mask=inside)


@triton.jit
def _inputs(
    source, before, at, column, channel, inside, x_column,
    PAST: tl.constexpr, REPLICATE: tl.constexpr, ELU: tl.constexpr,
):  # fmt: skip
    """A tile of what the filter reads: the frame's own columns, below 0 those of the past."""
    if REPLICATE:
        fresh = (at == 0)[:, None]
        seen = inside & (fresh | (column >= 0))
        a = tl.load(source + tl.maximum(column, 0) * x_column, mask=seen, other=0.0)
    else:
        seen = inside & (column >= 0)
        a = tl.load(source + column * x_column, mask=seen, other=0.0)
    if ELU:
        a = _elu(a)
    if PAST > 0:
        old = tl.load(
            before[:, None] + (channel * PAST)[None, :] + column + PAST,
            mask=inside & (column < 0), other=0.0,
        )  # fmt: skip
        a = tl.where(inside & (column < 0) & (seen == 0), old, a)
    return a


@triton.jit
def _finish(
    total, bias, scale, residual, out, slot, column, channel, both, n_in,
    o_slot, o_channel, o_column, r_slot, r_channel, r_column,
    GELU: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """What stands behind the sums of a tile; then it is written."""
    if BIAS:
        total += tl.load(bias + channel, mask=n_in, other=0.0)[None, :]
    if GELU:
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    if SCALE:
        total *= tl.load(scale + channel, mask=n_in, other=0.0)[None, :]
    if RESIDUAL:
        added = residual + (slot * r_slot)[:, None] + (channel * r_channel)[None, :]
        total += tl.load(added + column * r_column, mask=both, other=0.0)
    place = out + (slot * o_slot)[:, None] + (channel * o_channel)[None, :]
    tl.store(place + column * o_column, total, mask=both)


@triton.jit(do_not_specialize=["slots"])
def _convolve(
    x, past, weight, bias, scale, residual, out, position, active, parts, arrived,
    slots, columns, outputs, cin, cout,
    x_slot, x_channel, x_column, o_slot, o_channel, o_column, r_slot, r_channel, r_column,
    past_half, past_slot,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PAST: tl.constexpr, SHUFFLE: tl.constexpr,
    PUSHED: tl.constexpr, REPLICATE: tl.constexpr, ELU: tl.constexpr, GELU: tl.constexpr,
    BIAS: tl.constexpr, SCALE: tl.constexpr, RESIDUAL: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """A tile of rows (slot, column) and outputs (channel, place between two columns)."""
    if PAST > 0:  # noqa: SIM102 (the first is decided when compiling)
        if tl.program_id(0) == tl.num_programs(0) - 1:
            if tl.program_id(2) == 0:
                _keep(x, past, position, active, slots, columns, cin, x_slot, x_channel, x_column,
                      past_half, past_slot, PUSHED, PAST, ELU, BLOCK)  # fmt: skip
            return
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    row_in, n_in = row < slots * outputs, n < cout * SHUFFLE
    slot, t = row // outputs, row % outputs
    mine, k_all = x + slot * x_slot, cin * KERNEL
    at = tl.load(position + slot, mask=row_in, other=0)
    before = past + ((at // PUSHED) % 2) * past_half + slot * past_slot
    total = tl.zeros((BM, BN), tl.float32)
    each = tl.cdiv(tl.cdiv(k_all, BK), SPLITS) * BK
    for first in range(
        tl.program_id(2) * each, tl.minimum((tl.program_id(2) + 1) * each, k_all), BK
    ):
        k = first + tl.arange(0, BK)
        k_in = k < k_all
        channel = k // KERNEL
        column = (t * STRIDE)[:, None] + (k % KERNEL - PAST)[None, :]
        inside = row_in[:, None] & k_in[None, :]
        source = mine[:, None] + channel[None, :] * x_channel
        a = _inputs(source, before, at, column, channel, inside, x_column, PAST, REPLICATE, ELU)
        b = tl.load(
            weight + n[None, :] * k_all + k[:, None],
            mask=k_in[:, None] & n_in[None, :], other=0.0,
        )  # fmt: skip
        total = tl.dot(a, b, total, input_precision=PRECISION)
    both = row_in[:, None] & n_in[None, :]
    if SPLITS > 1:
        here = parts + row[:, None] * (cout * SHUFFLE) + n[None, :]
        part = slots * outputs * cout * SHUFFLE
        tl.store(here + tl.program_id(2) * part, total, mask=both)
        tl.debug_barrier()  # all of this program's numbers, before it says that they are there
        counter = arrived + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(counter, 1, sem="acq_rel") != SPLITS - 1:
            return
        tl.store(counter, 0)  # for the next launch
        total = tl.zeros((BM, BN), tl.float32)
        for split in tl.static_range(SPLITS):  # in this order, not in that of arrival
            total += tl.load(here + split * part, mask=both, other=0.0, cache_modifier=".cg")
    column = (t * SHUFFLE)[:, None] + (n % SHUFFLE)[None, :]
    _finish(
        total, bias, scale, residual, out, slot, column, n // SHUFFLE, both, n_in,
        o_slot, o_channel, o_column, r_slot, r_channel, r_column, GELU, BIAS, SCALE, RESIDUAL,
    )  # fmt: skip


@cache
def counters(device: torch.device) -> Tensor:
    """How many programs of a tile have arrived: zeros between two launches."""
    return torch.zeros(MOST_TILES, dtype=torch.int32, device=device)


def tile(outputs: int, n: int, k: int) -> dict[str, int]:
    """How a convolution is cut: by its own sizes, never by the number of slots.

    From a sweep over the codec's layers on an H100 for 1 and 16 slots (2026-11-24).
    """
    bm, bn = LONG_ROWS // 2, 32 if n > 16 else 16
    if outputs < LONG_COLUMNS:
        bm, wanted, most = TILE_ROWS, min(k // 64, MOST_PROGRAMS * bn // n), 16
    elif k <= 192:
        bm, wanted, most = LONG_ROWS if k >= 32 and n > 16 else bm, k // 96, 2
    else:
        bn, wanted, most = 64 if n == 128 and outputs > 96 else bn, k // 96, 4
    splits = max(1, min(most, 1 << wanted.bit_length() >> 1))  # a power of two
    return {"BM": bm, "BN": bn, "splits": splits, "BK": 32, "num_warps": 4, "num_stages": 3}


def convolve(
    x: Tensor,
    by: Filter,
    now: Moment,
    past: Tensor | None = None,
    *,
    elu: bool = False,
    gelu: bool = False,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    rows: bool = False,
) -> Tensor:
    """x [S, Cin, T] in any layout, past [2, S, Cin, P] -> [S, Cout, T / stride * shuffle].

    residual: added, of the result's shape. rows: the result lies in memory as [S, T, Cout].
    """
    slots, cin, columns = x.shape
    outputs, cout = columns // by.stride, by.outputs
    shape = (slots, outputs * by.shuffle, cout) if rows else (slots, cout, outputs * by.shuffle)
    out = torch.empty(shape, dtype=torch.float32, device=x.device)
    out = out.transpose(1, 2) if rows else out
    cut = tile(outputs, cout * by.shuffle, cin * by.kernel)
    blocks = triton.cdiv(cout * by.shuffle, cut["BN"])
    other = out if residual is None else residual
    pasts = (0, 0) if past is None else past.stride()[:2]
    splits, tiles = cut.pop("splits"), triton.cdiv(slots * outputs, cut["BM"])
    if splits > 1:
        parts = torch.empty(splits, *shape, dtype=torch.float32, device=x.device)
    assert splits == 1 or (blocks + 1) * tiles <= MOST_TILES, "too few counters"
    _convolve[(blocks + (by.past > 0), tiles, splits)](
        x, x if past is None else past, by.weight, by.weight if by.bias is None else by.bias,
        by.weight if scale is None else scale, other, out, now.position, now.active,
        parts if splits > 1 else out, counters(x.device), slots, columns, outputs,
        cin, cout, *x.stride(), *out.stride(), *other.stride(), *pasts,
        KERNEL=by.kernel, STRIDE=by.stride, PAST=by.past, SHUFFLE=by.shuffle, PUSHED=now.pushed,
        REPLICATE=by.replicate, ELU=elu, GELU=gelu,
        BIAS=by.bias is not None, SCALE=scale is not None, RESIDUAL=residual is not None,
        BLOCK=KEPT_BLOCK, PRECISION=PRECISION, SPLITS=splits, **cut,
    )  # fmt: skip
    return out


# -- quantizer and upsampling ----------------------------------------------------------------------
#
# A level of the quantizer is one launch: every program settles the former level's code for itself,
# takes its entry off what is left, and compares that with some entries of its own.

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
    """Residual quantization: latent [S, D], tables [L, bins, D] into codes [S, L]; ties: first."""
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
        _nearest[(1 if last else blocks, triton.cdiv(slots, TILE_ROWS))](
            source, value[(level + 1) % 2], index[(level + 1) % 2], tables[max(0, level - 1)],
            rest[1 + (level + 1) % 2], codes, level, tables[min(level, levels - 1)],
            half_norms[min(level, levels - 1)], value[level % 2], index[level % 2],
            slots, dim, bins, blocks, codes.stride(0),
            FIRST=first, LAST=last, BM=TILE_ROWS, BN=ENTRIES,
            BD=min(64, triton.next_power_of_2(dim)), BB=triton.next_power_of_2(blocks),
            PRECISION=PRECISION, num_warps=4,
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
