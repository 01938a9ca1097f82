"""Sweep of the codec's tiles over its layers: where `kernels_conv.tile` comes from.

Each layer once per candidate, replayed from a graph, for 1 and for many slots; a table of the
fastest. Compiling is what takes time: `--workers` processes fill the compiler's cache before.
"""

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from engine.bench.device import median
from engine.bench.report import positive, save, table
from engine.model.config import ModelConfig
from engine.weights.generated import FULL, SMALL, generated

REPLAYS = 20  # of a layer in one graph
SHORT = {"BM": (16,), "BN": (32,), "BK": (32, 64), "num_warps": (4,)}
LONG = {"BM": (32, 64, 128), "BN": (32, 64), "BK": (32,), "num_warps": (4,)}
SPLITS = (1, 2, 4, 8, 16)


def candidates(outputs: int, n: int, k: int, precisions: list[str]) -> list[dict]:
    """Tiles to try for a layer of so many columns, outputs and inputs."""
    from engine.model.gpu.kernels_codec import LONG_COLUMNS

    axes = LONG if outputs >= LONG_COLUMNS else SHORT
    found = []
    for values in itertools.product(*axes.values(), precisions):
        cut = dict(zip((*axes, "PRECISION"), values, strict=True))
        found.append(cut | {"num_stages": 3, "BN": 16 if n <= 16 else cut["BN"]})
    most = 4 if axes is LONG else 16
    return [
        cut | {"splits": splits}
        for cut in found
        for splits in SPLITS
        if splits <= most and (splits == 1 or splits * cut["BK"] <= k)
    ]


def codec():
    """The full codec with generated weights, on the GPU."""
    return generated(ModelConfig(SMALL.lm, FULL.mimi), "cuda")[1]


def layers(mimi, slots: int) -> list[tuple[tuple[int, int, int], object]]:
    """((columns, outputs, inputs), launch) of every different layer of one frame."""
    from engine.model.gpu import fused as fast_codec
    from engine.model.gpu import kernels_codec as kernels_conv
    from engine.model.transformer import Active

    seen, real = {}, kernels_conv.convolve

    def noting(x, by, now, past=None, rows=False, **more):
        columns = x.shape[-1] // by.stride
        shape = (columns, len(by.weight), by.weight.shape[1])
        key = (*shape, by.kernel, tuple(sorted(k for k, v in more.items() if v is not None)))
        seen.setdefault(key, (shape, lambda: real(x, by, now, past, rows=rows, **more)))
        out = torch.randn(slots, columns * by.shuffle, by.outputs, device="cuda")
        return out.transpose(1, 2) if rows else out.transpose(1, 2).contiguous()

    active = Active.of([], slots, torch.device("cuda"))
    fast_codec.convolve = noting
    encoder, decoder = mimi.encoder_stream(slots), mimi.decoder_stream(slots)
    codes = mimi.encode(torch.randn(slots, 1920, device="cuda"), encoder, active)
    mimi.decode(codes, decoder, active)
    fast_codec.convolve = real
    return list(seen.values())


def seconds(launch) -> float:
    launch()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(REPLAYS):
            launch()
    return median(graph.replay, 3) / REPLAYS


def tried(launch, cut: dict) -> None:
    """Launch a layer cut this way."""
    from engine.model.gpu import kernels_codec as kernels_conv

    kernels_conv.PRECISION = cut["PRECISION"]
    kernels_conv.tile = lambda *_: {k: v for k, v in cut.items() if k != "PRECISION"}
    launch()


@torch.inference_mode()
def compile_some(worker: int, workers: int, precisions: list[str]) -> None:
    """A worker's share of what must be compiled."""
    from triton.runtime.errors import OutOfResources

    mimi = codec()
    jobs = [(go, cut) for shape, go in layers(mimi, 2) for cut in candidates(*shape, precisions)]
    for launch, cut in jobs[worker::workers]:
        try:
            tried(launch, cut)
        except OutOfResources:
            continue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 16])
    parser.add_argument("--precisions", nargs="+", default=["tf32x3"])
    parser.add_argument("--workers", type=positive, default=14)
    parser.add_argument("--best", type=positive, default=3, help="tiles to print per layer")
    parser.add_argument("--json")


@torch.inference_mode()
def sweep(slots: int, precisions: list[str], best: int) -> list[list[dict]]:
    """A layer's rows, one a candidate, the fastest first; printed as they come."""
    from triton.runtime.errors import OutOfResources

    from engine.model.gpu import kernels_codec as kernels_conv

    mimi, rows, usual = codec(), [], kernels_conv.tile
    for shape, launch in layers(mimi, slots):
        some, now = [], usual(*shape) | {"PRECISION": "tf32x3"}
        for cut in [now, *candidates(*shape, precisions)]:
            try:
                taken = seconds(lambda cut=cut, launch=launch: tried(launch, cut))
            except OutOfResources:
                continue
            names = dict(zip(("columns", "n", "k"), shape, strict=True))
            mark = "now" if cut is now else ""
            some.append({"slots": slots, **names, **cut, "us": taken * 1e6, "mark": mark})
        rows.append(sorted(some, key=lambda row: row["us"]))
        print(table(rows[-1][:best]), flush=True)
    kernels_conv.tile = usual
    return rows


def run(args: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("bench codec sweeps GPU kernels: there is no CUDA device here")
        return 0
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        jobs = [
            pool.submit(compile_some, i, args.workers, args.precisions) for i in range(args.workers)
        ]
        for job in jobs:
            job.result()
    found = [rows for slots in args.slots for rows in sweep(slots, args.precisions, args.best)]
    for slots in args.slots:
        best = sum(rows[0]["us"] for rows in found if rows[0]["slots"] == slots)
        now = sum(r["us"] for rows in found for r in rows if r["slots"] == slots and r["mark"])
        print(f"{slots} slots, one of each layer: {best:.0f} us at its best, {now:.0f} now")
    print("written:", save("codec", {"rows": [r for rows in found for r in rows]}, args.json))
    return 0
