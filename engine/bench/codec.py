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
from engine.bench.report import save, table
from engine.model.config import ModelConfig
from engine.runtime.generated import FULL, SMALL, generated

REPLAYS = 20  # of a layer in one graph
SHORT = {"BM": (16,), "BN": (16, 32), "BK": (32, 64), "num_warps": (4,)}
LONG = {"BM": (32, 64), "BN": (32, 64), "BK": (32,), "num_warps": (4,)}
SPLITS = (1, 2, 4, 8, 16)


def candidates(outputs: int, n: int, k: int, precisions: list[str]) -> list[dict]:
    """Tiles to try for a layer of so many columns, outputs and inputs."""
    from engine.model.kernels_conv import LONG_COLUMNS

    axes = LONG if outputs >= LONG_COLUMNS else SHORT
    found = []
    for values in itertools.product(*axes.values(), precisions):
        cut = dict(zip((*axes, "PRECISION"), values, strict=True))
        fits = cut["BK"] <= max(32, k) and cut["BN"] <= max(16, n)
        found += [cut | {"num_stages": 3}] if fits else []
    return found


def codec():
    """The full codec with generated weights, on the GPU."""
    return generated(ModelConfig(SMALL.lm, FULL.mimi), "cuda")[1]


def layers(mimi, slots: int) -> list[tuple[tuple[int, int, int], object]]:
    """((columns, outputs, inputs), launch) of every different layer of one frame."""
    from engine.model import fast_codec, kernels_conv
    from engine.model.state import Active

    seen, real = {}, kernels_conv.convolve

    def noting(x, by, now, past=None, **more):
        shape = (x.shape[-1] // by.stride, len(by.weight), by.weight.shape[1])
        key = (*shape, by.kernel, tuple(sorted(k for k, v in more.items() if v is not None)))
        seen.setdefault(key, (shape, lambda: real(x, by, now, past, **more)))
        return real(x, by, now, past, **more)

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


def trials(shape: tuple[int, int, int], precisions: list[str]) -> list[dict]:
    """Every candidate of a layer with every split that leaves a program some work."""
    cuts = candidates(*shape, precisions)
    return [
        cut | {"splits": splits}
        for cut in cuts
        for splits in SPLITS
        if splits == 1 or splits * cut["BK"] <= shape[2]
    ]


def tried(launch, cut: dict) -> None:
    """Launch a layer cut this way."""
    from engine.model import kernels_conv

    kernels_conv.PRECISION = cut["PRECISION"]
    kernels_conv.tile = lambda *_: {k: v for k, v in cut.items() if k != "PRECISION"}
    launch()


@torch.inference_mode()
def compile_some(worker: int, workers: int, precisions: list[str]) -> None:
    """A worker's share of what must be compiled."""
    from triton.runtime.errors import OutOfResources

    mimi = codec()
    jobs = [
        (launch, cut | {"splits": splits})
        for shape, launch in layers(mimi, 2)
        for cut in candidates(*shape, precisions)
        for splits in (1, 2)
    ]
    for launch, cut in jobs[worker::workers]:
        try:
            tried(launch, cut)
        except OutOfResources:
            continue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precisions", nargs="+", default=["tf32x3"])
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--best", type=int, default=3, help="tiles to print per layer")
    parser.add_argument("--json")


@torch.inference_mode()
def sweep(slots: int, precisions: list[str], best: int) -> list[list[dict]]:
    """A layer's rows, one a candidate, the fastest first; printed as they come."""
    from triton.runtime.errors import OutOfResources

    mimi, rows = codec(), []
    for shape, launch in layers(mimi, slots):
        some = []
        for cut in trials(shape, precisions):
            try:
                taken = seconds(lambda cut=cut, launch=launch: tried(launch, cut))
            except OutOfResources:
                continue
            names = dict(zip(("columns", "n", "k"), shape, strict=True))
            some.append({"slots": slots, **names, **cut, "us": taken * 1e6})
        rows.append(sorted(some, key=lambda row: row["us"]))
        print(table(rows[-1][:best]), flush=True)
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
        print(f"{slots} slots: {best:.0f} us for one of each layer at its best")
    print("written:", save("codec", {"rows": [r for rows in found for r in rows]}, args.json))
    return 0
