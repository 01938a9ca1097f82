"""KV rings of a batch of slots, and the two ways to attend to them.

A ring of capacity N is written first and then read wherever a column is not newer than the query.
With N = context - 1 that is exactly the window of the public reference (whose ring of `context`
columns masks its oldest one); with N = context it is the plain window. Keys are stored rotated, so
the order of columns in the ring does not matter.

`Step` pushes a few columns for many slots, `Chunk` pushes many columns for one slot. Both offer
`attend(layer, qkv)`, and are all that a transformer knows of attention.
"""

import math
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.linear import exact_columns, quantise_columns
from engine.model.state import Active

LANES = 16  # floats in 64 bytes: what starts on such a border is summed in the same order
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
        self.column = torch.arange(columns, device=device)
        self.pushed = [0] * slots

    def advance(self, active: Active, columns: int) -> None:
        """After a push: the active slots have seen `columns` more."""
        self.position.add_(active.mask * columns)
        for slot in active.slots:
            self.pushed[slot] += columns

    def narrow(self, slots: int) -> "Rings":
        """The first slots of these rings: the same memory, the same counts."""
        some = copy(self)
        some.kv, some.position = self.kv[:, :, :slots], self.position[:slots]
        some.scale = None if self.scale is None else self.scale[:, :, :slots]
        some.slots = self.slots[:slots]
        return some

    def used(self, slot: int) -> Tensor:
        """The filled part of a slot's ring, a view [L, 2, H, n, D]."""
        return self.kv[:, :, slot, :, : min(self.pushed[slot], self.capacity)]

    def used_scale(self, slot: int) -> Tensor | None:
        """The scales that belong to `used`, a view [L, 2, H, n]; None where there are none."""
        end = min(self.pushed[slot], self.capacity)
        return None if self.scale is None else self.scale[:, :, slot, :, :end]

    def read(self, layer: int, slot: int, length: int, dtype: torch.dtype) -> Tensor:
        """The first columns of one slot as numbers to compute with [2, 1, H, length, D]."""
        kv = self.kv[layer, :, slot : slot + 1, :, :length]
        if self.scale is None:
            return kv
        return exact_columns(kv, self.scale[layer, :, slot : slot + 1, :, :length], dtype)

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
        for kept in (self.kv, self.scale):
            if kept is not None:
                kept[:, :, slot].zero_()
        self.set_position(slot, 0)

    def set_position(self, slot: int, pushed: int) -> None:
        self.pushed[slot] = pushed
        self.position[slot] = pushed


class RingPush:
    """One push of T columns (1, or 2 in the codec) for every active slot of the rings."""

    def __init__(self, rings: Rings, active: Active, columns: int = 1) -> None:
        self.rings, self.columns, capacity = rings, columns, rings.capacity
        positions = rings.position[:, None] + torch.arange(columns, device=rings.position.device)
        self.turn = rings.rotation.turn(positions)  # [S, T, 1, 1, D/2]
        self.target = torch.where(active.mask[:, None], positions % capacity, capacity)  # [S, T]
        if rings.kv.device.type == "cpu":
            self._attend = self._by_slot
            self.spans = [self._span(slot) for slot in active.slots]
        else:
            self._attend = self._masked
            self.visible = self._visible()

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv [S, T, 3, H, D] -> [S, T, H * D]; writes the keys and values first."""
        rotate_(qkv[:, :, :2], self.turn)
        self.rings.write(layer, self.target, qkv[:, :, 1:])
        return self._attend(qkv[:, :, 0], layer).flatten(2)

    def _by_slot(self, query: Tensor, layer: int) -> Tensor:
        """Each active slot over its own length: neighbours cannot change a bit, nor cost time."""
        out = torch.zeros_like(query, memory_format=torch.contiguous_format)  # [S, T, H, D]
        for slot, length, mask in self.spans:
            one = query[slot].transpose(0, 1)[None].clone()  # [1, H, T, D], on a 64-byte border
            keys, values = self.rings.read(layer, slot, length, query.dtype)
            heard = F.scaled_dot_product_attention(one, keys, values, attn_mask=mask)
            out[slot] = heard[0].transpose(0, 1)
        return out

    def _masked(self, query: Tensor, layer: int) -> Tensor:
        """All slots over the whole ring: fixed shapes, no length known to the host."""
        kv, scale = self.rings.kv[layer], self.rings.scale
        kv = kv if scale is None else exact_columns(kv, scale[layer], query.dtype)
        query = query.transpose(1, 2)  # [S, H, T, D]
        heard = F.scaled_dot_product_attention(query, kv[0], kv[1], attn_mask=self.visible)
        return heard.transpose(1, 2)

    def _span(self, slot: int) -> tuple[int, int, Tensor | None]:
        """Slot, columns to read, and for T > 1 which of them each query sees [T, n]."""
        pushed, capacity, columns = self.rings.pushed[slot], self.rings.capacity, self.columns
        length = min(pushed + columns, capacity)
        if columns == 1:
            return slot, length, None
        mask = torch.ones(columns, length, dtype=torch.bool)
        for later in range(1, columns):
            mask[:later, (pushed + later) % capacity] = False
        return slot, length, mask

    def _visible(self) -> Tensor:
        """[S, 1, T, columns] bool. An inactive slot sees its spare column: no row is empty."""
        rings, columns = self.rings, self.columns
        length = (rings.position + columns).clamp(max=rings.capacity)  # [S]
        filled = rings.column < length[:, None]  # [S, columns]
        hit = rings.column == self.target[..., None]  # [S, T, columns]: what this push wrote
        rows = [
            filled & ~hit[:, row + 1 :].any(1) | hit[:, row] for row in range(columns)
        ]  # T of [S, columns]
        return torch.stack(rows, 1)[:, None]


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
            new = [exact_columns(*quantise_columns(n), n.dtype) for n in new]
        ring = self.rings.read(layer, self.slot, self.old, query.dtype)  # [2, 1, H, old, D]
        keys, values = (torch.cat(both, 2) for both in zip(ring, new, strict=True))
        heard = F.scaled_dot_product_attention(query, keys, values, attn_mask=self.visible)
        self.rings.write_one(layer, self.slot, self.target, torch.cat(new)[:, :, -self.kept :])
        return heard.transpose(1, 2).flatten(2)

    def advance(self) -> None:
        """After all layers: the slot has seen these columns."""
        self.rings.set_position(self.slot, self.rings.pushed[self.slot] + self.columns)


def attend_few(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """A handful of columns, the same number for every slot: query [S, H, D], keys [S, H, n, D].

    Plain sums on a CPU: there the fused kernel's bits depend on which thread takes a slot.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query[:, :, None], keys, values)[:, :, 0]
    if keys.shape[2] == 1:
        return values[:, :, 0]
    scores = (query[:, :, None] * keys).sum(-1).mul_(query.shape[-1] ** -0.5)  # [S, H, n]
    return (scores.softmax(-1)[..., None] * values).sum(-2)  # [S, H, D]
