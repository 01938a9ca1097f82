"""What every transformer here is made of: who takes part, products, attention over rings, layers.

- `Active` says which slots advance in a step.
- `Linear` is the one matrix product of the models: plain, re-ordered for a CPU, or int8.
- `Rings` are the KV memory of many slots. `RingPush` pushes a few columns for many slots, `Chunk`
  pushes many columns for one slot. Both offer `attend(layer, qkv)`, and that is all that a layer
  knows of attention.
- `Transformer` is a stack of layers: gated with RMSNorm in the language models, with LayerNorm in
  the codec. It holds weights only; what it attends to comes with each call.

lm.py builds the language models of these, mimi.py the codec, gpu/fused.py runs them by kernels.
"""

import math
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RMS_EPS = 1e-8


# -- who takes part --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Active:
    """The slots that advance in a step: mask [S] bool on the device, the same on the host."""

    mask: Tensor
    slots: tuple[int, ...]

    @classmethod
    def of(cls, slots: list[int], total: int, device: torch.device) -> "Active":
        mask = torch.zeros(total, dtype=torch.bool)
        mask[slots] = True
        return cls(mask.to(device, non_blocking=True), tuple(slots))

    def update(self, state: Tensor, new: Tensor) -> None:
        """state[s] = new[s] for the active slots s; not a bit of the others changes."""
        mask = self.mask.view(-1, *(1,) * (state.dim() - 1))
        torch.where(mask, new, state, out=state)


# -- products --------------------------------------------------------------------------------------
#
# int8 weights have a scale for every output, int8 keys and values one for every head and column;
# activations keep their precision (W8A16).

TILE_ROWS = 16  # of a tensor-core tile: products of 1 to 16 rows cost the same
INT8_MAX = 127  # steps on either side of zero
TINY_SCALE = 6e-8  # smallest float16: keeps zeros from dividing by zero


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> (int8 [N, K], scale [N] float32); weight = int8 * scale, rounded."""
    exact = weight.float()
    scale = (exact.abs().amax(1) / INT8_MAX).clamp(min=TINY_SCALE)
    steps = torch.round(exact / scale[:, None]).clamp(-INT8_MAX, INT8_MAX)
    return steps.to(torch.int8), scale


def quantise_columns(kv: Tensor) -> tuple[Tensor, Tensor]:
    """kv [..., D] -> (int8 [..., D], scale [...] float16)."""
    exact = kv.float()
    scale = (exact.abs().amax(-1) / INT8_MAX).clamp(min=TINY_SCALE).half()
    steps = torch.floor(exact / scale.float()[..., None] + 0.5)
    return steps.clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def dequantise_columns(kv: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What `quantise_columns` kept, as numbers again [..., D]."""
    return (kv.float() * scale.float()[..., None]).to(dtype)


def w8a16(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [..., K] times int8 weight [N, K] transposed, times scale [N] -> [..., N]."""
    rows = x.reshape(-1, x.shape[-1])
    if x.is_cuda:
        from engine.model.gpu.kernels import matmul  # triton: only where there is a GPU

        out = matmul(rows.contiguous(), weight, scale)
    else:
        # Row by row: how many rows there are must not change the order of any sum.
        exact = weight.float()
        out = torch.stack([torch.mv(exact, row) for row in rows.float()]) * scale
    return out.to(x.dtype).view(*x.shape[:-1], -1)


ONEDNN = torch.ops.mkldnn if torch.backends.mkldnn.is_available() else None
PACK_ROWS = 8  # rows the re-ordering is tuned for; any number works
# A call of oneDNN costs 30 us before it multiplies: from so many elements on it is the quicker one.
LEAST_PACKED = 2**16
LANES = 16  # floats in 64 bytes: what starts on such a border is summed in the same order


class Linear(nn.Module):
    """y = x W^T without bias, W [outputs, inputs].

    On a CPU `pack` makes it quick. A row of y through a small weight is then the same to the bit,
    however many are beside it; of large ones oneDNN promises that on some CPUs only.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.packed: Tensor | None = None
        self.by_rows = False  # a small weight on a CPU: each row is a product of its own
        self.scale: Tensor | None = None  # [outputs] float32, where the weight is int8

    def quantise(self) -> None:
        """Trade the weight for its int8 form, before it is packed."""
        self.set_int8(*quantise_weight(self.weight.detach()))

    def set_int8(self, weight: Tensor, scale: Tensor) -> None:
        self.weight, self.scale = nn.Parameter(weight, requires_grad=False), scale

    def pack(self) -> None:
        """Re-order a large weight for this CPU and free the plain one. Elsewhere: nothing."""
        weight = self.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or not ONEDNN:
            return
        self.by_rows = weight.numel() < LEAST_PACKED and weight.shape[1] % LANES == 0
        if not self.by_rows:
            self.packed = ONEDNN._reorder_linear_weight(weight.detach(), PACK_ROWS)
            self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] -> [..., outputs]."""
        if self.scale is not None:
            return w8a16(x, self.weight, self.scale)
        if self.by_rows:
            rows = x.reshape(-1, 1, x.shape[-1])
            if rows.data_ptr() % (4 * LANES):
                rows = rows.clone()  # to memory that starts on a border, as every row does then
            products = torch.bmm(rows, self.weight.t().expand(len(rows), -1, -1))
            return products.view(*x.shape[:-1], len(self.weight))
        if self.packed is None:
            return F.linear(x, self.weight)
        return ONEDNN._linear_pointwise(x, self.packed, None, "none", [], "")


# -- attention -------------------------------------------------------------------------------------
#
# A ring of capacity N is written first, then read wherever a column is not newer than the query.
# With N = context - 1 that is exactly the window of the public reference (whose ring of `context`
# columns masks its oldest one); with N = context it is the plain window. Keys are stored rotated,
# so the order of columns in the ring does not matter.

VECTOR = 32  # elements: multiples of it never leave the vector path of sin and cos


class Rotation:
    """Rotary embedding over interleaved pairs (2i, 2i + 1), in float32."""

    def __init__(self, head_dim: int, max_period: float, device: torch.device) -> None:
        self.pairs = head_dim // 2
        padded = math.ceil(self.pairs / VECTOR) * VECTOR
        steps = torch.arange(padded, device=device, dtype=torch.float32)
        self.frequency = torch.exp(steps * (-2 * math.log(max_period) / head_dim))  # radians

    def turn(self, positions: Tensor) -> Tensor:
        """positions [..., T] -> unit complex numbers [..., T, 1, 1, pairs]."""
        angle = positions[..., None].float() * self.frequency  # [..., T, padded]
        turn = torch.complex(angle.cos(), angle.sin())[..., : self.pairs]
        return turn[..., None, None, :]


def rotate_(qk: Tensor, turn: Tensor) -> None:
    """Rotate queries and keys [S, T, 2, H, D] in place by turn [S, T, 1, 1, D/2]."""
    exact = qk.float()  # the same memory where it is float32 already
    torch.view_as_complex(exact.unflatten(-1, (-1, 2))).mul_(turn)
    if exact is not qk:
        qk.copy_(exact)


class Rings:
    """Keys and values of one transformer: kv [L, 2, S, H, columns, D], position [S] int64.

    One column beyond the capacity takes what inactive slots write; it is never part of a window.
    `pushed` mirrors `position` on the host, for what must know lengths without asking the device.
    With int8 every head and column has a float16 scale beside it: scale [L, 2, S, H, columns].
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        heads: int,
        rotation: Rotation,
        capacity: int,
        dtype: torch.dtype,
    ) -> None:
        device = rotation.frequency.device
        self.capacity, self.rotation = capacity, rotation
        columns = math.ceil((capacity + 1) / LANES) * LANES
        shape = (layers, 2, slots, heads, columns, 2 * rotation.pairs)
        self.kv = torch.zeros(shape, device=device, dtype=dtype)
        int8 = dtype == torch.int8
        self.scale = torch.zeros(shape[:-1], device=device, dtype=torch.half) if int8 else None
        self.position = torch.zeros(slots, dtype=torch.int64, device=device)
        self.slots = torch.arange(slots, device=device)[:, None]  # [S, 1]
        self.pushed = [0] * slots

    def advance(self, active: Active, columns: int) -> None:
        """After a push: the active slots have seen `columns` more."""
        self.position.add_(active.mask * columns)
        self.count(active.slots, columns)

    def count(self, slots: Iterable[int], columns: int) -> None:
        """The host's part of `advance`: all of it that a replayed graph leaves to do."""
        for slot in slots:
            self.pushed[slot] += columns

    def narrow(self, slots: int) -> "Rings":
        """The first slots of these rings: the same memory, the same counts."""
        some = copy(self)
        some.kv, some.position = self.kv[:, :, :slots], self.position[:slots]
        some.scale = None if self.scale is None else self.scale[:, :, :slots]
        some.slots = self.slots[:slots]
        return some

    def tensors(self) -> list[Tensor]:
        """Keys with values; in int8 their scales too."""
        return [self.kv] if self.scale is None else [self.kv, self.scale]

    def used(self, slot: int) -> list[Tensor]:
        """The filled part of a slot's `tensors`, as views [L, 2, H, n, D] and [L, 2, H, n]."""
        end = min(self.pushed[slot], self.capacity)
        return [kept[:, :, slot, :, :end] for kept in self.tensors()]

    def read(self, layer: int, slot: int, length: int, dtype: torch.dtype) -> Tensor:
        """The first columns of one slot as numbers to compute with [2, 1, H, length, D]."""
        kv = self.kv[layer, :, slot : slot + 1, :, :length]
        if self.scale is None:
            return kv
        return dequantise_columns(kv, self.scale[layer, :, slot : slot + 1, :, :length], dtype)

    def write(self, layer: int, target: Tensor, new: Tensor) -> None:
        """One push of all slots: new [S, T, 2, H, D] into the columns target [S, T]."""
        if self.scale is not None:
            new, scale = quantise_columns(new)
            self.scale[layer][:, self.slots, :, target] = scale
        self.kv[layer][:, self.slots, :, target] = new

    def write_one(self, layer: int, slot: int, target: Tensor, new: Tensor) -> None:
        """Columns of one slot: new [2, H, T, D] into the columns target [T]."""
        if self.scale is not None:
            new, scale = quantise_columns(new)
            self.scale[layer, :, slot][:, :, target] = scale
        self.kv[layer, :, slot][:, :, target] = new

    def clear(self, slot: int) -> None:
        for kept in self.tensors():
            kept[:, :, slot].zero_()
        self.set_position(slot, 0)

    def set_position(self, slot: int, pushed: int) -> None:
        self.pushed[slot] = pushed
        self.position[slot] = pushed


class RingPush:
    """One push of T columns (1, or 2 in the codec) for every active slot of the rings.

    The host must know the slots: in a GPU's graphs `Decode` (gpu/kernels_attention.py) does it.
    """

    def __init__(self, rings: Rings, active: Active, columns: int = 1) -> None:
        self.rings, self.columns, capacity = rings, columns, rings.capacity
        positions = rings.position[:, None] + torch.arange(columns, device=rings.position.device)
        self.turn = rings.rotation.turn(positions)  # [S, T, 1, 1, D/2]
        self.target = torch.where(active.mask[:, None], positions % capacity, capacity)  # [S, T]
        self.spans = [self._span(slot) for slot in active.slots]

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv [S, T, 3, H, D] -> [S, T, H * D]; writes the keys and values first.

        Each active slot over its own length: neighbours cannot change a bit, nor cost time.
        """
        rotate_(qkv[:, :, :2], self.turn)
        self.rings.write(layer, self.target, qkv[:, :, 1:])
        query = qkv[:, :, 0]
        out = torch.zeros_like(query, memory_format=torch.contiguous_format)  # [S, T, H, D]
        for slot, length, mask in self.spans:
            one = query[slot].transpose(0, 1)[None].clone()  # [1, H, T, D], on a 64-byte border
            keys, values = self.rings.read(layer, slot, length, query.dtype)
            attended = F.scaled_dot_product_attention(one, keys, values, attn_mask=mask)
            out[slot] = attended[0].transpose(0, 1)
        return out.flatten(2)

    def _span(self, slot: int) -> tuple[int, int, Tensor | None]:
        """Slot, columns to read, and for T > 1 which of them each query sees [T, n]."""
        pushed, capacity, columns = self.rings.pushed[slot], self.rings.capacity, self.columns
        length = min(pushed + columns, capacity)
        if columns == 1:
            return slot, length, None
        mask = torch.ones(columns, length, dtype=torch.bool, device=self.target.device)
        for later in range(1, columns):
            mask[:later, (pushed + later) % capacity] = False
        return slot, length, mask


class Chunk:
    """One push of T columns for one slot, T of any size: a piece of a prompt.

    Every query sees the `capacity` newest columns up to itself, also those which this very chunk
    pushes out of the ring: the chunk is computed over the old ring and itself, then written.
    """

    def __init__(self, rings: Rings, slot: int, columns: int) -> None:
        self.rings, self.slot, self.columns = rings, slot, columns
        start, capacity, device = rings.pushed[slot], rings.capacity, rings.kv.device
        positions = torch.arange(start, start + columns, device=device)
        self.old = min(start, capacity)
        ring = torch.arange(self.old, device=device)
        ring = start - 1 - (start - 1 - ring) % capacity  # position of each column of the ring
        age = positions[:, None] - torch.cat([ring, positions])  # [T, old + T]
        self.visible = (age >= 0) & (age < capacity)
        self.turn = rings.rotation.turn(positions)[None]  # [1, T, 1, 1, D/2]
        self.kept = min(columns, capacity)
        self.target = positions[-self.kept :] % capacity

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv [1, T, 3, H, D] -> [1, T, H * D]."""
        rotate_(qkv[:, :, :2], self.turn)
        query, *new = qkv.permute(2, 0, 3, 1, 4)  # each [1, H, T, D]
        if self.rings.scale is not None:  # a chunk sees itself as later columns will see it
            new = [dequantise_columns(*quantise_columns(n), n.dtype) for n in new]
        ring = self.rings.read(layer, self.slot, self.old, query.dtype)  # [2, 1, H, old, D]
        keys, values = (torch.cat(both, 2) for both in zip(ring, new, strict=True))
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=self.visible)
        self.rings.write_one(layer, self.slot, self.target, torch.cat(new)[:, :, -self.kept :])
        return attended.transpose(1, 2).flatten(2)

    def advance(self) -> None:
        """After all layers: the slot has seen these columns."""
        self.rings.set_position(self.slot, self.rings.pushed[self.slot] + self.columns)


def attend_few(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """query [S, H, D], keys [S, H, n, D]. Plain sums: bits of the fused ones depend on threads."""
    if keys.shape[2] == 1:
        return values[:, :, 0]
    scores = (query[:, :, None] * keys).sum(-1).mul_(query.shape[-1] ** -0.5)  # [S, H, n]
    return (scores.softmax(-1)[..., None] * values).sum(-2)  # [S, H, D]


# -- layers ----------------------------------------------------------------------------------------


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
        attended = self.self_attn(self.norm1(x), push, layer)
        x = x + attended * self.layer_scale_1
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
