"""What a tick is made of: encode, temporal, text, depformer, decode, copies; and their sum."""

import argparse
from collections.abc import Callable

import numpy as np
import torch

from engine.bench.device import (
    add_model_arguments,
    device_of,
    fill_context,
    loop_of,
    median,
    models,
    tick,
)
from engine.bench.profiled import kernels
from engine.bench.report import save, table
from engine.config import FRAME_SAMPLES
from engine.model.graphs import Ticks
from engine.model.loop import Loop
from engine.model.state import Active

UNCAPTURED = ("copies", "text")  # these wait for the host


def stages(loop: Loop) -> dict[str, Callable[[], object]]:
    """Every stage as work of its own; nobody advances, so it can be repeated."""
    device, slots = loop.device, loop.slots
    idle = Active(torch.zeros(slots, dtype=torch.bool, device=device), ())
    busy = Active(torch.ones(slots, dtype=torch.bool, device=device), ())
    if device.type == "cpu":
        busy = Active(busy.mask, tuple(range(slots)))
    pcm = torch.randn(slots, FRAME_SAMPLES, device=device) * 0.1
    codes = torch.zeros(slots, loop.lm.config.codebooks, dtype=torch.int64, device=device)
    column = torch.cat([loop.agent, loop.user_now], 1)
    hidden = torch.randn(slots, loop.lm.config.dim, device=device)
    loop.hidden = hidden.to(loop.lm.embedding.table.dtype)
    text = torch.full((slots,), 3, dtype=torch.int64, device=device)
    hush = torch.zeros(slots, dtype=torch.bool, device=device)

    def temporal() -> None:
        loop.lm.step(loop.lm.embed(column), loop.rings, busy)
        loop.rings.position.sub_(1)
        loop.rings.pushed[:] = [loop.rings.pushed[0] - bool(busy.slots)] * slots

    return {
        "encode": lambda: loop.mimi.encode(pcm, loop.encoder, idle),
        "temporal": temporal,
        "text": lambda: loop.sampler.pick_text(loop.lm.text_logits(loop.hidden)),
        "depformer": lambda: loop.say(text, hush, idle),
        "decode": lambda: loop.mimi.decode(codes, loop.decoder, idle),
        "copies": lambda: (pcm.cpu(), codes.cpu()),
    }


def seconds(work: Callable[[], object], args: argparse.Namespace, graphs: bool) -> float:
    """Median of one stage, from a graph of its own where it can be captured."""
    if not graphs:
        return median(work, args.times)
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return median(graph.replay, args.times)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--context", type=int, default=2999)
    parser.add_argument("--weights", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--kernels", type=int, default=0, help="costliest kernels to print as well")


def rows_of(args: argparse.Namespace, weights: str) -> list[dict]:
    lm, mimi = models(args, weights)
    rows = []
    for slots in args.slots:
        loop = loop_of(args, lm, mimi, slots, "bf16" if weights == "bf16" else "int8")
        context = min(args.context, loop.rings.capacity)
        fill_context(loop, context)
        row = {"weights_and_kv": weights, "slots": slots}
        for name, work in stages(loop).items():
            graphs = (
                loop.device.type == "cuda" and not args.eager and name not in ("copies", "text")
            )
            row[f"{name}_ms"] = seconds(work, args, graphs) * 1e3
        row["sum_ms"] = sum(v for k, v in row.items() if k.endswith("_ms"))
        if args.kernels:
            print(f"{weights}, {slots} slots:\n{table(kernels(loop, slots)[: args.kernels])}")
        fill_context(loop, context)
        ticks, pcm = Ticks(loop, not args.eager), np.zeros((slots, FRAME_SAMPLES), np.float32)
        row["tick_ms"] = (
            float(np.median([tick(ticks, slots, pcm) for _ in range(args.times)])) * 1e3
        )
        rows.append(row)
    return rows


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    rows = [row for weights in args.weights for row in rows_of(args, weights)]
    print(table(rows))
    print("written:", save("stages", {"device": device_of(args), "rows": rows}, args.json))
    return 0
