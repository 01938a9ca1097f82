"""Triton's interpreter, but for one third of its time and with bf16 rounded as a GPU rounds it."""

from collections.abc import Callable
from functools import cache

import numpy as np

QUIET = 0x40  # the bit of a bf16 NaN that no cut may clear


def prepare() -> None:
    """From now on, for the whole process; whoever calls it has told triton to interpret."""
    speed_up_interpreter()
    round_to_nearest()


def speed_up_interpreter() -> None:
    """Replace the functions of the language once a launch.

    The interpreter does so again at every call within a kernel, of `tl.sum` too, though nothing
    has put the originals back meanwhile.
    """
    import triton.language as tl  # reads the environment
    from triton.runtime import interpreter

    run, replace, done = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()

    @cache
    def languages(function: Callable) -> frozenset[str]:
        return frozenset(
            v.__name__ for v in function.__globals__.values() if v is tl or v is tl.core
        )

    def launch(self, *args, **kwargs):
        done.clear()
        return run(self, *args, **kwargs)

    def once(function: Callable):
        if languages(function) <= done:
            return interpreter._LangPatchScope()  # nothing to put back
        done.update(languages(function))
        return replace(function)

    interpreter.GridExecutor.__call__ = launch
    interpreter._patch_lang = once


def round_to_nearest() -> None:
    """Round float32 to the nearest bf16, of two as near to the even one.

    The interpreter cuts the last 16 bits off: every sum and every column of a ring would lie up to
    a whole step below, which no GPU does, so nothing could be held to the reference's bf16.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(given, by, to, rounding):
        if (by, to) == (tl.bfloat16, tl.float32):
            return (np.ascontiguousarray(given).view(np.uint16).astype(np.uint32) << 16).reshape(
                given.shape
            )
        if (by, to) != (tl.float32, tl.bfloat16):
            return convert(given, by, to, rounding)
        bits = np.ascontiguousarray(given).view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        nearest = np.where(nan, (bits >> 16) | QUIET, nearest)
        return nearest.astype(np.uint16).reshape(given.shape)

    interpreter._convert_float = rounded
