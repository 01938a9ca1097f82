"""Which tile a product is cut into: a table, because autotuning needs a driver and repeats badly.

The entries come from sweeps on devices (`bench kernels`, docs/measurements); loads no triton.
"""

from dataclasses import dataclass

ROWS = 16  # of a tensor-core tile: 1 to 16 slots cost the same


@dataclass(frozen=True, slots=True)
class Tile:
    bn: int  # outputs of one program
    bk: int  # inputs of one turn of its loop
    splits: int = 1  # programs that share the inputs of an output
    warps: int = 4
    stages: int = 4


def tile_for(n: int, k: int, rows: int, item_bytes: int, gated: bool, partial: bool) -> Tile:
    """The tile for n outputs of k inputs; only a `partial` product may be split.

    Every tile fits the 99 KiB of shared memory that a program may have on sm_86. Of the sweep on
    an H200 (2026-11-23) it takes the fastest, or one within 3 % of it that suits several shapes.
    """
    int8 = item_bytes == 1
    if k < 256 or n < 64 or item_bytes == 4:
        return Tile(16, 32, 2 if partial else 1)
    if rows > ROWS:  # a piece of a prompt: the tile of x is four times as large
        return _many(gated, partial)
    if partial:
        return _split(k, int8)
    if gated:
        return Tile(32, 128)
    if k <= 1024:
        return Tile(16, 256) if int8 else Tile(16, 128, warps=2)
    return Tile(32, 256) if int8 else Tile(32, 128)


def _many(gated: bool, partial: bool) -> Tile:
    """For 17 to 64 rows; of a sweep on an H200 (2026-11-25, docs/measurements/history.md)."""
    if partial:
        return Tile(64, 128, 4, stages=3)
    return Tile(32, 64 if gated else 128, stages=3)


def _split(k: int, int8: bool) -> Tile:
    """Few outputs: programs share the inputs, so that all of the device reads."""
    if k % 1024 == 0:
        return Tile(32, 128, 8 if k <= 1024 or (int8 and k > 4096) else 4, warps=2)
    return Tile(16, 128, 2)
