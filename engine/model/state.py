"""Who takes part in a step, and the small tensors that carry a conversation between steps."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Active:
    """The slots that advance in a step: mask [S] bool on the device, the same on the host."""

    mask: Tensor
    slots: tuple[int, ...]

    @classmethod
    def of(cls, slots: list[int], total: int, device: torch.device) -> "Active":
        mask = torch.zeros(total, dtype=torch.bool)
        mask[slots] = True
        return cls(mask.to(device, non_blocking=True), tuple(slots))

    def keep(self, state: Tensor, new: Tensor) -> None:
        """state[s] = new[s] for the active slots s; not a bit of the others changes."""
        mask = self.mask.view(-1, *(1,) * (state.dim() - 1))
        torch.where(mask, new, state, out=state)
