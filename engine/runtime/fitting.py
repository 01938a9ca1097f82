"""How much of a device's memory conversations take, and so how many fit beside the weights."""

import torch

from engine.model.loop import Loop
from engine.runtime.capacity import slots_by_memory
from engine.runtime.loader import Checkpoint
from engine.runtime.recogniser import LoadedRecogniser

CPU_SLOTS = 4


def ring_bytes(checkpoint: Checkpoint, kv_dtype: torch.dtype | None) -> int:
    """What one conversation's memory takes, the codec's included."""
    one = Loop(checkpoint.lm, checkpoint.mimi, 1, kv_dtype)
    kept = [one.rings.kv, one.encoder.rings.kv, one.decoder.rings.kv]
    kept += [] if one.rings.scale is None else [one.rings.scale]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def free_bytes(device: torch.device) -> int:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def fitting_slots(
    checkpoint: Checkpoint,
    recogniser: LoadedRecogniser | None = None,
    kv_dtype: torch.dtype | None = None,
) -> int:
    """How many conversations the memory of the device holds beside the weights."""
    device = checkpoint.lm.embedding.table.device
    if device.type != "cuda":
        return CPU_SLOTS
    each = ring_bytes(checkpoint, kv_dtype)
    if recogniser:
        rings = recogniser.stt.rings(1)
        each += rings.kv.numel() * rings.kv.element_size()
    return max(1, slots_by_memory(free_bytes(device), each))


def has_room(checkpoint: Checkpoint, kv_dtype: torch.dtype | None) -> bool:
    """Whether memory is left for the spare state of a renewal."""
    device = checkpoint.lm.embedding.table.device
    return device.type != "cuda" or free_bytes(device) > ring_bytes(checkpoint, kv_dtype)
