"""What a tick is made of: encode, temporal, text, depformer, decode, copies; and their sum.

Every stage calls what the tick calls, for slots that all advance: an idle slot would cost less.
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from engine.bench.device import (
    Row,
    add_model_arguments,
    beside,
    check_room,
    config_of,
    device_of,
    fill_context,
    kernels,
    loop_of,
    median,
    models,
    stand,
    synchronize,
    unless_full,
)
from engine.bench.report import BenchRecord, add_precisions, positive, table, zero_or_more
from engine.bench.tick import measure
from engine.config import FRAME_SAMPLES, PAD
from engine.model.gpu.graphs import Block, Ticks
from engine.model.lm import LM
from engine.model.loop import Loop
from engine.model.mimi import Mimi
from engine.model.transformer import Active
from engine.weights.sizing import Precision

SMALL_OPTIONS = {"slots": [1], "ticks": 3}
UNCAPTURED = ("copies",)  # these wait for the host
Work = Callable[[], object]


def stages(loop: Loop) -> dict[str, Work]:
    """Every stage as work of its own; `stand` takes back what it pushes."""
    device, slots = loop.device, loop.slots
    everyone = torch.ones(slots, dtype=torch.bool, device=device)
    # As in `Ticks`: on a GPU only the device is told, so that a graph can be replayed.
    busy = Active(everyone, tuple(range(slots)) if device.type == "cpu" else ())
    pcm = torch.randn(slots, FRAME_SAMPLES, device=device) * 0.1
    codes = torch.zeros(slots, loop.lm.config.codebooks, dtype=torch.int64, device=device)
    column = torch.cat([loop.agent, loop.user_now], 1)
    loop.hidden.normal_()
    text = torch.full((slots,), PAD, dtype=torch.int64, device=device)
    hush = torch.zeros(slots, dtype=torch.bool, device=device)
    return {
        "encode": lambda: loop.mimi.encode(pcm, loop.encoder, busy),
        "temporal": lambda: loop.lm.step(loop.lm.embed(column), loop.rings, busy),
        "text": loop.pick_text,
        "depformer": lambda: loop.step_depth(text, hush, busy),
        "decode": lambda: loop.mimi.decode(codes, loop.decoder, busy),
        "copies": copies(loop),
    }


def copies(loop: Loop) -> Work:
    """What both halves of a tick carry up and down: samples, draws, tokens, from pinned memory."""
    slots, q, nobody = loop.slots, loop.lm.config.codebooks, loop.active([])

    def block(columns: int, dtype: torch.dtype = torch.float32) -> Block:
        return Block(slots, columns, dtype, loop.device)

    up, up_text = block(FRAME_SAMPLES + 3), block(2, torch.int64)
    heard, spoken = block(1 + q), block(FRAME_SAMPLES + q)

    def carry() -> None:
        up.send(slots)
        loop.sampler.draw(nobody)  # drawn while the tick before ran: here they are only copied
        heard.host.copy_(heard.device, non_blocking=True)
        synchronize()
        up_text.send(slots)
        spoken.host.copy_(spoken.device, non_blocking=True)

    return carry


def seconds(work: Work, before: Work, times: int, graph: bool) -> float:
    """Median of one stage, from a graph of its own where it can be captured."""
    if not graph:
        return median(work, times, before)
    work()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        work()
    return median(captured.replay, times, before)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 8, 16])
    parser.add_argument("--context", type=positive, default=2999)
    # as `measure` reads it
    parser.add_argument("--times", dest="ticks", type=positive, default=30)
    parser.add_argument(
        "--kernels", type=zero_or_more, default=0, help="costliest kernels to print as well"
    )
    add_precisions(parser)
    parser.set_defaults(warm_up=2)


def row_of(args: argparse.Namespace, lm: LM, mimi: Mimi, mode: Precision, slots: int) -> Row:
    """Milliseconds of every stage, of all of them, and of the tick that they make."""
    loop = loop_of(args, lm, mimi, slots, mode.kv)
    fill_context(loop, args.context)
    before, row = partial(stand, loop, args.context), {}
    for name, work in stages(loop).items():
        graph = loop.device.type == "cuda" and not args.eager and name not in UNCAPTURED
        row[f"{name}_ms"] = seconds(work, before, args.ticks, graph) * 1e3
    row["sum_ms"] = sum(row.values())
    if args.kernels:
        print(f"{mode}, {slots} slots:\n{table(kernels(loop, slots)[: args.kernels])}")
    ticks = Ticks(loop, not args.eager)
    return row | {"tick_ms": float(np.median(measure(ticks, slots, args.context, args)[0]))}


def of_weights(args: argparse.Namespace, mode: Precision, record: BenchRecord) -> None:
    """One row a number of slots."""
    lm, mimi = models(args, mode.weights)
    for slots in args.slots:
        head = {"weights_and_kv": mode.weights, "slots": slots}
        with unless_full(head, record.add):
            check_room(beside(lm, mimi, mode), slots)
            record.add(head | row_of(args, lm, mimi, mode, slots))


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    args.context = min(args.context, config_of(args).lm.context - 1)
    record = BenchRecord("stages", args.json, device=device_of(args), rows=[])
    for weights in args.weights:
        with unless_full({"weights_and_kv": weights}, record.add):
            of_weights(args, Precision(weights, weights), record)
    print(table(record.result["rows"]))
    print("written:", record.save())
    return 0
