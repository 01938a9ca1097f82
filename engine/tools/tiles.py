"""Sweeps of the kernels' tiles over the model's shapes: where the tables in `model/gpu` come from.

`products` sweeps the matrix products of the language model (`kernels.py`), `codec` the codec's
convolutions (`kernels_codec.py`). Each shape runs once per candidate, replayed from a CUDA graph;
the fastest are printed. Weights of products rotate through more memory than the cache holds.
"""

import argparse
import itertools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
import torch.nn.functional as F

from engine.bench.device import Row, time_work
from engine.bench.report import positive, save, table
from engine.config import FRAME_SAMPLES
from engine.model.config import ModelConfig
from engine.model.gpu.kernels import Tile
from engine.model.mimi import Mimi
from engine.model.transformer import Active, quantise_weight
from engine.weights.generated import FULL, SMALL, generated

SLOTS = {"products": [8], "codec": [1, 16]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kernel", choices=list(SLOTS), help="what to sweep")
    parser.add_argument("--slots", type=positive, nargs="+", help="rows of a product; 8, or 1 16")
    parser.add_argument("--best", type=positive, default=3, help="tiles to print per shape")
    parser.add_argument("--precisions", nargs="+", default=["tf32x3"], help="of the codec")
    parser.add_argument(
        "--workers", type=positive, default=14, help="processes that compile the codec's kernels"
    )
    parser.add_argument("--json", help="where to write the result")


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("bench tiles sweeps GPU kernels: there is no CUDA device here")
        return 0
    slots = args.slots or SLOTS[args.kernel]
    rows = sweep_products(slots, args) if args.kernel == "products" else sweep_codec(slots, args)
    print("written:", save(f"tiles-{args.kernel}", {"rows": rows}, args.json))
    return 0


# -- products --------------------------------------------------------------------------------------

SHAPES = (  # outputs (of one half, if gated), inputs, gated, partial
    (12288, 4096, False, False),
    (4096, 4096, False, True),
    (11264, 4096, True, False),
    (4096, 11264, False, True),
    (32000, 4096, False, False),
    (3072, 1024, False, False),
    (1024, 1024, False, True),
    (2816, 1024, True, False),
    (1024, 2816, False, True),
    (2048, 1024, False, False),
    (8192, 4096, False, False),
)
ROTATED_BYTES = 600_000_000
MAX_COPIES = 48
LEAST_BLOCKS = 60  # fewer programs than this leave most of a GPU idle


def sweep_products(slots: list[int], args: argparse.Namespace) -> list[Row]:
    rows, best = [], []
    for count, shape, int8 in itertools.product(slots, SHAPES, (False, True)):
        found = sweep_product(shape, int8, count)
        rows += found
        best += found[: args.best]
        best += [row for row in found[args.best :] if row["tile"] == "cublas"]
    print(table(best))
    return rows


def sweep_product(shape: tuple[int, int, bool, bool], int8: bool, slots: int) -> list[Row]:
    """Tiles of one shape, the fastest first; for bf16 cuBLAS beside them."""
    from triton.runtime.errors import OutOfResources

    from engine.model.gpu import kernels

    n, k, gated, partial = shape
    outputs = 2 * n if gated else n
    bytes_each = outputs * k * (1 if int8 else 2)
    copies = range(max(2, min(MAX_COPIES, ROTATED_BYTES // bytes_each)))
    x = torch.randn(slots, k, device="cuda").bfloat16()
    pairs = []
    for _ in copies:
        weight = torch.randn(outputs, k, device="cuda") / k**0.5
        pairs.append(quantise_weight(weight) if int8 else (weight.bfloat16(), None))
    found, former = [], kernels.tile_for

    def add(name: str, work: Callable[[int], object]) -> None:
        taken = time_work(lambda: [work(i) for i in copies], 5, captured=True) / len(copies)
        found.append({"tile": name, "us": taken * 1e6, "gb_s": bytes_each / taken / 1e9})

    for tile in list_product_tiles(n, k, partial, 512 if int8 else 256):
        kernels.tile_for = lambda *_, tile=tile: tile
        try:
            add(str(tile)[4:], lambda i: kernels.matmul(x, *pairs[i], gated=gated, partial=partial))
        except OutOfResources:
            continue
    kernels.tile_for = former
    if not int8:
        add("cublas", lambda i: F.linear(x, pairs[i][0]))
    head = {"n": n, "k": k, "gated": gated, "partial": partial, "int8": int8, "rows": slots}
    return [{**head, **row} for row in sorted(found, key=lambda row: row["us"])]


def list_product_tiles(n: int, k: int, partial: bool, most_bk: int) -> list[Tile]:
    found = []
    splits = (1, 2, 4, 8) if partial else (1,)
    for bn, bk, split in itertools.product((16, 32, 64), (128, 256, 512), splits):
        whole = k % (bk * split) == 0 and bk <= most_bk
        if whole and n // bn * split >= min(LEAST_BLOCKS, n // 16):
            found += [Tile(bn, bk, split, warps, 4) for warps in (2, 4)]
    return found


# -- codec -----------------------------------------------------------------------------------------

REPLAYS = 20  # of a layer in one graph
SHORT = {"BM": (16,), "BN": (32,), "BK": (32, 64), "num_warps": (4,)}
LONG = {"BM": (32, 64, 128), "BN": (32, 64), "BK": (32,), "num_warps": (4,)}
SPLITS = (1, 2, 4, 8, 16)
Shape = tuple[int, int, int]  # columns, outputs, inputs of a layer
Launch = Callable[[], object]


def sweep_codec(slots: list[int], args: argparse.Namespace) -> list[Row]:
    """Compile in processes first, which is what takes time, then measure in this one."""
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for job in [
            pool.submit(compile_share, i, args.workers, args.precisions)
            for i in range(args.workers)
        ]:
            job.result()
    rows = []
    for count in slots:
        found = sweep_layers(count, args.precisions, args.best)
        best = sum(layer[0]["us"] for layer in found)
        now = sum(row["us"] for layer in found for row in layer if row["mark"])
        print(f"{count} slots, one of each layer: {best:.0f} us at its best, {now:.0f} now")
        rows += [row for layer in found for row in layer]
    return rows


@torch.inference_mode()
def compile_share(worker: int, workers: int, precisions: list[str]) -> None:
    """A worker's share of what must be compiled."""
    from triton.runtime.errors import OutOfResources

    jobs = [
        (launch, cut)
        for shape, launch in list_layers(2)
        for cut in list_codec_tiles(*shape, precisions)
    ]
    for launch, cut in jobs[worker::workers]:
        try:
            launch_cut(launch, cut)
        except OutOfResources:
            continue


def sweep_layers(slots: int, precisions: list[str], best: int) -> list[list[Row]]:
    """A layer's rows, one a candidate, the fastest first; printed as they come."""
    from triton.runtime.errors import OutOfResources

    from engine.model.gpu import kernels_codec

    rows, usual = [], kernels_codec.tile
    for shape, launch in list_layers(slots):
        layer, now = [], usual(*shape) | {"PRECISION": "tf32x3"}
        for cut in [now, *list_codec_tiles(*shape, precisions)]:
            try:
                launch_cut(launch, cut)
                taken = time_work(partial(repeat, launch), 3, captured=True)
            except OutOfResources:
                continue
            names = dict(zip(("columns", "n", "k"), shape, strict=True))
            mark, us = "now" if cut is now else "", taken / REPLAYS * 1e6
            layer.append({"slots": slots, **names, **cut, "us": us, "mark": mark})
        rows.append(sorted(layer, key=lambda row: row["us"]))
        print(table(rows[-1][:best]), flush=True)
    kernels_codec.tile = usual
    return rows


def repeat(launch: Launch) -> None:
    for _ in range(REPLAYS):
        launch()


def launch_cut(launch: Launch, cut: Row) -> None:
    """Launch a layer cut this way; later launches are cut the same way."""
    from engine.model.gpu import kernels_codec

    kernels_codec.PRECISION = cut["PRECISION"]
    kernels_codec.tile = lambda *_: {k: v for k, v in cut.items() if k != "PRECISION"}
    launch()


def list_layers(slots: int) -> list[tuple[Shape, Launch]]:
    """Every different layer of one frame of the full codec, with what launches it."""
    from engine.model.gpu import fused, kernels_codec

    mimi: Mimi = generated(ModelConfig(SMALL.lm, FULL.mimi), "cuda")[1]
    seen, real = {}, kernels_codec.convolve

    def note(x, by, now, past=None, rows=False, **more):
        columns = x.shape[-1] // by.stride
        shape = (columns, len(by.weight), by.weight.shape[1])
        key = (*shape, by.kernel, tuple(sorted(k for k, v in more.items() if v is not None)))
        seen.setdefault(key, (shape, lambda: real(x, by, now, past, rows=rows, **more)))
        out = torch.randn(slots, columns * by.shuffle, by.outputs, device="cuda")
        return out.transpose(1, 2) if rows else out.transpose(1, 2).contiguous()

    active = Active.of([], slots, torch.device("cuda"))
    fused.convolve = note
    encoder, decoder = mimi.encoder_stream(slots), mimi.decoder_stream(slots)
    codes = mimi.encode(torch.randn(slots, FRAME_SAMPLES, device="cuda"), encoder, active)
    mimi.decode(codes, decoder, active)
    fused.convolve = real
    return list(seen.values())


def list_codec_tiles(outputs: int, n: int, k: int, precisions: list[str]) -> list[Row]:
    """Tiles to try for a layer of that many columns, outputs and inputs."""
    from engine.model.gpu.kernels_codec import LONG_COLUMNS

    axes = LONG if outputs >= LONG_COLUMNS else SHORT
    most = 4 if axes is LONG else 16
    found = []
    for values in itertools.product(*axes.values(), precisions):
        cut = dict(zip((*axes, "PRECISION"), values, strict=True))
        cut |= {"num_stages": 3, "BN": 16 if n <= 16 else cut["BN"]}
        found += [
            cut | {"splits": splits}
            for splits in SPLITS
            if splits <= most and (splits == 1 or splits * cut["BK"] <= k)
        ]
    return found
