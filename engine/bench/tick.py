"""How long a tick takes: slots x filled context x weights x KV, against the floor of bandwidth.

Both halves of a tick with their copies and the host's part between them, by the wall clock; the
floor is what must be read (weights once, each slot's valid keys and values, the codec once) over
the bandwidth of a large copy in the same run.
"""

import argparse
import logging
from typing import Any

import numpy as np
import torch

from engine.bench.device import (
    MIMI_BYTES,
    add_model_arguments,
    bandwidth,
    config_of,
    device_of,
    fill_context,
    hearing_of,
    loop_of,
    models,
    tick,
)
from engine.bench.profiled import launches
from engine.bench.report import save, table
from engine.config import FRAME_SAMPLES
from engine.model.graphs import Ticks
from engine.model.linear import Linear

logger = logging.getLogger(__name__)


def weight_bytes(lm) -> int:
    """Bytes of the products' weights and scales: what a tick reads of the language model."""
    total = 0
    for linear in (m for m in lm.modules() if isinstance(m, Linear)):
        kept = linear.weight if linear.packed is None else linear.packed
        total += kept.numel() * kept.element_size()
        total += 0 if linear.scale is None else linear.scale.numel() * 4
    return total


def kv_bytes(loop, columns: int) -> int:
    """Bytes of one slot's valid keys and values."""
    kv, scale = loop.rings.kv, loop.rings.scale
    layers, _, _, heads, _, width = kv.shape
    each = width * kv.element_size() + (0 if scale is None else 2)
    return 2 * layers * heads * each * min(columns, loop.rings.capacity)


def measure(
    ticks: Ticks, slots: int, columns: int, args: argparse.Namespace, writing: bool = False
) -> np.ndarray:
    """Milliseconds of each tick."""
    loop = ticks.loop
    fill_context(loop, columns)
    rng = np.random.default_rng(0)
    pcm = rng.standard_normal((loop.slots, FRAME_SAMPLES)).astype(np.float32) * 0.1
    for _ in range(args.warm_up):
        tick(ticks, slots, pcm, writing)
    return np.array([tick(ticks, slots, pcm, writing) for _ in range(args.ticks)]) * 1e3


def rows_of(args: argparse.Namespace, lm, mimi, weights: str, speed: float) -> list[dict[str, Any]]:
    rows = []
    for kv in args.kv:
        loop = loop_of(args, lm, mimi, max(args.slots), kv)
        count = launches(loop, 1)
        ticks = Ticks(loop, not args.eager)
        for columns in args.context:
            for slots in args.slots:
                taken = measure(ticks, slots, columns, args)
                read = weight_bytes(lm) + slots * kv_bytes(loop, columns)
                read += 0 if args.small else MIMI_BYTES
                p50, p99 = np.percentile(taken, (50, 99))
                row = {
                    "weights": weights, "kv": kv, "slots": slots, "context": columns,
                    "p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(taken.max()),
                    "launches": count, "read_gb": read / 1e9,
                    "gb_per_s": read / p50 / 1e6, "floor_ms": read / speed * 1e3,
                    "share": read / speed * 1e3 / float(p50),
                }  # fmt: skip
                rows.append(row)
        del ticks, loop
    return rows


def recogniser_rows(args: argparse.Namespace, lm, mimi, weights: str) -> list[dict[str, Any]]:
    """What the recogniser adds to a tick of every bucket, both contexts full."""
    kv, columns, rows = args.kv[-1], max(args.context), []
    loop = loop_of(args, lm, mimi, max(args.slots), kv)
    ticks = Ticks(loop, not args.eager, hearing=hearing_of(args, weights, loop.slots))
    for slots in args.slots:
        plain, heard = (
            float(np.median(measure(ticks, slots, columns, args, writing)))
            for writing in (False, True)
        )
        row = {"weights": weights, "kv": kv, "slots": slots, "context": columns}
        rows.append(row | {"p50_ms": plain, "with_ms": heard, "recogniser_ms": heard - plain})
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--context", type=int, nargs="+", default=[100, 750, 1500, 3000])
    parser.add_argument("--weights", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--kv", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--ticks", type=int, default=500)
    parser.add_argument("--warm-up", type=int, default=50)


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    args.context = [min(c, config_of(args).lm.context - 1) for c in args.context]
    args.context = sorted(set(args.context))
    speed, rows, heard = bandwidth(device_of(args)), [], []
    for weights in args.weights:
        lm, mimi = models(args, weights)
        rows += rows_of(args, lm, mimi, weights, speed)
        heard += recogniser_rows(args, lm, mimi, weights)
        del lm, mimi
    print(table(rows))
    print(f"copy: {speed / 1e9:.0f} GB/s, read and written")
    print("\nwith the recogniser (its weights as the model's, its context full):")
    print(table(heard))
    result = {"device": device_of(args), "copy_gb_per_s": speed / 1e9, "rows": rows}
    result["recogniser"] = heard
    print("written:", save("tick", result, args.json))
    return 0
