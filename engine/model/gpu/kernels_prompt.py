"""Triton attention of a prompt's piece: many columns of one slot, two launches a layer.

`_enter` turns keys and writes them with their values behind what the slot's ring holds; `_hear`
reads what each column may see. Which slot, and how many of the columns count, are numbers on the
device: one CUDA graph serves every slot and every shorter piece. Nothing wraps here; a piece that
would is computed by `transformer.Chunk`, which is the oracle.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.model.gpu.kernels import ROWS, dot_type
from engine.model.gpu.kernels_attention import LOG2E, LOW, put, turned
from engine.model.transformer import MOST, TINY_SCALE, Rings

BLOCK = 64  # columns of the ring that are read at once
LEAST_WIDTH = 16  # of a matrix instruction
WARPS, STAGES = 4, 2


@triton.jit
def _enter(
    qkv, turn, kv, scales, slot, position, count,
    kv_which, kv_slot, kv_head, scale_which, scale_slot, scale_head,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    INT8: tl.constexpr, MOST: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Key and value of one column and head into the ring."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if row >= tl.load(count):
        return
    which, d = tl.load(slot), tl.arange(0, BD)
    at = tl.load(position + which) + row
    keys = kv + which * kv_slot + head * kv_head
    key_scales = scales + which * scale_slot + head * scale_head
    base = qkv + (row * 3 * H + H + head) * D
    key = turned(base, turn + row * D, D, BD)
    put(key, keys, key_scales, at, at, at + 1, D, BD, INT8, MOST, TINY)
    value = tl.load(base + H * D + d, mask=d < D, other=0.0)
    put(value, keys + kv_which, key_scales + scale_which, at, at, at + 1, D, BD, INT8, MOST, TINY)


@triton.jit
def _turned_rows(
    qkv, turn, rows, columns, head, H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr
):
    """The queries of some columns and one head [BM, BD], as `turned` makes one of them."""
    d = tl.arange(0, BD)
    there = (rows < columns)[:, None] & (d < D)[None, :]
    base = qkv + (rows[:, None] * 3 * H + head) * D
    value = tl.load(base + d[None, :], mask=there, other=0.0)
    other = tl.load(base + (d ^ 1)[None, :], mask=there, other=0.0)
    angle = turn + rows[:, None] * D + ((d // 2) * 2)[None, :]
    cos = tl.load(angle, mask=there, other=0.0)
    sin = tl.load(angle + 1, mask=there, other=0.0)
    sign = tl.where(d % 2 == 0, -1.0, 1.0)[None, :]
    return (value.to(tl.float32) * cos + sign * other.to(tl.float32) * sin).to(value.dtype)


@triton.jit
def _hear(
    qkv, turn, kv, scales, slot, position, count, out, columns,
    kv_which, kv_slot, kv_head, scale_which, scale_slot, scale_head, factor,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr, INT8: tl.constexpr, LOW: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """BM columns and one head over the ring, which holds this piece already."""
    first, head = tl.program_id(0) * BM, tl.program_id(1)
    which, d = tl.load(slot), tl.arange(0, BD)
    pushed, rows = tl.load(position + which), first + tl.arange(0, BM)
    query = _turned_rows(qkv, turn, rows, columns, head, H, D, BD).to(DOT)
    keys = kv + which * kv_slot + head * kv_head
    key_scales = scales + which * scale_slot + head * scale_head
    end = pushed + tl.minimum(tl.load(count), first + BM)
    top = tl.full((BM,), LOW, tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM, BD), tl.float32)
    for start in tl.range(0, end, BN, num_stages=STAGES):
        n = start + tl.arange(0, BN)
        there = (n < end)[:, None] & (d < D)[None, :]
        place = n[:, None] * D + d[None, :]
        k = tl.load(keys + place, mask=there, other=0).to(DOT)
        v = tl.load(keys + kv_which + place, mask=there, other=0).to(DOT)
        score = tl.dot(query, tl.trans(k), input_precision="ieee") * factor
        if INT8:
            score *= tl.load(key_scales + n, mask=n < end, other=0.0).to(tl.float32)[None, :]
        seen = (n < end)[None, :] & (n[None, :] <= pushed + rows[:, None])
        higher = tl.maximum(top, tl.max(tl.where(seen, score, LOW), 1))
        kept = tl.exp2(top - higher)
        p = tl.where(seen, tl.exp2(score - higher[:, None]), 0.0)
        weight = weight * kept + tl.sum(p, 1)
        if INT8:
            scale = tl.load(key_scales + scale_which + n, mask=n < end, other=0.0)
            p *= scale.to(tl.float32)[None, :]
        total = total * kept[:, None] + tl.dot(p.to(DOT), v, input_precision="ieee")
        top = higher
    heard = total / tl.where(weight > 0.0, weight, 1.0)[:, None]  # what sees nothing hears zeros
    answer = out + (rows[:, None] * H + head) * D + d[None, :]
    there = (rows < columns)[:, None] & (d < D)[None, :]
    tl.store(answer, heard.to(out.dtype.element_ty), mask=there)


class PromptPiece:
    """Up to `columns` columns of one slot, as a transformer's layers see them.

    slot [1] and count [1] int64 say whose they are and how many of them count.
    """

    def __init__(self, rings: Rings, slot: Tensor, count: Tensor, columns: int) -> None:
        self.rings, self.slot, self.count = rings, slot, count
        later = torch.arange(columns, device=slot.device)
        turn = rings.rotation.turn(rings.position[slot] + later)  # [T, 1, 1, D/2]
        self.turn = torch.view_as_real(turn).contiguous()  # [T, 1, 1, D/2, 2]

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv [T, 1, 3, H, D], not yet rotated -> [T, 1, H * D]; writes the ring."""
        rings = self.rings
        columns, _, _, heads, width = qkv.shape
        kv = rings.kv[layer]  # [2, S, H, columns, D]
        int8 = rings.scale is not None
        scale = rings.scale[layer] if int8 else kv  # [2, S, H, columns]
        out = torch.empty(columns, 1, heads * width, dtype=qkv.dtype, device=qkv.device)
        given = qkv, self.turn, kv, scale, self.slot, rings.position, self.count
        strides = *kv.stride()[:3], *scale.stride()[:3]
        padded = triton.next_power_of_2(width)
        _enter[(columns, heads)](
            *given, *strides, H=heads, D=width, BD=padded,
            INT8=int8, MOST=MOST, TINY=TINY_SCALE, num_warps=1,
        )  # fmt: skip
        _hear[(triton.cdiv(columns, ROWS), heads)](
            *given, out, columns, *strides, LOG2E * width**-0.5,
            H=heads, D=width, BD=max(LEAST_WIDTH, padded), BM=ROWS, BN=BLOCK, STAGES=STAGES,
            INT8=int8, LOW=LOW, DOT=dot_type(qkv), num_warps=WARPS,
        )  # fmt: skip
        return out

    def advance(self) -> None:
        """After all layers: the slot has seen what counts."""
        self.rings.position.index_add_(0, self.slot, self.count)
