"""Which tile a product is cut into: a table, because autotuning needs a driver and repeats badly.

The entries come from sweeps on devices (`bench kernels`, docs/performance.md); loads no triton.
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


def tile_for(n: int, k: int, item_bytes: int, gated: bool, partial: bool) -> Tile:
    """The tile for n outputs of k inputs; only a `partial` product may be split."""
    bk = 256 if item_bytes == 1 else 128
    if k < 128 or n < 64:
        return Tile(16, 32, 2 if partial else 1)
    if gated:
        return Tile(16, bk)
    if partial:
        return Tile(32, bk, 4 if n * k >= 1 << 22 else 2)
    return Tile(32, bk)
