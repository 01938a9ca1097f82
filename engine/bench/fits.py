"""What a bench does with a combination that does not fit the device: it says so and goes on.

First the arithmetic of a server's start is asked, as what no server would run need not be
measured; what that did not foresee, the device itself refuses.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from engine.bench.device import release
from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.model.stt import Recogniser
from engine.runtime.fitting import Memory, Mode, free_bytes
from engine.runtime.loader import Checkpoint
from engine.runtime.recogniser import LoadedRecogniser

Row = dict[str, Any]


@contextlib.contextmanager
def unless_full(head: Row, keep: Callable[[Row], None]) -> Iterator[None]:
    """Work that may not fit: then `keep` gets a row that says so, and what follows goes on.

    What the functions called inside have allocated is given back; names of the caller stay.
    """
    note = ""
    try:
        yield
    except torch.OutOfMemoryError as error:
        note = f"does not fit: {str(error).splitlines()[0]}"
        traceback.clear_frames(error.__traceback__)  # it would keep all that did fit
    release()
    if note:
        print(*(f"{name} {value}," for name, value in head.items()), note, flush=True)
        keep(head | {"note": note})


def beside(lm: LM, mimi: Mimi, mode: Mode, stt: Recogniser | None = None) -> Memory | None:
    """The arithmetic for loaded models, of precision `mode`; None on a CPU: it is not counted."""
    release()
    free = free_bytes(lm.embedding.table.device)
    if free is None:
        return None
    heard = LoadedRecogniser(stt, None) if stt else None
    return Memory(Checkpoint("generated", lm, mimi, None, None), heard, mode, free)


def check_room(memory: Memory | None, slots: int) -> None:
    """Raises torch.OutOfMemoryError where a server would not start with so many slots."""
    if memory is None or memory.slots(most=slots) == slots:
        return
    needed = slots * memory.slot_bytes(memory.mode)
    there = max(0, needed + memory.left(slots))
    raise torch.OutOfMemoryError(
        f"{needed / 1e9:.2f} GB of {there / 1e9:.2f} GB beside the weights and the reserve"
    )
