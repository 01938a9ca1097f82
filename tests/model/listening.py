"""The tiny recogniser, and what the reference got out of it."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from engine.model.stt import Hearing
from engine.model.transformer import Active

STT_TINY = Path(__file__).parents[1] / "golden" / "stt_tiny"
WANT = load_file(STT_TINY / "expected" / "stt.safetensors")
CPU = torch.device("cpu")


def golden_columns() -> torch.Tensor:
    """The codes [90, 32] of the reference's run: frame 0 twice, then the flush."""
    codes = WANT["codes32"].long().T
    return torch.cat([codes[:1], codes, WANT["silence_codes"].long().expand(7, -1)])


def listen(hearing: Hearing, columns: torch.Tensor, slot: int = 0, others: tuple[int, ...] = ()):
    """Run a slot over columns [T, 32], the others over the same ones backwards.

    Tokens [T], pause [T, 4] and hidden [T, dim] of the slot.
    """
    slots = len(hearing.text)
    active, rows = Active.of([slot, *others], slots, CPU), []
    for column, other in zip(columns, columns.flip(0), strict=True):
        codes = other.repeat(slots, 1)
        codes[slot] = column
        text, pause = hearing.step(codes, active)
        rows.append((text[slot], pause[slot], hearing.hidden[slot]))
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
