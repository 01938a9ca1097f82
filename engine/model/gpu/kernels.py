"""Triton kernels of one frame's work: products of few rows, residual and norm, embeddings, picks.

Written for memory-bound work on sm_86 and sm_90: every weight is read once, in tiles of 16 rows, so
1 and 16 slots cost the same. More rows take taller tiles that add in the same order: a row's bits
depend on no other row and on no number of rows. Sums are split and joined in a fixed order, never
by atomics. The plain modules (transformer.py, lm.py) are their oracles. Under
Triton's interpreter products are computed in float32, because its bf16 dot is wrong.
"""

import os
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.config import PAD
from engine.model.transformer import TILE_ROWS


@dataclass(frozen=True, slots=True)
class Tile:
    bn: int  # outputs of one program
    bk: int  # inputs of one turn of its loop
    splits: int = 1  # programs that share the inputs of an output
    warps: int = 4
    stages: int = 4
    bm: int = TILE_ROWS  # rows


# For 17 to 32 rows, 33 to 64, and more, by whether weights are int8: the fastest of a sweep on an
# H100 (2026-11-27) whose bits are those of 16 rows. Beside int8 weights a tile of 64 rows must not
# have 4 warps: that is another instruction there, which adds in another order.
_WIDE = Tile(64, 64, stages=3, bm=64)
_TALL = Tile(64, 128, warps=2, stages=3, bm=64)
_SPLIT = (Tile(64, 128, warps=2, stages=3, bm=32), Tile(64, 128, stages=3, bm=64), _WIDE)
TILES_FOR_MANY = {
    (False, "plain"): (Tile(32, 128, stages=3, bm=32), Tile(32, 128, stages=3, bm=64), _WIDE),
    (False, "gated"): (Tile(32, 128, stages=3, bm=32), Tile(32, 64, stages=3, bm=64), _WIDE),
    (False, "split"): _SPLIT,
    (False, "deep"): _SPLIT,
    (True, "plain"): (Tile(32, 128, stages=3, bm=32), *[Tile(64, 128, stages=3, bm=32)] * 2),
    (True, "gated"): tuple(Tile(64, 128, warps=w, stages=3, bm=32) for w in (2, 4, 2)),
    (True, "split"): (
        Tile(32, 128, warps=2, stages=3, bm=32),
        _TALL,
        Tile(128, 128, stages=3, bm=32),
    ),
    (True, "deep"): (
        Tile(64, 128, stages=3, bm=32),
        _TALL,
        Tile(128, 128, warps=2, stages=3, bm=32),
    ),
}


def tile_for(n: int, k: int, rows: int, item_bytes: int, gated: bool, partial: bool) -> Tile:
    """The tile for n outputs of k inputs; only a `partial` product may be split.

    A table, because autotuning needs a driver and its answers do not repeat. Every tile fits the
    99 KiB of shared memory that a program may have on sm_86. Of the sweep on an H200 (2026-11-23,
    engine/tools/tiles.py) it takes the fastest, or one within 3 % of it that suits several shapes.
    """
    few = _tile_for_few(n, k, item_bytes, gated, partial)
    if rows <= TILE_ROWS:
        return few
    if k <= 1024 or n < 64 or item_bytes == 4:
        return replace(few, bm=2 * TILE_ROWS)
    kind = "gated" if gated else "deep" if partial and k > 4096 else "split" if partial else "plain"
    size = 0 if rows <= 32 else 1 if rows <= 64 else 2
    return replace(TILES_FOR_MANY[item_bytes == 1, kind][size], splits=few.splits)


def _tile_for_few(n: int, k: int, item_bytes: int, gated: bool, partial: bool) -> Tile:
    """Up to 16 rows."""
    int8 = item_bytes == 1
    if k < 256 or n < 64 or item_bytes == 4:
        return Tile(16, 32, 2 if partial else 1)
    if partial:  # few outputs: programs share the inputs, so that all of the device reads
        if k % 1024:
            return Tile(16, 128, 2)
        return Tile(32, 128, 8 if k <= 1024 or (int8 and k > 4096) else 4, warps=2)
    if gated:
        return Tile(32, 128)
    if k <= 1024:
        return Tile(16, 256) if int8 else Tile(16, 128, warps=2)
    return Tile(32, 256) if int8 else Tile(32, 128)


# -- products, norm, embeddings --------------------------------------------------------------------

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NORM_WARPS = 8
EMBED_BLOCK = 512


def dot_type(x: Tensor) -> tl.dtype:
    """What products are computed in."""
    return tl.bfloat16 if x.dtype == torch.bfloat16 and not INTERPRETED else tl.float32


@triton.jit
def _matmul(
    x, w, scale, out, m, n, k, x_stride,
    HAS_SCALE: tl.constexpr, GATED: tl.constexpr, SPLITS: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """out [SPLITS, m, n] of x [m, k] and w [n (or 2n, gate then up), k]."""
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(2)
    blocks = tl.cdiv(tl.cdiv(k, BK), SPLITS)
    row_in, column_in = rows < m, columns < n
    x_rows = x + rows[:, None].to(tl.int64) * x_stride
    w_rows = w + columns[None, :].to(tl.int64) * k
    total = tl.zeros((BM, BN), tl.float32)
    total_up = tl.zeros((BM, BN), tl.float32)
    for block in range(split * blocks, (split + 1) * blocks):
        inner = block * BK + tl.arange(0, BK)
        if EVEN:
            a = tl.load(x_rows + inner[None, :], mask=row_in[:, None], other=0.0)
            b = tl.load(w_rows + inner[:, None])
        else:
            k_in = inner < k
            a = tl.load(x_rows + inner[None, :], mask=row_in[:, None] & k_in[None, :], other=0.0)
            inside = column_in[None, :] & k_in[:, None]
            b = tl.load(w_rows + inner[:, None], mask=inside, other=0)
        a = a.to(DOT)
        total = tl.dot(a, b.to(DOT), total, input_precision="ieee")
        if GATED:
            up_rows = w_rows + n.to(tl.int64) * k
            if EVEN:
                b = tl.load(up_rows + inner[:, None])
            else:
                b = tl.load(up_rows + inner[:, None], mask=inside, other=0)
            total_up = tl.dot(a, b.to(DOT), total_up, input_precision="ieee")
    if HAS_SCALE:
        total *= tl.load(scale + columns, mask=column_in, other=0.0)[None, :]
    kind = out.dtype.element_ty
    if GATED:
        if HAS_SCALE:
            total_up *= tl.load(scale + n + columns, mask=column_in, other=0.0)[None, :]
        gate = total.to(x.dtype.element_ty).to(tl.float32)
        gate = (gate / (1.0 + tl.exp(-gate))).to(x.dtype.element_ty).to(tl.float32)
        total = gate * total_up.to(x.dtype.element_ty).to(tl.float32)
    place = out + (split * m + rows[:, None]).to(tl.int64) * n + columns[None, :]
    tl.store(place, total.to(kind), mask=row_in[:, None] & column_in[None, :])


def matmul(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    *,
    gated: bool = False,
    partial: bool = False,
) -> Tensor:
    """x [m, k] times weight [n, k] transposed; scale [n] float32 where the weight is int8.

    -> [m, n]; with `gated`, silu(gate) * up [m, n / 2]; with `partial`, float32 [splits, m, n],
    whose sum is the product (add_norm takes them so).
    """
    m, k = x.shape
    n = weight.shape[0] // 2 if gated else weight.shape[0]
    tile = tile_for(n, k, m, weight.element_size(), gated, partial)
    kind = torch.float32 if partial else x.dtype
    out = torch.empty(tile.splits, m, n, dtype=kind, device=x.device)
    bm = tile.bm
    even = n % tile.bn == 0 and k % (tile.bk * tile.splits) == 0
    grid = (triton.cdiv(n, tile.bn), triton.cdiv(m, bm), tile.splits)
    _matmul[grid](
        x, weight, weight if scale is None else scale, out, m, n, k, x.stride(0),
        HAS_SCALE=scale is not None, GATED=gated, SPLITS=tile.splits, EVEN=even,
        BM=bm, BN=tile.bn, BK=tile.bk, DOT=dot_type(x),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out if partial else out[0]


@triton.jit
def _add_norm(
    x, y, alpha, total, normed, rows, dim, x_stride, y_stride, eps,
    PARTS: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """total = x + sum of the parts of y, each row's root-mean-square norm beside it."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < dim
    kind = total.dtype.element_ty
    value = tl.load(x + row * x_stride + i, mask=inside, other=0.0).to(tl.float32)
    if PARTS > 0:
        added = tl.zeros((BLOCK,), tl.float32)
        for part in tl.static_range(PARTS):
            place = y + (part * rows + row) * y_stride + i
            added += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        value = (value + added.to(kind).to(tl.float32)).to(kind).to(tl.float32)
        tl.store(total + row * dim + i, value.to(kind), mask=inside)
    if NORM:
        mean = tl.sum(value * value, 0) / dim
        scaled = value * (1.0 / tl.sqrt(mean + eps))
        weight = tl.load(alpha + i, mask=inside, other=0.0).to(tl.float32)
        tl.store(normed + row * dim + i, (scaled * weight).to(kind), mask=inside)


def add_norm(
    x: Tensor, y: Tensor | None, alpha: Tensor | None, eps: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """(x + y, its norm): x [m, dim] (rows may be apart), y [m, dim] or parts [P, m, dim] or None.

    alpha None: no norm. Without y the sum is x itself.
    """
    m, dim = x.shape
    parts = 0 if y is None else (y.shape[0] if y.dim() == 3 else 1)
    total = x if y is None else torch.empty(m, dim, dtype=x.dtype, device=x.device)
    normed = None if alpha is None else torch.empty(m, dim, dtype=x.dtype, device=x.device)
    _add_norm[(m,)](
        x, x if y is None else y, x if alpha is None else alpha, total,
        total if normed is None else normed, m, dim, x.stride(0), 0 if y is None else y.stride(-2),
        eps, PARTS=parts, NORM=alpha is not None, BLOCK=triton.next_power_of_2(dim),
        num_warps=NORM_WARPS,
    )  # fmt: skip
    return total, normed


@triton.jit
def _embed(tokens, offsets, table, out, dim, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows 1.. then row 0 of each slot's tokens, added one by one, rounded at every addition."""
    slot = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < dim
    kind = out.dtype.element_ty
    total = tl.zeros((BLOCK,), tl.float32)
    for turn in tl.static_range(ROWS):
        row = (turn + 1) % ROWS
        token = tl.load(tokens + slot * ROWS + row)
        at = tl.where(token < 0, 0, token + tl.load(offsets + row))
        entry = tl.load(table + at * dim + i, mask=inside, other=0.0)
        total = (total + entry.to(tl.float32)).to(kind).to(tl.float32)
    tl.store(out + slot * dim + i, total.to(kind), mask=inside)


def embed(tokens: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """tokens [S, K] (row 0 text, -1 nothing) -> the sum of their entries [S, dim]."""
    slots, dim = tokens.shape[0], table.shape[1]
    out = torch.empty(slots, dim, dtype=table.dtype, device=table.device)
    grid = (slots, triton.cdiv(dim, EMBED_BLOCK))
    rows = tokens.shape[1]
    _embed[grid](tokens.contiguous(), offsets, table, out, dim, ROWS=rows, BLOCK=EMBED_BLOCK)
    return out


# -- picking a token of every slot in one launch: top-k, race, and what is given -------------------
#
# One program a slot. Audio's vocabulary (2048 entries) is ranked by a full sort. Text's (32 000) is
# first cut to what can win: the width-th largest logit is found by halving the range of the keys.
# What is left is ranked by counting.
# The oracle is `race` of sampling.py.

WARPS, TEXT_WARPS = 8, 32
COUNTED = tl.constexpr(256)  # entries at most that are ranked by counting: their pairs are counted
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
    """packed [WIDTH], keys and below them BLOCK - 1 - index -> the index that wins of `most`.

    Few are ranked by counting who is larger, which takes one step; many by a sort.
    """
    rank = tl.arange(0, WIDTH)
    if WIDTH <= COUNTED:
        larger = packed[None, :] > packed[:, None]  # no two that count are equal
        rank = tl.sum(larger.to(tl.int32), 1)
    else:
        packed = tl.sort(packed, descending=True)
    index = BLOCK - 1 - (packed & 0xFFFFFFFF).to(tl.int32)
    ranked = _order((packed >> 32).to(tl.int32)).to(tl.float32, bitcast=True)
    kept = rank < most
    chance = tl.exp((ranked - tl.max(tl.where(kept, ranked, float("-inf")), 0)) / temperature)
    race = chance / tl.load(noise + rank, mask=kept, other=1.0)
    race = tl.where(race >= 0, race, 0.0)  # NaN has no chance; if all are, the first in rank wins
    race = tl.where(kept, race, -1.0)
    first = tl.min(tl.where(race == tl.max(race, 0), rank, WIDTH), 0)
    return tl.sum(tl.where(kept & (rank == first), index, 0), 0).to(tl.int64)


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
