"""Triton kernels of one frame's matrix work: products of few rows, residual and norm, embeddings.

Written for memory-bound work on sm_86 and sm_90: every weight is read once, in 16-row tiles, so 1
and 16 slots cost the same and a row's bits depend on no other row. Sums are split and joined in a
fixed order, never by atomics. Their oracles are the plain modules (linear.py, transformer.py).
Under Triton's interpreter products are computed in float32: its bf16 dot is wrong.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.model.tiles import ROWS, tile_for

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
    bm = min(64, max(ROWS, triton.next_power_of_2(m)))
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
