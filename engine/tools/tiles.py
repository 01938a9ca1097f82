"""Sweeps of the kernels' tiles over the model's shapes: where the tables in `model/gpu` come from.

`products` sweeps the matrix products of the language model (`kernels.py`), `codec` the codec's
convolutions (`kernels_codec.py`). Each shape runs once per candidate, replayed from a CUDA graph;
the fastest are printed. Weights of products rotate through more memory than the cache holds.
"""

import argparse
import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from engine.bench.device import Row, time_work
from engine.bench.report import positive, save, table
from engine.config import FRAME_SAMPLES
from engine.errors import ConfigError
from engine.model.config import ModelConfig
from engine.model.gpu.kernels import Tile
from engine.model.mimi import Mimi
from engine.model.transformer import Active, quantise_weight
from engine.weights.generated import FULL, SMALL, generated

SLOTS = {"products": [8], "codec": [1, 16]}
BEST = 3  # tiles to print per shape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kernel", choices=list(SLOTS), help="what to sweep")
    parser.add_argument("--slots", type=positive, nargs="+", help="rows of a product; 8, or 1 16")


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        raise ConfigError("bench tiles sweeps GPU kernels: there is no CUDA device here")
    sweep = sweep_products if args.kernel == "products" else sweep_codec
    rows = sweep(args.slots or SLOTS[args.kernel])
    save("tiles", {"kernel": args.kernel, "rows": rows}, args.json)
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


def sweep_products(slots: list[int]) -> list[Row]:
    rows, best = [], []
    for count, shape, int8 in itertools.product(slots, SHAPES, (False, True)):
        found = sweep_product(shape, int8, count)
        rows += found
        best += found[:BEST] + [row for row in found[BEST:] if row["tile"] == "cublas"]
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


def sweep_codec(slots: list[int]) -> list[Row]:
    """A layer's rows, one a candidate, the fastest first; printed as they come."""
    from triton.runtime.errors import OutOfResources

    from engine.model.gpu import kernels_codec

    rows, usual = [], kernels_codec.tile
    for count in slots:
        best = current = 0.0
        for shape, launch in list_layers(count):
            layer, now = [], usual(*shape)
            for cut in [now, *list_codec_tiles(*shape)]:
                kernels_codec.tile = lambda *_, cut=cut: cut
                try:
                    work = partial(repeat, launch)
                    us = time_work(work, 3, captured=True) / REPLAYS * 1e6
                except OutOfResources:
                    continue
                names = dict(zip(("columns", "n", "k"), shape, strict=True))
                mark = "now" if cut is now else ""
                layer.append({"slots": count, **names, **cut, "us": us, "mark": mark})
                current += us if mark else 0.0
            layer.sort(key=lambda row: row["us"])
            best += layer[0]["us"]
            print(table(layer[:BEST]), flush=True)
            rows += layer
        kernels_codec.tile = usual
        print(f"{count} slots, one of each layer: {best:.0f} us at its best, {current:.0f} now")
    return rows


def repeat(launch: Launch) -> None:
    for _ in range(REPLAYS):
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


def list_codec_tiles(outputs: int, n: int, k: int) -> list[Row]:
    """Tiles to try for a layer of that many columns, outputs and inputs."""
    from engine.model.gpu.kernels_codec import LONG_COLUMNS

    axes = LONG if outputs >= LONG_COLUMNS else SHORT
    most = 4 if axes is LONG else 16
    found = []
    for values in itertools.product(*axes.values()):
        cut = dict(zip(axes, values, strict=True))
        cut |= {"num_stages": 3, "BN": 16 if n <= 16 else cut["BN"]}
        found += [
            cut | {"splits": splits}
            for splits in SPLITS
            if splits <= most and (splits == 1 or splits * cut["BK"] <= k)
        ]
    return found
