"""Sweep of the product kernel's tiles over the model's shapes: where `tiles.py` comes from.

Weights rotate through more memory than the cache holds, launches are replayed from a graph.
"""

import argparse

import torch
import torch.nn.functional as F

from engine.bench.device import median
from engine.bench.report import positive, save, table
from engine.model.gpu.kernels import Tile
from engine.model.transformer import quantise_weight

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


def tiles(n: int, k: int, partial: bool, most_bk: int) -> list[Tile]:
    found = []
    for bn in (16, 32, 64):
        for bk in (128, 256, 512):
            for splits in (1, 2, 4, 8) if partial else (1,):
                whole = k % (bk * splits) == 0 and bk <= most_bk
                if whole and n // bn * splits >= min(LEAST_BLOCKS, n // 16):
                    found += [Tile(bn, bk, splits, w, st) for w in (2, 4) for st in (4,)]
    return found


def seconds(work, copies: int) -> float:
    """Of one launch, replayed from a graph that runs once through all copies."""
    work(0)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for i in range(copies):
            work(i)
    return median(graph.replay, 5) / copies


def sweep(shape, int8: bool, rows: int) -> list[dict]:
    """Tiles of one shape, the fastest first; cuBLAS beside them for bf16."""
    from triton.runtime.errors import OutOfResources

    from engine.model.gpu import kernels

    n, k, gated, partial = shape
    outputs = 2 * n if gated else n
    bytes_each = outputs * k * (1 if int8 else 2)
    copies = max(2, min(MAX_COPIES, ROTATED_BYTES // bytes_each))
    x = torch.randn(rows, k, device="cuda").bfloat16()
    pairs = []
    for _ in range(copies):
        weight = torch.randn(outputs, k, device="cuda") / k**0.5
        pairs.append(quantise_weight(weight) if int8 else (weight.bfloat16(), None))
    found, former = [], kernels.tile_for
    for tile in tiles(n, k, partial, 512 if int8 else 256):
        kernels.tile_for = lambda *a, tile=tile: tile
        try:
            taken = seconds(
                lambda i: kernels.matmul(x, *pairs[i], gated=gated, partial=partial), copies
            )
        except OutOfResources:
            continue
        found.append({"tile": str(tile)[4:], "us": taken * 1e6, "gb_s": bytes_each / taken / 1e9})
    kernels.tile_for = former
    if not int8:
        taken = seconds(lambda i: F.linear(x, pairs[i][0]), copies)
        found.append({"tile": "cublas", "us": taken * 1e6, "gb_s": bytes_each / taken / 1e9})
    found.sort(key=lambda row: row["us"])
    head = {"n": n, "k": k, "gated": gated, "partial": partial, "int8": int8, "rows": rows}
    return [{**head, **row} for row in found]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=positive, nargs="+", default=[8])
    parser.add_argument("--best", type=positive, default=3, help="tiles to print per shape")
    parser.add_argument("--json")


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("bench kernels sweeps GPU kernels: there is no CUDA device here")
        return 0
    rows, best = [], []
    for count in args.rows:
        for shape in SHAPES:
            for int8 in (False, True):
                found = sweep(shape, int8, count)
                rows += found
                best += found[: args.best]
                best += [row for row in found[args.best :] if row["tile"] == "cublas"]
    print(table(best))
    print("written:", save("kernels", {"rows": rows}, args.json))
    return 0
