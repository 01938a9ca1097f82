"""Where the memory goes: weights, rings, codec, graphs; the peaks of loading and of serving.

Beside each size stands what the performance specification predicted. Serving is ticks of all slots
and a piece of a prompt behind full contexts; kept prompts and a renewal's spare state come on top.
"""

import argparse
from itertools import product

import numpy as np
import torch

from engine.bench.device import (
    Row,
    add_model_arguments,
    beside,
    bytes_of,
    check_room,
    device_of,
    fill_context,
    loop_of,
    models,
    release,
    synchronize,
    tick,
    unless_full,
)
from engine.bench.report import BenchRecord, add_precisions, table, zero_or_more
from engine.config import FRAME_SAMPLES
from engine.model.gpu.graphs import Ticks
from engine.runtime.personaplex import CPU_SLOTS
from engine.weights.sizing import GIB, WORK_BYTES, Memory, Precision

# performance.md 1.2 and 1.5 of the specification, for the public shapes on a GPU
LM_BYTES = {"bf16": 14.32 * GIB, "int8": 7.45 * GIB}
CODEC_BYTES = 0.36 * GIB
RING_BYTES = {"bf16": 1.465 * GIB, "int8": 0.744 * GIB}  # of one conversation
STATE_BYTES = 24e6  # of one conversation: the codec's keys and values, and the rest
SERVING_TICKS = 3
SMALL_OPTIONS = {"slots": 2}


def predicted(mode: Precision, slots: int) -> dict[str, float]:
    """Bytes by item."""
    sizes = {
        "language model": LM_BYTES[mode.weights], "codec": CODEC_BYTES,
        "rings": slots * RING_BYTES[mode.kv], "codec's state": slots * STATE_BYTES,
        "graphs": WORK_BYTES,
    }  # fmt: skip
    return sizes | {"peak of serving": sum(sizes.values())}


def in_use() -> int:
    """Bytes of the GPU that are taken; 0 without one.

    A graph's intermediates lie in a private pool and count as free with the allocator.
    """
    release()
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def begin_peak() -> None:
    release()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> int:
    """The most bytes that PyTorch has held of the GPU since `begin_peak`; 0 without one."""
    synchronize()
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def parameter_bytes(model) -> int:
    kept = [*model.parameters()]
    for module in model.modules():
        for name in ("packed", "scale"):
            value = getattr(module, name, None)
            if value is not None:
                kept.append(value)
    return sum(t.numel() * t.element_size() for t in kept)


def slots_of(args: argparse.Namespace, memory: Memory | None) -> int:
    """How many are asked for, or as many as fit. Raises torch.OutOfMemoryError."""
    slots = args.slots or (max(1, memory.slots()) if memory else CPU_SLOTS)
    check_room(memory, slots)
    return slots


def serve(ticks: Ticks) -> None:
    """What a full server does, so that the peak is its."""
    loop = ticks.loop
    pcm = np.zeros((loop.slots, FRAME_SAMPLES), np.float32)
    fill_context(loop, loop.rings.capacity)
    for _ in range(SERVING_TICKS):
        tick(ticks, loop.slots, pcm)
    table = loop.lm.embedding.table
    loop.rings.set_position(0, max(0, loop.rings.capacity - loop.piece))
    ticks.prefill.run(0, table.new_zeros(loop.piece, table.shape[1]))


def sizes(args: argparse.Namespace, mode: Precision) -> tuple[int, dict[str, int]]:
    """Slots, and bytes by item for one precision; a CPU has only those that tensors tell."""
    begin_peak()
    lm, mimi = models(args, mode.weights)
    loading = peak()
    slots = slots_of(args, beside(lm, mimi, mode))
    begin_peak()
    loop = loop_of(args, lm, mimi, slots, mode.kv)
    before = in_use()
    ticks = Ticks(loop, not args.eager)
    graphs = in_use() - before
    serve(ticks)
    rings, scale = loop.rings.kv, loop.rings.scale
    found = {
        "language model": parameter_bytes(lm), "codec": parameter_bytes(mimi),
        "rings": bytes_of([rings] if scale is None else [rings, scale]),
        "codec's state": bytes_of([*loop.encoder.tensors(), *loop.decoder.tensors()]),
        "graphs": graphs, "peak of loading": loading, "peak of serving": peak(),
    }  # fmt: skip
    return slots, {item: size for item, size in found.items() if size or ticks.cuda}


def rows_of(args: argparse.Namespace, mode: Precision) -> list[Row]:
    """One row an item."""
    slots, measured = sizes(args, mode)
    public = device_of(args) == "cuda" and not args.small
    foretold = predicted(mode, slots) if public else {}
    rows = []
    for item, size in measured.items():
        row = {"slots": slots, "item": item, "measured_gb": size / 1e9}
        rows.append(row | ({"predicted_gb": foretold[item] / 1e9} if item in foretold else {}))
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--slots", type=zero_or_more, default=0, help="0: as many as fit, at most 16"
    )
    add_precisions(parser, ("weights", "kv"))


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    record = BenchRecord("memory", args.json, device=device_of(args), rows=[])
    for weights, kv in product(args.weights, args.kv):
        head = {"weights": weights, "kv": kv}
        with unless_full(head, record.add):
            for row in rows_of(args, Precision(weights, kv)):
                record.add(head | row)
    print(table(record.result["rows"]))
    print("written:", record.save())
    return 0
