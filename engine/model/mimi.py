"""Mimi, the codec: 80 ms of audio to a column of codes and back, streaming, in float32.

    encode: SEANet encoder -> transformer -> downsampling -> quantizer
    decode: quantizer -> upsampling -> transformer -> SEANet decoder

The modules hold weights only. A `Stream` is the memory of one direction for a number of slots:
what each convolution and each attention still needs of the past. Every call takes a whole number
of strides, so the past of a convolution is always exactly its last kernel - stride inputs; before
the first call they are zeros (or copies of the first column). On a GPU gpu/fused.py runs the same
weights. Source: kyutai-labs/moshi, MimiModel.
"""

from copy import copy
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.config import MimiConfig
from engine.model.transformer import (
    Active,
    CodecLayer,
    Linear,
    RingPush,
    Transformer,
)

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
        return self.conv.weight.new_zeros(slots, self.conv.in_channels, self.past)

    def forward(self, x: Tensor, tails: Tails, active: Active, first: Tensor) -> Tensor:
        """x [S, Cin, T] -> [S, Cout, T / stride]; first [S] bool: nothing came before."""
        if self.past == 0:
            return self.conv(x)
        tail = tails[self]  # [S, Cin, P]
        before = torch.where(first[:, None, None], x[..., :1], tail) if self.replicate else tail
        x = torch.cat([before, x], -1)  # [S, Cin, P + T]
        active.update(tail, x[..., -self.past :])
        return self.conv(x)


class ConvTranspose(nn.Module):
    """Causal transposed convolution with a kernel of two strides: each output overlaps the next."""

    def __init__(self, cin: int, cout: int, stride: int, depthwise: bool = False) -> None:
        super().__init__()
        groups = cin if depthwise else 1
        kernel, self.stride = 2 * stride, stride
        self.convtr = nn.ConvTranspose1d(
            cin, cout, kernel, stride, groups=groups, bias=not depthwise
        )

    def tail(self, slots: int) -> Tensor:
        return self.convtr.weight.new_zeros(slots, self.convtr.out_channels, self.stride)

    def forward(self, x: Tensor, tails: Tails, active: Active, first: Tensor) -> Tensor:
        """x [S, Cin, T] -> [S, Cout, T * stride]."""
        weight, bias, groups = self.convtr.weight, self.convtr.bias, self.convtr.groups
        tail = tails[self]  # [S, Cout, stride], without bias
        y = F.conv_transpose1d(x, weight, None, self.stride, groups=groups)  # T * stride + stride
        y[..., : self.stride] += tail
        y, rest = y[..., : -self.stride], y[..., -self.stride :]
        active.update(tail, rest)
        return y if bias is None else y + bias[:, None]


# -- SEANet: the convolutional ends, waveform to columns and back ----------------------------------


class Elu(nn.Module):
    """ELU with alpha 1, as a layer (it holds an index in the checkpoint's names)."""

    def forward(self, x: Tensor, tails: Tails, active: Active, first: Tensor) -> Tensor:
        return F.elu(x)


class Residual(nn.Module):
    """x + conv1(elu(conv3(elu(x)))), narrower by `compress` in between."""

    def __init__(self, channels: int, config: MimiConfig) -> None:
        super().__init__()
        inner = channels // config.compress
        narrow = Conv(channels, inner, config.residual_kernel_size)
        self.block = nn.ModuleList([Elu(), narrow, Elu(), Conv(inner, channels, 1)])

    def forward(self, x: Tensor, tails: Tails, active: Active, first: Tensor) -> Tensor:
        return x + run_layers(self.block, x, tails, active, first)


def run_layers(
    layers: nn.ModuleList, x: Tensor, tails: Tails, active: Active, first: Tensor
) -> Tensor:
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
        layers += [Elu(), Conv(width, config.dimension, config.last_kernel_size)]
        self.model = nn.ModuleList(layers)


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
        layers += [Elu(), Conv(width, config.channels, config.last_kernel_size)]
        self.model = nn.ModuleList(layers)


# -- the split residual quantizer: one semantic level, and beside it the acoustic ones -------------

MIN_USAGE = 1e-5  # of an entry, in the average that the codebook is


class Codebook(nn.Module):
    """One level. The entries are averages, kept as sums and counts in the checkpoint."""

    def __init__(self, bins: int, dim: int) -> None:
        super().__init__()
        self.embedding_sum = nn.Parameter(torch.empty(bins, dim), requires_grad=False)
        self.cluster_usage = nn.Parameter(torch.empty(bins), requires_grad=False)
        self._initialized = nn.Parameter(torch.empty(1), requires_grad=False)  # not used here
        self.entries: Tensor | None = None  # [bins, dim]
        self.match: Linear | None = None

    def prepare(self, entries: Tensor, half_norm: Tensor) -> None:
        """Once, when the weights are in place: derive what is kept in the tensors given."""
        usage = self.cluster_usage.clamp(min=MIN_USAGE)[:, None]
        self.entries = torch.div(self.embedding_sum.detach(), usage, out=entries)
        self.half_norm = half_norm.copy_(self.entries.square().sum(1) / 2)  # [bins]
        self.match = Linear(self.entries.shape[1], 0)
        self.match.weight = nn.Parameter(self.entries, requires_grad=False)
        self.match.pack()

    def encode(self, x: Tensor) -> Tensor:
        """x [S, dim] -> index of the nearest entry [S], the first of equals."""
        return (self.half_norm - self.match(x)).argmin(-1)  # (|x - e|^2 - |x|^2) / 2


class Residuals(nn.Module):
    """Levels that each code what the ones before left over."""

    def __init__(self, config: MimiConfig, levels: int) -> None:
        super().__init__()
        inner, dim, bins = config.quantizer.dimension, config.dimension, config.quantizer.bins
        self.input_proj, self.output_proj = Linear(dim, inner), Linear(inner, dim)
        self.vq = nn.Module()
        self.vq.layers = nn.ModuleList(Codebook(bins, inner) for _ in range(levels))

    def prepare(self) -> None:
        """Once: the entries of all levels, side by side [L, bins, inner] and [L, bins]."""
        sums = self.vq.layers[0].embedding_sum
        self.tables = torch.empty(len(self.vq.layers), *sums.shape, device=sums.device)
        self.half_norms = torch.empty(self.tables.shape[:2], device=sums.device)
        for book, *kept in zip(self.vq.layers, self.tables, self.half_norms, strict=True):
            book.prepare(*kept)

    def encode(self, latent: Tensor, levels: int) -> list[Tensor]:
        """latent [S, dim] -> `levels` code columns [S]."""
        rest, codes = self.input_proj(latent), []
        for book in self.vq.layers[:levels]:
            codes.append(book.encode(rest))
            rest = rest - F.embedding(codes[-1], book.entries)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """codes [S, levels] -> [S, dim]."""
        parts = zip(codes.unbind(1), self.vq.layers, strict=False)
        total = sum(F.embedding(code, book.entries) for code, book in parts)  # [S, inner]
        return self.output_proj(total)


class Quantizer(nn.Module):
    """Both quantizers over the same latent; codes are the semantic level, then the acoustic."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.rvq_first = Residuals(config, 1)
        self.rvq_rest = Residuals(config, config.quantizer.n_q - 1)

    def encode(self, latent: Tensor, codebooks: int) -> Tensor:
        """latent [S, dim] -> codes [S, codebooks]."""
        first = self.rvq_first.encode(latent, 1)
        return torch.stack([*first, *self.rvq_rest.encode(latent, codebooks - 1)], 1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [S, levels] -> latent [S, dim]."""
        latent = self.rvq_first.decode(codes[:, :1])
        return latent + self.rvq_rest.decode(codes[:, 1:]) if codes.shape[1] > 1 else latent


# -- the codec -------------------------------------------------------------------------------------


class Stream:
    """What one direction of the codec remembers of each slot."""

    slot_dim = 0  # of the tails

    def __init__(self, parts: list[nn.Module], transformer: Transformer, slots: int, capacity: int):
        kinds = (Conv, ConvTranspose)
        convs = [m for part in parts for m in part.modules() if isinstance(m, kinds)]
        self.tails: Tails = {conv: conv.tail(slots) for conv in convs}
        self.rings = transformer.rings(slots, capacity)

    def narrow(self, slots: int) -> "Stream":
        """The first slots: the same memory."""
        some = copy(self)
        some.tails = {
            conv: tail.narrow(self.slot_dim, 0, slots) for conv, tail in self.tails.items()
        }
        some.rings = self.rings.narrow(slots)
        return some

    def clear(self, slot: int) -> None:
        """Back to silence before the first frame."""
        for tail in self.tails.values():
            tail.select(self.slot_dim, slot).zero_()
        self.rings.clear(slot)

    def tensors(self) -> list[Tensor]:
        """All tensors of its memory."""
        return [*self.tails.values(), *self.rings.tensors()]

    def state(self, slot: int) -> list[Tensor]:
        """Every tensor of a slot's memory, as views (tests compare them)."""
        tails = [tail.select(self.slot_dim, slot) for tail in self.tails.values()]
        return [*tails, *self.rings.used(slot), self.rings.position[slot]]


class Mimi(nn.Module):
    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        dim, stride = config.dimension, config.columns
        self.frame_columns = stride  # of the transformers, a frame
        self.encoder, self.decoder = SeanetEncoder(config), SeanetDecoder(config)
        self.encoder_transformer = codec_transformer(config)
        self.decoder_transformer = codec_transformer(config)
        self.downsample = Conv(dim, dim, 2 * stride, stride, replicate=True)
        self.upsample = ConvTranspose(dim, dim, stride, depthwise=True)
        self.quantizer = Quantizer(config)
        self.fused: ModuleType | None = None  # the module of fused steps, on a GPU
        self.filters: dict[nn.Module, Any] = {}  # its weights

    def prepare(self) -> None:
        """Derive the codebooks, once the weights are in place."""
        self.quantizer.rvq_first.prepare()
        self.quantizer.rvq_rest.prepare()

    def use_fused_kernels(self) -> None:
        """Take the fused kernels from now on, if the weights lie on a GPU."""
        if self.downsample.conv.weight.is_cuda:
            from engine.model.gpu import fused  # as in lm.py

            self.fused, self.filters = fused, fused.filters(self)

    def encoder_stream(self, slots: int) -> Stream:
        return self._stream([self.encoder, self.downsample], self.encoder_transformer, slots)

    def decoder_stream(self, slots: int) -> Stream:
        return self._stream([self.decoder, self.upsample], self.decoder_transformer, slots)

    def _stream(self, parts: list[nn.Module], transformer: Transformer, slots: int) -> Stream:
        capacity = self.config.transformer.context - 1
        if self.fused:
            return self.fused.FusedStream(parts, transformer, self.filters, slots, capacity)
        return Stream(parts, transformer, slots, capacity)

    def encode(self, pcm: Tensor, stream: Stream, active: Active, codebooks: int = 0) -> Tensor:
        """One frame: pcm [S, 1920] -> codes [S, codebooks] (8 unless asked for more)."""
        codebooks = codebooks or self.config.num_codebooks
        if self.fused:
            return self.fused.encode(self, pcm, stream, active, codebooks)
        return self.quantizer.encode(self.latent(pcm, stream, active), codebooks)

    def latent(self, pcm: Tensor, stream: Stream, active: Active) -> Tensor:
        """The encoder before the quantizer: pcm [S, 1920] -> [S, dim]."""
        first = stream.rings.position == 0  # [S]
        columns = self.columns(pcm, stream, active)
        seen = run_transformer(self.encoder_transformer, columns, stream, active)
        return self.downsample(seen, stream.tails, active, first)[..., 0]

    def columns(self, pcm: Tensor, stream: Stream, active: Active) -> Tensor:
        """SEANet alone: pcm [S, 1920] -> [S, dim, 2]."""
        first = stream.rings.position == 0
        return run_layers(self.encoder.model, pcm[:, None], stream.tails, active, first)

    def decode(self, codes: Tensor, stream: Stream, active: Active) -> Tensor:
        """One frame: codes [S, levels] -> pcm [S, 1920]."""
        if self.fused:
            return self.fused.decode(self, codes, stream, active)
        first = stream.rings.position == 0
        latent = self.quantizer.decode(codes)[..., None]  # [S, dim, 1]
        columns = self.upsample(latent, stream.tails, active, first)  # [S, dim, 2]
        columns = run_transformer(self.decoder_transformer, columns, stream, active)
        return run_layers(self.decoder.model, columns, stream.tails, active, first)[:, 0]


def codec_transformer(config: MimiConfig) -> Transformer:
    sizes = config.transformer
    layers = [
        CodecLayer(sizes.d_model, sizes.num_heads, sizes.dim_feedforward)
        for _ in range(sizes.num_layers)
    ]
    return Transformer(layers, sizes.max_period)


def run_transformer(transformer: Transformer, x: Tensor, stream: Stream, active: Active) -> Tensor:
    """x [S, dim, T] through a transformer and its rings -> [S, dim, T]."""
    columns = x.shape[-1]
    y = transformer(x.transpose(1, 2), RingPush(stream.rings, active, columns))
    stream.rings.advance(active, columns)
    return y.transpose(1, 2)
