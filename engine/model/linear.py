"""int8: weights scaled per output channel, keys and values per head and column.

Activations keep their precision (W8A16). `w8a16` is an operator of its own, so that every
path, compiled or not, meets the same function: Triton on a GPU, plain sums on a CPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST = 127  # steps on either side of zero
TINY_SCALE = 6e-8  # smallest float16: keeps zeros from dividing by zero


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> (int8 [N, K], scale [N] float32); weight = int8 * scale, rounded."""
    exact = weight.float()
    scale = (exact.abs().amax(1) / MOST).clamp(min=TINY_SCALE)
    steps = torch.round(exact / scale[:, None]).clamp(-MOST, MOST)
    return steps.to(torch.int8), scale


def quantise_columns(kv: Tensor) -> tuple[Tensor, Tensor]:
    """kv [..., D] -> (int8 [..., D], scale [...] float16)."""
    exact = kv.float()
    scale = (exact.abs().amax(-1) / MOST).clamp(min=TINY_SCALE).half()
    steps = torch.floor(exact / scale.float()[..., None] + 0.5)
    return steps.clamp(-MOST, MOST).to(torch.int8), scale


def exact_columns(kv: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What `quantise_columns` kept, as numbers again [..., D]."""
    return (kv.float() * scale.float()[..., None]).to(dtype)


@torch.library.custom_op("personaplex::w8a16", mutates_args=())
def w8a16(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [..., K] times int8 weight [N, K] transposed, times scale [N] -> [..., N]."""
    rows = x.reshape(-1, x.shape[-1])
    if x.is_cuda:
        from engine.model.gpu.kernels import matmul  # triton: only where there is a GPU

        out = matmul(rows.contiguous(), weight, scale)
    else:
        # Row by row: how many rows there are must not change the order of any sum.
        exact = weight.float()
        out = torch.stack([torch.mv(exact, row) for row in rows.float()]) * scale
    return out.to(x.dtype).view(*x.shape[:-1], -1)


@w8a16.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


# -- linear ----------------------------------------------------------------------------------------
#
# The one matrix product of the model, so that another precision replaces one class.
#
# On a CPU the weights are re-ordered once for oneDNN, which reads them at the speed of the memory
# for 1 to 16 rows, where the plain product re-orders them on every call. A row of its result
# does not
# depend on the other rows or on their number (MKL's does): a conversation stays bit-identical
# whatever its neighbours do.

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
        self.keep(*quantise_weight(self.weight.detach()))

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


def pack_products(model: nn.Module) -> None:
    """Pack every product of a model whose weights are in place."""
    for module in model.modules():
        if isinstance(module, Linear) and module.weight is not None:
            module.pack()


def quantise_products(model: nn.Module) -> None:
    """Make every product of a model int8, in place."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.quantise()
