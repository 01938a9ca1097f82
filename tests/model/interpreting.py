"""Triton's interpreter as it is, but for one third of its time.

It replaces every function of the language again at every call within a kernel, of `tl.sum` too,
though nothing has put the originals back meanwhile. Here it does so once a launch.
"""

from collections.abc import Callable
from functools import cache


def hasten() -> None:
    """From now on, for the whole process; whoever calls it has told triton to interpret."""
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
