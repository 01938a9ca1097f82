"""A piece of a prompt as one launch: the next columns of one slot, captured in a CUDA graph.

One graph serves every slot of its rings and every shorter piece: a piece is filled up to full
length, and what fills it is not written. So a column's bits do not depend on where a prompt was
cut. `graphs` False launches the same work kernel by kernel; where there are no kernels, or a piece
would push columns out of the ring, the plain modules run it (`Temporal.prefill`).
"""

import torch
from torch import Tensor

from engine.model.attention import Rings
from engine.model.lm import Temporal
from engine.model.recording import record


class Prefill:
    """Runs pieces of up to `columns` columns for the slots of some rings; picks nothing."""

    def __init__(
        self,
        lm: Temporal,
        rings: Rings,
        columns: int,
        graphs: bool = True,
        pool: object = None,
    ) -> None:
        self.lm, self.rings, self.columns = lm, rings, columns
        table = lm.embedding.table
        self.embedded = table.new_zeros(columns, table.shape[1])
        self.whose = torch.zeros(2, dtype=torch.int64, device=table.device)  # slot, how many count
        recorded = lm.fast and graphs and table.is_cuda
        self.recorded = record(self._launch, pool) if recorded else None

    def run(self, slot: int, embedded: Tensor) -> None:
        """The next columns of a slot, embedded [T, dim]."""
        count, pushed = len(embedded), self.rings.pushed[slot]
        if not self.lm.fast or pushed + count > self.rings.capacity:
            self.lm.prefill(embedded, self.rings, slot)
            return
        self.embedded[:count].copy_(embedded)
        self.whose.copy_(torch.tensor([slot, count]))
        if self.recorded:
            self.recorded.graph.replay()
        else:
            self._launch()
        self.rings.pushed[slot] = pushed + count

    def _launch(self) -> None:
        """Nothing counts while it is recorded, so nothing is written."""
        self.lm.fast.prefill(self.lm, self.embedded, self.rings, self.whose[:1], self.whose[1:])
