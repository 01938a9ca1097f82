"""Causal convolutions whose past is kept outside of them, one row per slot.

Every call takes a whole number of strides, so the past is always exactly the last
kernel - stride inputs; zeros (or copies of the first column) before the first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.state import Active

Tails = dict[nn.Module, Tensor]  # what each convolution remembers, [S, C, P]


class Conv(nn.Module):
    """Causal convolution; `replicate`: the first column stands for the past before it."""

    def __init__(
        self, cin: int, cout: int, kernel: int, stride: int = 1, replicate: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(cin, cout, kernel, stride, bias=not replicate)
        self.past = kernel - stride  # columns
        self.replicate = replicate

    def tail(self, slots: int) -> Tensor:
        weight = self.conv.weight
        return weight.new_zeros(slots, self.conv.in_channels, self.past)

    def forward(self, x: Tensor, tails: Tails, active: Active, first: Tensor) -> Tensor:
        """x [S, Cin, T] -> [S, Cout, T / stride]; first [S] bool: nothing came before."""
        if self.past == 0:
            return self.conv(x)
        tail = tails[self]  # [S, Cin, P]
        before = torch.where(first[:, None, None], x[..., :1], tail) if self.replicate else tail
        x = torch.cat([before, x], -1)  # [S, Cin, P + T]
        active.keep(tail, x[..., -self.past :])
        return self.conv(x)


class ConvTranspose(nn.Module):
    """Causal transposed convolution with a kernel of two strides: each output overlaps the next."""

    def __init__(self, cin: int, cout: int, stride: int, depthwise: bool = False) -> None:
        super().__init__()
        groups = cin if depthwise else 1
        self.convtr = nn.ConvTranspose1d(
            cin, cout, 2 * stride, stride, groups=groups, bias=not depthwise
        )
        self.stride = stride

    def tail(self, slots: int) -> Tensor:
        weight = self.convtr.weight
        return weight.new_zeros(slots, self.convtr.out_channels, self.stride)

    def forward(self, x: Tensor, tails: Tails, active: Active, first: Tensor) -> Tensor:
        """x [S, Cin, T] -> [S, Cout, T * stride]."""
        weight, bias, groups = self.convtr.weight, self.convtr.bias, self.convtr.groups
        tail = tails[self]  # [S, Cout, stride], without bias
        y = F.conv_transpose1d(x, weight, None, self.stride, groups=groups)  # T * stride + stride
        y[..., : self.stride] += tail
        y, rest = y[..., : -self.stride], y[..., -self.stride :]
        active.keep(tail, rest)
        return y if bias is None else y + bias[:, None]
