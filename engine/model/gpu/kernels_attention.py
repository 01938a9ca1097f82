"""Attention over KV rings: `Decode` for a tick, `PromptPiece` for prompts, `attend_few`.

A ring needs no position mask: keys are stored rotated and softmax ignores order, so the valid
columns are always the places [0, length). Keys and values are bf16, or int8 with a float16 scale
per head and column. Idle slots cost nothing and change nothing. All is Triton's but for a tick over
int8 rings of the public model, which attention.cu reads twice as fast. The oracles are `RingPush`,
`Chunk` and `attend_few` of transformer.py, on a CPU.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.model.gpu.cuda import launch
from engine.model.gpu.kernels import INTERPRETED, dot_type
from engine.model.transformer import INT8_MAX, TILE_ROWS, TINY_SCALE, Active, Rings

LOG2E = 1.4426950408889634
LOW = -1e30  # below every score: what has it weighs nothing
WARPS = 4
SPLIT = 512  # columns of a ring that one program of a tick reads
BLOCK, STAGES = 32, 3  # columns that it reads at once
PIECE_BLOCK, PIECE_STAGES = 64, 2  # the same for a piece of a prompt
LEAST_WIDTH = 16  # of a matrix instruction
INT8_SPLIT, INT8_WIDTH, INT8_THREADS = 256, 128, 128  # of attention.cu: SPLIT, D, and its block


@triton.jit
def rotate_vector(base, turn, D: tl.constexpr, BD: tl.constexpr):
    """One head's vector [D] rotated by interleaved pairs; turn [D / 2, 2] holds cos and sin."""
    d = tl.arange(0, BD)
    inside = d < D
    value = tl.load(base + d, mask=inside, other=0.0)
    other = tl.load(base + (d ^ 1), mask=inside, other=0.0)
    cos = tl.load(turn + (d // 2) * 2, mask=inside, other=0.0)
    sin = tl.load(turn + (d // 2) * 2 + 1, mask=inside, other=0.0)
    sign = tl.where(d % 2 == 0, -1.0, 1.0)
    exact = value.to(tl.float32) * cos + sign * other.to(tl.float32) * sin
    return exact.to(value.dtype)


@triton.jit
def write_column(
    value, ring, scales, at, start, end, D: tl.constexpr, BD: tl.constexpr,
    INT8: tl.constexpr, MOST: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Write one vector into column `at` if it is in [start, end) -> what later reads will see."""
    d = tl.arange(0, BD)
    places = at + d * 0  # the interpreter mixes masks of vectors only
    inside = (d < D) & (places >= start) & (places < end)
    exact = value.to(tl.float32)
    if INT8:
        scale = tl.maximum(tl.max(tl.abs(exact), 0) / MOST, TINY).to(tl.float16)
        steps = tl.floor(exact / scale.to(tl.float32) + 0.5)
        steps = tl.minimum(tl.maximum(steps, -MOST), MOST)
        tl.store(ring + at * D + d, steps.to(tl.int8), mask=inside)
        tl.store(scales + places, scale, mask=inside & (d == 0))
        exact = steps * scale.to(tl.float32)
    else:
        tl.store(ring + at * D + d, value, mask=inside)
    return exact


# -- a tick: a few columns of many slots -----------------------------------------------------------
#
# Each program turns a query and a key, writes key and value into the ring, and reads a part of what
# is valid. The parts are merged by log-sum-exp.


@triton.jit
def _number(stored, BY_BF16: tl.constexpr):
    """Stored keys or values as float32; int8 by way of bf16, which has a fast conversion."""
    if BY_BF16:
        return stored.to(tl.bfloat16).to(tl.float32)
    return stored.to(tl.float32)


@triton.jit
def _own_columns(
    query, base, turn, keys, values, key_scales, value_scales, pushed, capacity, row, start, end,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, INT8: tl.constexpr,
    MOST: tl.constexpr, TINY: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """The columns of this push: every program computes them itself, one writes them."""
    d = tl.arange(0, BD)
    top = tl.full((), LOW, tl.float32)
    weight = tl.zeros((), tl.float32)
    total = tl.zeros((BD,), tl.float32)
    for new in tl.static_range(T):
        column = (pushed + new) % capacity
        at = base + new * 3 * H * D
        mine = tl.where(row == new, end, start)  # only the query of a column writes it
        key = rotate_vector(at + H * D, turn + new * D, D, BD)
        key = write_column(key, keys, key_scales, column, start, mine, D, BD, INT8, MOST, TINY)
        value = tl.load(at + 2 * H * D + d, mask=d < D, other=0.0)
        value = write_column(
            value, values, value_scales, column, start, mine, D, BD, INT8, MOST, TINY
        )
        score = tl.where(new <= row, tl.sum(query * key, 0), LOW)
        score = tl.where(column >= start, tl.where(column < end, score, LOW), LOW)
        higher = tl.maximum(top, score)
        kept = tl.exp2(top - higher)
        p = tl.where(score > LOW, tl.exp2(score - higher), 0.0)
        weight = weight * kept + p
        total = total * kept + p * value
        top = higher
    return top, weight, total


@triton.jit
def _ring_columns(
    query, keys, values, key_scales, value_scales, pushed, capacity, start, end,
    D: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
    INT8: tl.constexpr, LOW: tl.constexpr, BY_BF16: tl.constexpr,
):  # fmt: skip
    """The columns of a part of the ring but for this push's, in lanes that are joined later."""
    d = tl.arange(0, BD)
    inside = d < D
    lane_top = tl.full((BN,), LOW, tl.float32)  # every lane has a softmax of its own: joined once
    lane_weight = tl.zeros((BN,), tl.float32)
    lanes = tl.zeros((BN, BD), tl.float32)
    for first in tl.range(start, end, BN, num_stages=STAGES):
        n = first + tl.arange(0, BN)
        seen = n < end
        for new in tl.static_range(T):
            seen = seen & (n != (pushed + new) % capacity)
        both = seen[:, None] & inside[None, :]
        place = n[:, None] * D + d[None, :]
        k = _number(tl.load(keys + place, mask=both, other=0), BY_BF16)
        v = _number(tl.load(values + place, mask=both, other=0), BY_BF16)
        score = tl.sum(k * query[None, :], 1)
        if INT8:
            score *= tl.load(key_scales + n, mask=seen, other=0.0).to(tl.float32)
        score = tl.where(seen, score, LOW)
        higher = tl.maximum(lane_top, score)
        kept = tl.exp2(lane_top - higher)
        p = tl.where(seen, tl.exp2(score - higher), 0.0)
        lane_weight = lane_weight * kept + p
        if INT8:
            p *= tl.load(value_scales + n, mask=seen, other=0.0).to(tl.float32)
        lanes = lanes * kept[:, None] + p[:, None] * v
        lane_top = higher
    return lane_top, lane_weight, lanes


@triton.jit
def _decode(
    qkv, turn, kv, scales, position, active, part, stat, out,
    capacity, qkv_stride, kv_which, kv_slot, kv_head, scale_which, scale_slot, scale_head, factor,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, SPLIT: tl.constexpr,
    BN: tl.constexpr, STAGES: tl.constexpr, INT8: tl.constexpr, MOST: tl.constexpr,
    TINY: tl.constexpr, LOW: tl.constexpr, WHOLE: tl.constexpr, BY_BF16: tl.constexpr,
):  # fmt: skip
    """One query of one head over one part of a ring; WHOLE: the part is all of it."""
    slot, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head, row = tl.program_id(1) // T, tl.program_id(1) % T
    d = tl.arange(0, BD)
    inside = d < D
    answer = out + ((slot * T + row) * H + head) * D + d
    if tl.load(active + slot) == 0:
        if WHOLE:
            tl.store(answer, tl.zeros((BD,), out.dtype.element_ty), mask=inside)
        return
    pushed = tl.load(position + slot)
    length = tl.minimum(pushed + T, capacity)
    start = split * SPLIT
    if start >= length:
        return
    end = tl.minimum(start + SPLIT, length)
    base = qkv + slot * qkv_stride + head * D  # rows are 3 * H * D apart
    turn += slot * T * D
    keys = kv + slot * kv_slot + head * kv_head
    values = keys + kv_which
    key_scales = scales + slot * scale_slot + head * scale_head
    value_scales = key_scales + scale_which
    query = rotate_vector(base + row * 3 * H * D, turn + row * D, D, BD).to(tl.float32) * factor
    top, weight, total = _own_columns(
        query, base, turn, keys, values, key_scales, value_scales, pushed, capacity, row, start,
        end, H, D, BD, T, INT8, MOST, TINY, LOW,
    )  # fmt: skip
    lane_top, lane_weight, lanes = _ring_columns(
        query, keys, values, key_scales, value_scales, pushed, capacity, start, end,
        D, BD, T, BN, STAGES, INT8, LOW, BY_BF16,
    )  # fmt: skip
    higher = tl.maximum(top, tl.max(lane_top, 0))
    share = tl.exp2(lane_top - higher)
    kept = tl.exp2(top - higher)
    weight = weight * kept + tl.sum(lane_weight * share, 0)
    total = total * kept + tl.sum(lanes * share[:, None], 0)
    top = higher
    if WHOLE:
        tl.store(answer, (total / weight).to(out.dtype.element_ty), mask=inside)
    else:
        at = ((slot * H + head) * T + row) * tl.num_programs(2) + split
        tl.store(part + at * D + d, total, mask=inside)
        tl.store(stat + at * 2, top)
        tl.store(stat + at * 2 + 1, weight)


@triton.jit
def _merge(
    part, stat, position, active, out, capacity, splits,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, T: tl.constexpr, SPLIT: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    """The parts of one query, weighted by their share of the softmax; zeros for an idle slot."""
    slot, head, row = tl.program_id(0).to(tl.int64), tl.program_id(1) // T, tl.program_id(1) % T
    d, p = tl.arange(0, BD), tl.arange(0, BP)
    inside = d < D
    place = out + ((slot * T + row) * H + head) * D + d
    if tl.load(active + slot) == 0:
        tl.store(place, tl.zeros((BD,), out.dtype.element_ty), mask=inside)
        return
    length = tl.minimum(tl.load(position + slot) + T, capacity)
    used = p < tl.cdiv(length, SPLIT)
    at = ((slot * H + head) * T + row) * splits + p
    top = tl.load(stat + at * 2, mask=used, other=float("-inf"))
    weight = tl.load(stat + at * 2 + 1, mask=used, other=0.0)
    share = tl.exp2(top - tl.max(top, 0))
    whole = tl.sum(weight * share, 0)
    both = used[:, None] & inside[None, :]
    parts = tl.load(part + at[:, None] * D + d[None, :], mask=both, other=0.0)
    merged = tl.sum(parts * share[:, None], 0) / whole
    tl.store(place, merged.to(out.dtype.element_ty), mask=inside)


class Decode:
    """A few columns for every active slot of the rings, as a transformer's layers see it."""

    def __init__(
        self, rings: Rings, active: Active, columns: int = 1, split: int = SPLIT, block: int = BLOCK
    ) -> None:
        self.rings, self.mask, self.columns = rings, active.mask, columns
        _, _, slots, heads, _, width = rings.kv.shape
        device = rings.kv.device
        int8 = rings.scale is not None and device.type == "cuda"
        self.by_cuda = int8 and width == INT8_WIDTH and columns == 1
        self.split, self.block = INT8_SPLIT if self.by_cuda else split, block
        later = torch.arange(columns, device=device)
        turn = rings.rotation.turn(rings.position[:, None] + later)  # [S, T, 1, 1, D/2]
        self.turn = torch.view_as_real(turn).contiguous()  # [S, T, 1, 1, D/2, 2]
        self.splits = math.ceil(rings.capacity / self.split)
        shape = (slots, heads, columns, self.splits)
        self.part = torch.empty(*shape, width, dtype=torch.float32, device=device)
        self.stat = torch.empty(*shape, 2, dtype=torch.float32, device=device)
        if self.by_cuda:  # how many parts of a query are there; each launch leaves zeros
            self.arrived = torch.zeros(slots, heads, dtype=torch.int32, device=device)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv [S, T, 3, H, D], not yet rotated -> [S, T, H * D]; writes the ring."""
        rings = self.rings
        slots, columns, _, heads, width = qkv.shape
        kv = rings.kv[layer]  # [2, S, H, columns, D]
        int8 = rings.scale is not None
        scale = rings.scale[layer] if int8 else kv  # [2, S, H, columns]
        out = torch.empty(slots, columns, heads * width, dtype=qkv.dtype, device=qkv.device)
        if self.by_cuda and qkv.dtype == torch.bfloat16:
            launch(
                "attention", "attend_int8", (self.splits, heads, slots), INT8_THREADS,
                qkv, self.turn, kv, scale, rings.position, self.mask, self.part, self.stat,
                self.arrived, out, rings.capacity, *kv.stride()[:3], *scale.stride()[:3],
                LOG2E * width**-0.5,
            )  # fmt: skip
            return out
        sizes = {"H": heads, "D": width, "BD": triton.next_power_of_2(width), "T": columns}
        whole = self.splits == 1
        _decode[(slots, heads * columns, self.splits)](
            qkv, self.turn, kv, scale, rings.position, self.mask, self.part, self.stat, out,
            rings.capacity, qkv.stride(0), *kv.stride()[:3], *scale.stride()[:3],
            LOG2E * width**-0.5, **sizes, SPLIT=self.split, BN=self.block, STAGES=STAGES,
            INT8=int8, MOST=INT8_MAX, TINY=TINY_SCALE, LOW=LOW, WHOLE=whole,
            BY_BF16=int8 and not INTERPRETED, num_warps=WARPS,
        )  # fmt: skip
        if not whole:
            _merge[(slots, heads * columns)](
                self.part, self.stat, rings.position, self.mask, out, rings.capacity, self.splits,
                **sizes, SPLIT=self.split, BP=triton.next_power_of_2(self.splits), num_warps=1,
            )  # fmt: skip
        return out


# -- the depformer: the columns of one frame -------------------------------------------------------


@triton.jit
def _attend_few(
    qkv, kv, out, step, kv_which, kv_slot, kv_head, qkv_stride, factor,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d, n = tl.arange(0, BD), tl.arange(0, BQ)
    inside = d < D
    base = qkv + slot * qkv_stride + head * D + d
    query = tl.load(base, mask=inside, other=0.0).to(tl.float32) * factor
    key = tl.load(base + H * D, mask=inside, other=0.0)
    value = tl.load(base + 2 * H * D, mask=inside, other=0.0)
    keys = kv + slot * kv_slot + head * kv_head
    tl.store(keys + step * D + d, key, mask=inside)
    tl.store(keys + kv_which + step * D + d, value, mask=inside)
    both = (n < step)[:, None] & inside[None, :]
    place = n[:, None] * D + d[None, :]
    k = tl.load(keys + place, mask=both, other=0.0).to(tl.float32)
    v = tl.load(keys + kv_which + place, mask=both, other=0.0).to(tl.float32)
    now = n == step
    k = tl.where(now[:, None], key.to(tl.float32)[None, :], k)
    v = tl.where(now[:, None], value.to(tl.float32)[None, :], v)
    score = tl.where(n <= step, tl.sum(k * query[None, :], 1), float("-inf"))
    p = tl.exp2(score - tl.max(score, 0))
    attended = tl.sum(p[:, None] * v, 0) / tl.sum(p, 0)
    tl.store(out + (slot * H + head) * D + d, attended.to(out.dtype.element_ty), mask=inside)


def attend_few(qkv: Tensor, kv: Tensor, step: int) -> Tensor:
    """The depformer's: qkv [S, 3, H, D] into kv [2, S, H, Q, D] at `step` -> [S, H * D]."""
    slots, _, heads, width = qkv.shape
    out = torch.empty(slots, heads * width, dtype=qkv.dtype, device=qkv.device)
    _attend_few[(slots, heads)](
        qkv, kv, out, step, *kv.stride()[:3], qkv.stride(0), LOG2E * width**-0.5,
        H=heads, D=width, BD=triton.next_power_of_2(width),
        BQ=triton.next_power_of_2(kv.shape[3]), num_warps=1,
    )  # fmt: skip
    return out


# -- a piece of a prompt: many columns of one slot, two launches a layer ---------------------------
#
# `_write_piece` turns keys and writes them with their values behind what the slot's ring holds;
# `_attend_piece` reads what each column may see. Which slot, and how many of the columns count, are
# numbers on the device: one CUDA graph serves every slot and every shorter piece. Nothing wraps
# here: `Chunk` computes a piece that would.


@triton.jit
def _write_piece(
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
    key = rotate_vector(base, turn + row * D, D, BD)
    write_column(key, keys, key_scales, at, at, at + 1, D, BD, INT8, MOST, TINY)
    value = tl.load(base + H * D + d, mask=d < D, other=0.0)
    write_column(
        value, keys + kv_which, key_scales + scale_which, at, at, at + 1, D, BD, INT8, MOST, TINY
    )


@triton.jit
def _rotate_rows(
    qkv, turn, rows, columns, head, H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr
):
    """The queries of some columns and one head [BM, BD], as `rotate_vector` makes one of them."""
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
def _attend_piece(
    qkv, turn, kv, scales, slot, position, count, out, columns,
    kv_which, kv_slot, kv_head, scale_which, scale_slot, scale_head, factor,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr, INT8: tl.constexpr, LOW: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """BM columns and one head over the ring, which holds this piece already."""
    first, head = tl.program_id(0) * BM, tl.program_id(1)
    which, d = tl.load(slot), tl.arange(0, BD)
    pushed, rows = tl.load(position + which), first + tl.arange(0, BM)
    query = _rotate_rows(qkv, turn, rows, columns, head, H, D, BD).to(DOT)
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
    attended = total / tl.where(weight > 0.0, weight, 1.0)[:, None]  # zeros where nothing is seen
    answer = out + (rows[:, None] * H + head) * D + d[None, :]
    there = (rows < columns)[:, None] & (d < D)[None, :]
    tl.store(answer, attended.to(out.dtype.element_ty), mask=there)


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
        _write_piece[(columns, heads)](
            *given, *strides, H=heads, D=width, BD=padded,
            INT8=int8, MOST=INT8_MAX, TINY=TINY_SCALE, num_warps=1,
        )  # fmt: skip
        _attend_piece[(triton.cdiv(columns, TILE_ROWS), heads)](
            *given, out, columns, *strides, LOG2E * width**-0.5,
            H=heads, D=width, BD=max(LEAST_WIDTH, padded), BM=TILE_ROWS, BN=PIECE_BLOCK,
            STAGES=PIECE_STAGES, INT8=int8, LOW=LOW, DOT=dot_type(qkv), num_warps=WARPS,
        )  # fmt: skip
        return out

    def advance(self) -> None:
        """After all layers: the slot has seen what counts."""
        self.rings.position.index_add_(0, self.slot, self.count)
