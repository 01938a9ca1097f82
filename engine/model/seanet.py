"""SEANet: the convolutional ends of the codec, waveform to columns and back."""

import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.config import MimiConfig
from engine.model.conv import Conv, ConvTranspose, Tails
from engine.model.state import Active


class Elu(nn.Module):
    """ELU with alpha 1, as a layer (it holds an index in the checkpoint's names)."""

    def forward(self, x: Tensor, tails: Tails, active: Active, first: Tensor) -> Tensor:
        return F.elu(x)


class Residual(nn.Module):
    """x + conv1(elu(conv3(elu(x)))), narrower by `compress` in between."""

    def __init__(self, channels: int, config: MimiConfig) -> None:
        super().__init__()
        inner = channels // config.compress
        self.block = nn.ModuleList(
            [
                Elu(),
                Conv(channels, inner, config.residual_kernel_size),
                Elu(),
                Conv(inner, channels, 1),
            ]
        )

    def forward(self, x: Tensor, tails: Tails, active: Active, first: Tensor) -> Tensor:
        return x + run(self.block, x, tails, active, first)


def run(layers: nn.ModuleList, x: Tensor, tails: Tails, active: Active, first: Tensor) -> Tensor:
    """Layer after layer; each keeps its own past in `tails`."""
    for layer in layers:
        x = layer(x, tails, active, first)
    return x


class SeanetEncoder(nn.Module):
    """[S, 1, samples] -> [S, dimension, samples / hop]."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        width = config.n_filters
        layers: list[nn.Module] = [Conv(config.channels, width, config.kernel_size)]
        for ratio in reversed(config.ratios):
            down = Conv(width, 2 * width, 2 * ratio, ratio)
            layers += [Residual(width, config), Elu(), down]
            width *= 2
        self.model = nn.ModuleList(
            [*layers, Elu(), Conv(width, config.dimension, config.last_kernel_size)]
        )


class SeanetDecoder(nn.Module):
    """[S, dimension, columns] -> [S, 1, columns * hop]."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        width = config.n_filters * 2 ** len(config.ratios)
        layers: list[nn.Module] = [Conv(config.dimension, width, config.kernel_size)]
        for ratio in config.ratios:
            up = ConvTranspose(width, width // 2, ratio)
            width //= 2
            layers += [Elu(), up, Residual(width, config)]
        self.model = nn.ModuleList(
            [*layers, Elu(), Conv(width, config.channels, config.last_kernel_size)]
        )
