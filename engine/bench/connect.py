"""How long a newcomer waits: a prompt prefilled, a kept one restored, the bootstrap tick."""

import argparse
import time

import numpy as np
import torch

from engine.bench.device import (
    KV_TYPES,
    add_model_arguments,
    device_of,
    loop_of,
    median,
    models,
    synchronize,
    tick,
)
from engine.bench.report import save, table
from engine.config import FRAME_SAMPLES, SamplingConfig
from engine.model.graphs import Ticks
from engine.model.loop import Loop
from engine.model.prompt import Voice, build_prompt, prompt_frames


def prefill(loop: Loop, columns: int) -> tuple[list[float], object]:
    """Seconds of each piece of a prompt of so many columns; the state to keep of it."""
    frames = prompt_frames(loop.lm.config, (5,) * (columns - 11))
    prompt, taken = build_prompt(loop.lm.config, Voice(), frames), []
    loop.clear(0)
    embedded = loop.lm.embedding(prompt.columns[:-1].to(loop.device))
    for piece in embedded.split(loop.piece):
        start = time.perf_counter()
        loop.prefill(0, piece)
        synchronize()
        taken.append(time.perf_counter() - start)
    return taken, loop.ready(0, prompt)


def row_of(loop: Loop, ticks: Ticks, columns: int) -> dict:
    prefill(loop, columns)  # compiled and warm
    pieces, ready = prefill(loop, columns)

    def restore() -> None:
        loop.clear(0)
        loop.start(0, ready)

    cached = median(restore, 10)
    loop.sampler.tune(0, SamplingConfig())
    boot = tick(ticks, 1, np.zeros((loop.slots, FRAME_SAMPLES), np.float32))
    return {
        "columns": columns, "prefill_ms": sum(pieces) * 1e3, "longest_piece_ms": max(pieces) * 1e3,
        "kept_mb": ready.bytes / 1e6, "restore_ms": cached * 1e3, "bootstrap_ms": boot * 1e3,
    }  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--columns", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--weights", nargs="+", default=["bf16", "int8"])


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    rows = []
    for weights in args.weights:
        start = time.perf_counter()
        lm, mimi = models(args, weights)
        synchronize()
        made = time.perf_counter() - start
        loop = loop_of(args, lm, mimi, 2, weights if weights in KV_TYPES else "bf16")
        start = time.perf_counter()
        ticks = Ticks(loop, not args.eager)
        synchronize()
        captured = time.perf_counter() - start
        for columns in args.columns:
            head = {"weights_and_kv": weights, "generate_s": made, "capture_s": captured}
            rows.append({**head, **row_of(loop, ticks, columns)})
    print(table(rows))
    print("written:", save("connect", {"device": device_of(args), "rows": rows}, args.json))
    return 0
