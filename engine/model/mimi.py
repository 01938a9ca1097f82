"""Mimi, the codec: 80 ms of audio to a column of codes and back, streaming, in float32.

The modules hold weights only. A `Stream` is the memory of one direction for a number of slots;
the encoder's and the decoder's are independent. Source: kyutai-labs/moshi, MimiModel.
"""

import importlib
import importlib.util
from copy import copy
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from engine.model.attention import Step
from engine.model.config import MimiConfig
from engine.model.conv import Conv, ConvTranspose, Tails
from engine.model.quantizer import Quantizer
from engine.model.seanet import SeanetDecoder, SeanetEncoder, run
from engine.model.state import Active
from engine.model.transformer import CodecLayer, Transformer


class Stream:
    """What one direction of the codec remembers of each slot."""

    def __init__(self, parts: list[nn.Module], transformer: Transformer, slots: int, capacity: int):
        kinds = (Conv, ConvTranspose)
        convs = [m for part in parts for m in part.modules() if isinstance(m, kinds)]
        self.tails: Tails = {conv: conv.tail(slots) for conv in convs}
        self.rings = transformer.rings(slots, capacity)

    def narrow(self, slots: int) -> "Stream":
        """The first slots: the same memory."""
        some = copy(self)
        some.tails = {conv: tail[:slots] for conv, tail in self.tails.items()}
        some.rings = self.rings.narrow(slots)
        return some

    def clear(self, slot: int) -> None:
        """Back to silence before the first frame."""
        for tail in self.tails.values():
            tail[slot].zero_()
        self.rings.clear(slot)

    def kept(self) -> list[Tensor]:
        """All tensors of its memory."""
        return [*self.tails.values(), self.rings.kv]

    def of(self, slot: int) -> list[Tensor]:
        """Every tensor of a slot's memory, as views (tests compare them)."""
        tails = [tail[slot] for tail in self.tails.values()]
        return [*tails, self.rings.used(slot), self.rings.position[slot]]


class Mimi(nn.Module):
    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        dim, stride = config.dimension, config.columns
        self.encoder, self.decoder = SeanetEncoder(config), SeanetDecoder(config)
        self.encoder_transformer = codec_transformer(config)
        self.decoder_transformer = codec_transformer(config)
        self.downsample = Conv(dim, dim, 2 * stride, stride, replicate=True)
        self.upsample = ConvTranspose(dim, dim, stride, depthwise=True)
        self.quantizer = Quantizer(config)
        self.fast: ModuleType | None = None  # the module of fused steps, where it can run
        self.filters: dict[nn.Module, Any] = {}  # its weights

    def prepare(self) -> None:
        """Derive the codebooks, once the weights are in place."""
        self.quantizer.prepare()

    def hasten(self) -> None:
        """Take the fused kernels from now on, if the weights lie on a GPU that triton knows."""
        if self.downsample.conv.weight.is_cuda and importlib.util.find_spec("triton"):
            self.fast = importlib.import_module("engine.model.fast_codec")
            self.filters = self.fast.filters(self)

    def encoder_stream(self, slots: int) -> Stream:
        return self._stream([self.encoder, self.downsample], self.encoder_transformer, slots)

    def decoder_stream(self, slots: int) -> Stream:
        return self._stream([self.decoder, self.upsample], self.decoder_transformer, slots)

    def _stream(self, parts: list[nn.Module], transformer: Transformer, slots: int) -> Stream:
        capacity = self.config.transformer.context - 1
        if self.fast:
            return self.fast.Stream(parts, transformer, self.filters, slots, capacity)
        return Stream(parts, transformer, slots, capacity)

    def encode(self, pcm: Tensor, stream: Stream, active: Active, codebooks: int = 0) -> Tensor:
        """One frame: pcm [S, 1920] -> codes [S, codebooks] (8 unless asked for more)."""
        codebooks = codebooks or self.config.num_codebooks
        if self.fast:
            return self.fast.encode(self, pcm, stream, active, codebooks)
        latent = self.latent(pcm, stream, active)
        return self.quantizer.encode(latent, codebooks)

    def latent(self, pcm: Tensor, stream: Stream, active: Active) -> Tensor:
        """The encoder before the quantizer: pcm [S, 1920] -> [S, dim]."""
        first = stream.rings.position == 0  # [S]
        columns = self.columns(pcm, stream, active)
        seen = transformed(self.encoder_transformer, columns, stream, active)
        return self.downsample(seen, stream.tails, active, first)[..., 0]

    def columns(self, pcm: Tensor, stream: Stream, active: Active) -> Tensor:
        """SEANet alone: pcm [S, 1920] -> [S, dim, 2]."""
        first = stream.rings.position == 0
        return run(self.encoder.model, pcm[:, None], stream.tails, active, first)

    def decode(self, codes: Tensor, stream: Stream, active: Active) -> Tensor:
        """One frame: codes [S, levels] -> pcm [S, 1920]."""
        if self.fast:
            return self.fast.decode(self, codes, stream, active)
        first = stream.rings.position == 0
        latent = self.quantizer.decode(codes)[..., None]  # [S, dim, 1]
        columns = self.upsample(latent, stream.tails, active, first)  # [S, dim, 2]
        columns = transformed(self.decoder_transformer, columns, stream, active)
        return run(self.decoder.model, columns, stream.tails, active, first)[:, 0]


def codec_transformer(config: MimiConfig) -> Transformer:
    sizes = config.transformer
    layers = [
        CodecLayer(sizes.d_model, sizes.num_heads, sizes.dim_feedforward)
        for _ in range(sizes.num_layers)
    ]
    return Transformer(layers, sizes.max_period)


def transformed(transformer: Transformer, x: Tensor, stream: Stream, active: Active) -> Tensor:
    """x [S, dim, T] through a transformer and its rings -> [S, dim, T]."""
    columns = x.shape[-1]
    y = transformer(x.transpose(1, 2), Step(stream.rings, active, columns))
    stream.rings.advance(active, columns)
    return torch.transpose(y, 1, 2)
