"""The memory that weights and conversations take, and the number of conversations that fit.

Arithmetic over the loaded models, in the precision they have and in the others; nothing here knows
a card's name. How fast a tick is does not count here (engine/runtime/load.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from engine.errors import ModelError
from engine.model.lm import Temporal
from engine.model.transformer import LANES, Linear, Rings, Rotation
from engine.weights.loading import Checkpoint, LoadedRecogniser

GIB = 1 << 30
RESERVE_BYTES = int(0.9 * GIB)  # kept back: context, libraries, fragmentation
WORK_BYTES = int(0.45 * GIB)  # graphs, activations, staging
MANY, MOST_SLOTS = 16, 96  # the latter: the largest bucket of gpu/graphs.py
SCALE_BYTES = 4  # of every output of an int8 product
LEAST_SPARE = 400  # columns: a persona of 150 and some 15 s of the call, with what comes meanwhile


def slots_by_memory(free_bytes: int, slot_bytes: int, most: int = MOST_SLOTS) -> int:
    """Slots whose rings fit into free memory beside the reserve; 0: not even one.

    Beyond MANY one slot's memory is left for renewals.
    """
    fit = (free_bytes - RESERVE_BYTES - WORK_BYTES) // slot_bytes
    return max(0, min(most, fit if fit <= MANY else max(MANY, fit - 1)))


@dataclass(frozen=True, slots=True)
class Precision:
    """A precision of the weights, and one of keys and values."""

    weights: str = "bf16"
    kv: str = "bf16"

    def __str__(self) -> str:
        return f"weights {self.weights}, KV {self.kv}"

    @property
    def kv_dtype(self) -> torch.dtype | None:
        return torch.int8 if self.kv == "int8" else None


PRECISIONS = tuple(Precision(w, kv) for w in ("bf16", "int8") for kv in ("bf16", "int8"))


def free_bytes(device: torch.device) -> int | None:
    """Of a GPU; None on a CPU, whose memory is not counted."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


class Memory:
    """A device with `free` bytes beside the loaded weights, which are in the precision `mode`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        recogniser: LoadedRecogniser | None,
        mode: Precision,
        free: int,
    ) -> None:
        self.mode, self._free = mode, free
        self._lm, self._stt = checkpoint.lm, recogniser.stt if recogniser else None
        streams = checkpoint.mimi.encoder_stream(1), checkpoint.mimi.decoder_stream(1)
        self._codec = sum(bytes_of(s.tensors()) for s in streams)

    def slots(self, mode: Precision | None = None, most: int = MOST_SLOTS) -> int:
        """The number of conversations that fit, or would fit in another mode; `most` at most."""
        mode, free = mode or self.mode, self._free
        if mode.weights != self.mode.weights:  # a recogniser stays as it is
            free += product_bytes(self._lm) - product_bytes(self._lm, mode.weights == "int8")
        return slots_by_memory(free, self.slot_bytes(mode), most)

    def left(self, slots: int) -> int:
        """Bytes that are left beside a number of conversations and the reserve."""
        return self._free - RESERVE_BYTES - WORK_BYTES - slots * self.slot_bytes(self.mode)

    def slot_bytes(self, mode: Precision) -> int:
        """What one conversation keeps: all its rings, and the codec's past."""
        recogniser = ring_bytes(self._stt, None) if self._stt else 0
        return ring_bytes(self._lm, mode.kv_dtype) + recogniser + self._codec

    def spare(self, left: float) -> tuple[int, int]:
        """(columns, bytes) of the largest spare ring in `left` bytes; (0, 0): it is too small."""
        kind, whole = self.mode.kv_dtype, ring_bytes(self._lm, self.mode.kv_dtype)
        if whole <= left:
            return self._lm.window, whole
        each = ring_bytes(self._lm, kind, LANES - 1) / LANES  # a ring has one column more
        columns = int(left / each) // LANES * LANES - 1
        if columns < LEAST_SPARE:
            return 0, 0
        return columns, ring_bytes(self._lm, kind, columns)

    def check(self, asked: int) -> None:
        """Raises ModelError unless `asked` conversations fit (0: one at least)."""
        wanted = max(1, asked)
        fits = self.slots(most=wanted)
        if fits >= wanted:
            return
        others = [
            f"{m} ({self.slots(m, wanted)})" for m in PRECISIONS if self.slots(m, wanted) > fits
        ]
        advice = [f"--slots {fits}"] if fits else []
        advice += [f"another precision: {'; '.join(others)}"] if others else []
        raise ModelError(
            f"slots is {asked or 'as many as fit'}, but {self._free / 1e9:.1f} GB beside the "
            f"weights hold {fits} ({self.mode}): {self.slot_bytes(self.mode) / 1e9:.2f} GB each "
            f"and a reserve; use {' or '.join([*advice, 'a larger GPU'])}"
        )


def product_bytes(model: Temporal, int8: bool | None = None) -> int:
    """Bytes of a model's products: as they are (None), as int8 with scales, or plain."""
    plain, total = model.embedding.table.element_size(), 0
    for product in products(model):
        outputs, numbers = product.weight.shape[0], product.weight.numel()
        quantised = product.scale is not None if int8 is None else int8
        total += numbers + outputs * SCALE_BYTES if quantised else numbers * plain
    return total


def products(model: nn.Module) -> Iterable[Linear]:
    return (m for m in model.modules() if isinstance(m, Linear) and m.weight is not None)


def ring_bytes(model: Temporal, kv_dtype: torch.dtype | None, columns: int = 0) -> int:
    """Bytes of a ring of `columns` (0: a conversation's); nothing is allocated."""
    table, layers = model.embedding.table, model.transformer.layers
    heads = layers[0].self_attn.heads
    rotation = Rotation(table.shape[1] // heads, 1.0, torch.device("meta"))
    one = Rings(len(layers), 1, heads, rotation, columns or model.window, kv_dtype or table.dtype)
    return bytes_of(one.tensors())


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
