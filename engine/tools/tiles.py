"""A sweep of the tiles of the language model's products: where the table of `kernels.py` is from.

Each shape runs once per candidate, replayed from a CUDA graph; the fastest are printed. Weights
rotate through more memory than the cache holds.
"""

import argparse
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from engine.bench.device import Row, time_work
from engine.bench.report import positive, save, table
from engine.errors import ConfigError
from engine.model.gpu.kernels import Tile
from engine.model.transformer import quantise_weight

BEST = 3  # tiles to print per shape
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slots", type=positive, nargs="+", default=[8], help="rows of a product")


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        raise ConfigError("bench tiles sweeps GPU kernels: there is no CUDA device here")
    rows, best = [], []
    for count, shape, int8 in itertools.product(args.slots, SHAPES, (False, True)):
        found = sweep_product(shape, int8, count)
        rows += found
        best += found[:BEST] + [row for row in found[BEST:] if row["tile"] == "cublas"]
    print(table(best))
    save("tiles", {"rows": rows}, args.json)
    return 0


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
