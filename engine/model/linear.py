"""The one matrix product of the model, so that another precision replaces one class.

On a CPU the weights are re-ordered once for oneDNN, which reads them at the speed of the memory
for 1 to 16 rows, where the plain product re-orders them on every call. A row of its result does not
depend on the other rows or on their number (MKL's does): a conversation stays bit-identical
whatever its neighbours do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.int8 import quantise, w8a16

ONEDNN = torch.ops.mkldnn if torch.backends.mkldnn.is_available() else None
PACK_ROWS = 8  # rows the re-ordering is tuned for; any number works


class Linear(nn.Module):
    """y = x W^T without bias, W [outputs, inputs]; `pack` trades it for a re-ordered one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.packed: Tensor | None = None
        self.scale: Tensor | None = None  # [outputs] float32, where the weight is int8

    def quantise(self) -> None:
        """Trade the weight for its int8 form, before it is packed."""
        self.keep(*quantise(self.weight.detach()))

    def keep(self, weight: Tensor, scale: Tensor) -> None:
        """Take an int8 weight and its scale, as `quantise` makes them."""
        self.weight, self.scale = nn.Parameter(weight, requires_grad=False), scale

    def pack(self) -> None:
        """Re-order the weight for this CPU and free the plain one. Elsewhere: nothing."""
        weight = self.weight
        packable = weight.device.type == "cpu" and weight.dtype == torch.float32
        if packable and ONEDNN:
            self.packed = ONEDNN._reorder_linear_weight(weight.detach(), PACK_ROWS)
            self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] -> [..., outputs]."""
        if self.scale is not None:
            return w8a16(x, self.weight, self.scale)
        if self.packed is None:
            return F.linear(x, self.weight)
        return ONEDNN._linear_pointwise(x, self.packed, None, "none", [], "")


def pack(model: nn.Module) -> None:
    """Pack every product of a model whose weights are in place."""
    for module in model.modules():
        if isinstance(module, Linear) and module.weight is not None:
            module.pack()
