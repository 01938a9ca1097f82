"""How long a tick takes: slots x filled context x weights x KV, against the floor of bandwidth.

Both halves of a tick with their copies and the host's part between them, by the wall clock; on a
GPU both halves by its own events beside it (`device_ms`, with the wait for the host's work). The
floor is what must be read (weights once, each slot's valid keys and values, the codec once) over
the bandwidth of a large copy in the same run.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np
import torch

from engine.bench.device import (
    MIMI_BYTES,
    Marks,
    Row,
    add_model_arguments,
    bandwidth,
    beside,
    check_room,
    config_of,
    device_of,
    fill_context,
    hearing_of,
    launches,
    loop_of,
    models,
    recogniser_of,
    stand,
    synchronize,
    tick,
    unless_full,
)
from engine.bench.report import BenchRecord, add_precisions, positive, table, zero_or_more
from engine.config import FRAME_SAMPLES
from engine.model.gpu.graphs import Ticks
from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.model.stt import Recogniser
from engine.model.transformer import Linear, Rings
from engine.weights.sizing import Precision

SMALL_OPTIONS = {"slots": [1, 2], "context": [100], "ticks": 5, "warm_up": 1}


def weight_bytes(lm) -> int:
    """Bytes of the products' weights and scales: what a tick reads of the language model."""
    total = 0
    for linear in (m for m in lm.modules() if isinstance(m, Linear)):
        kept = linear.weight if linear.packed is None else linear.packed
        total += kept.numel() * kept.element_size()
        total += 0 if linear.scale is None else linear.scale.numel() * 4
    return total


def kv_bytes(rings: Rings, columns: int) -> int:
    """Bytes of one slot's valid keys and values."""
    kv, scale = rings.kv, rings.scale
    layers, _, _, heads, _, width = kv.shape
    each = width * kv.element_size() + (0 if scale is None else 2)
    return 2 * layers * heads * each * min(columns, rings.capacity)


def read_bytes(lm: LM, rings: Rings, slots: int, columns: int, codec: float = MIMI_BYTES) -> float:
    """What a tick must read: the floor is these over the bandwidth."""
    return weight_bytes(lm) + codec + slots * kv_bytes(rings, columns)


def measure(
    ticks: Ticks, slots: int, columns: int, args: argparse.Namespace, writing: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Milliseconds of each tick by the wall clock, and by a GPU's events.

    All of them read so many columns: what they push is taken back.
    """
    loop = ticks.loop
    fill_context(loop, columns)
    rng = np.random.default_rng(0)
    pcm = rng.standard_normal((loop.slots, FRAME_SAMPLES)).astype(np.float32) * 0.1

    def timed() -> tuple[float, float]:
        stand(loop, columns)
        synchronize()  # the tick does not wait for it
        if not ticks.cuda:
            return tick(ticks, slots, pcm, writing) * 1e3, 0.0
        marks = Marks()
        return tick(ticks, slots, pcm, writing, marks) * 1e3, marks.ms()

    for _ in range(args.warm_up):
        timed()
    wall, device = np.array([timed() for _ in range(args.ticks)]).T
    return wall, device if ticks.cuda else None


def rows_of(
    args: argparse.Namespace, lm: LM, mimi: Mimi, kv: str, slots: int, speed: float
) -> Iterator[Row]:
    """One row a context."""
    loop = loop_of(args, lm, mimi, slots, kv)
    count = launches(loop, slots)
    ticks = Ticks(loop, not args.eager)
    for columns in args.context:
        taken, device = measure(ticks, slots, columns, args)
        read = read_bytes(lm, loop.rings, slots, columns, 0 if args.small else MIMI_BYTES)
        p50, p99 = np.percentile(taken, (50, 99))
        yield {
            "context": columns,
            "p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(taken.max()),
            **({} if device is None else {"device_ms": float(np.median(device))}),
            "launches": count, "read_gb": read / 1e9,
            "gb_per_s": read / p50 / 1e6, "floor_ms": read / speed * 1e3,
            "share": read / speed * 1e3 / float(p50),
        }  # fmt: skip


def recogniser_row(
    args: argparse.Namespace, lm: LM, mimi: Mimi, stt: Recogniser, kv: str, slots: int
) -> Row:
    """What the recogniser adds to a tick, both contexts full."""
    loop, columns = loop_of(args, lm, mimi, slots, kv), max(args.context)
    ticks = Ticks(loop, not args.eager, hearing=hearing_of(stt, slots))
    plain, heard = (
        float(np.median(measure(ticks, slots, columns, args, writing)[0]))
        for writing in (False, True)
    )
    return {
        "context": columns, "p50_ms": plain, "with_ms": heard, "recogniser_ms": heard - plain
    }  # fmt: skip


def of_weights(args: argparse.Namespace, weights: str, speed: float, record: BenchRecord) -> None:
    """Every row of one precision of the weights."""
    lm, mimi = models(args, weights)
    for kv, slots in product(args.kv, args.slots):
        head = {"weights": weights, "kv": kv, "slots": slots}
        with unless_full(head, record.add):
            check_room(beside(lm, mimi, Precision(weights, kv)), slots)
            for row in rows_of(args, lm, mimi, kv, slots, speed):
                record.add(head | row)
    head, keep = {"weights": weights, "kv": args.kv[-1]}, partial(record.add, to="recogniser")
    with unless_full(head, keep):
        heard_of_weights(args, lm, mimi, head, keep)


def heard_of_weights(
    args: argparse.Namespace, lm: LM, mimi: Mimi, head: Row, keep: Callable[[Row], None]
) -> None:
    """A recogniser of that precision too, beside as many slots as each row asks for."""
    stt, mode = recogniser_of(args, head["weights"]), Precision(**head)
    for slots in args.slots:
        one = {**head, "slots": slots}
        with unless_full(one, keep):
            check_room(beside(lm, mimi, mode, stt), slots)
            keep(one | recogniser_row(args, lm, mimi, stt, mode.kv, slots))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--context", type=positive, nargs="+", default=[100, 750, 1500, 3000])
    parser.add_argument("--ticks", type=positive, default=500)
    parser.add_argument("--warm-up", type=zero_or_more, default=50)
    add_precisions(parser, ("weights", "kv"))


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    most = config_of(args).lm.context - 1
    args.context = sorted({min(columns, most) for columns in args.context})
    device = device_of(args)
    speed = bandwidth(device)
    record = BenchRecord(
        "tick", args.json, device=device, copy_gb_per_s=speed / 1e9, rows=[], recogniser=[]
    )
    for weights in args.weights:
        with unless_full({"weights": weights}, record.add):
            of_weights(args, weights, speed, record)
    print(table(record.result["rows"]))
    print(f"copy: {speed / 1e9:.0f} GB/s, read and written")
    print("\nwith the recogniser (its weights as the model's, its context full):")
    print(table(record.result["recogniser"]))
    print("written:", record.save())
    return 0
