"""Where the memory goes: weights, rings, codec, graphs, and the peak, for a number of slots."""

import argparse

import torch

from engine.bench.device import (
    add_model_arguments,
    bytes_of,
    device_of,
    loop_of,
    models,
    release,
    synchronize,
)
from engine.bench.report import save, table
from engine.model.graphs import Ticks


def allocated() -> int:
    """Bytes that tensors hold on the GPU; 0 without one."""
    synchronize()
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def items(args: argparse.Namespace, weights: str, kv: str) -> dict:
    """Bytes by item for one precision."""
    release()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    lm, mimi = models(args, weights)
    loop = loop_of(args, lm, mimi, args.slots, kv)
    rings = loop.rings
    ring_bytes = bytes_of([rings.kv] if rings.scale is None else [rings.kv, rings.scale])
    codec = [*loop.encoder.kept(), *loop.decoder.kept()]
    before = allocated()
    ticks = Ticks(loop, not args.eager)
    release()
    row = {
        "weights": weights, "kv": kv, "slots": args.slots,
        "lm_gb": parameter_bytes(lm) / 1e9, "mimi_gb": parameter_bytes(mimi) / 1e9,
        "rings_gb": ring_bytes / 1e9, "codec_state_gb": bytes_of(codec) / 1e9,
        "graphs_gb": (allocated() - before) / 1e9,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0,
        "buckets": len(ticks.buckets),
    }  # fmt: skip
    return row


def parameter_bytes(model) -> int:
    kept = [*model.parameters()]
    for module in model.modules():
        for name in ("packed", "scale"):
            value = getattr(module, name, None)
            if value is not None:
                kept.append(value)
    return sum(t.numel() * t.element_size() for t in kept)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--weights", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--kv", nargs="+", default=["bf16", "int8"])


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    rows = [items(args, weights, kv) for weights in args.weights for kv in args.kv]
    print(table(rows))
    print("written:", save("memory", {"device": device_of(args), "rows": rows}, args.json))
    return 0
