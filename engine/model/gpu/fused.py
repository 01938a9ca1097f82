"""The models' steps in few, large kernels: 8 launches a layer of the language models instead of 20.

The first half runs `Temporal` and `Depformer` of lm.py, the second half `Mimi` (one launch a layer
of SEANet, seven a transformer layer). The weights and the rounding are those of the plain modules,
which are the oracle. Imported only where the kernels can run: on a CUDA device with triton, or
under triton's interpreter in tests.
"""

import torch
from torch import Tensor, nn

from engine.model.gpu.depth import WholeDepth
from engine.model.gpu.kernels import add_norm, embed, matmul, pick, pick_text
from engine.model.gpu.kernels_attention import Decode, PromptPiece, attend_few
from engine.model.gpu.kernels_codec import Filter, Moment, convolve, nearest, sum_entries, upsample
from engine.model.lm import Depformer, DepthLayer, Pick
from engine.model.mimi import Conv, ConvTranspose, Elu, Residual, Stream
from engine.model.transformer import RMS_EPS, Active, Attends, Gating, Linear, Rings, Transformer

__all__ = [
    "depth",
    "embed_column",
    "find_whole_depth",
    "pick",
    "pick_text",
    "prefill",
    "product",
    "step",
]


def product(linear: Linear, x: Tensor, **how: bool) -> Tensor:
    """A linear layer through the kernel, whatever its weight is kept in."""
    return matmul(x, linear.weight, linear.scale, **how)


def feed_forward(gating: Gating, x: Tensor) -> Tensor:
    """x [S, dim] -> parts of the feed-forward's result [P, S, dim]."""
    return product(gating.linear_out, product(gating.linear_in, x, gated=True), partial=True)


def embed_column(embedding, tokens: Tensor) -> Tensor:
    """tokens [S, K] -> [S, dim]."""
    if embedding.offsets is None:
        embedding.offsets = torch.tensor(embedding.starts, device=embedding.table.device)
    return embed(tokens, embedding.offsets, embedding.table)


def step(lm, embedded: Tensor, rings: Rings, active: Active) -> Tensor:
    """`Temporal.step`: embedded [S, dim] -> hidden [S, dim]; the rings are not advanced."""
    return temporal(lm, embedded, Decode(rings, active))


def prefill(lm, embedded: Tensor, rings: Rings, slot: Tensor, count: Tensor) -> None:
    """The next columns of slot [1], embedded [T, dim]; `count` [1] of them count, and must fit."""
    piece = PromptPiece(rings, slot, count, len(embedded))
    temporal(lm, embedded, piece)
    piece.advance()


def temporal(lm, x: Tensor, push: Attends) -> Tensor:
    """All layers: embedded rows [S, dim] -> hidden [S, dim]; the rings are written."""
    y = None
    for index, layer in enumerate(lm.transformer.layers):
        x, h = add_norm(x, y, layer.norm1.alpha, RMS_EPS)
        qkv = product(layer.self_attn.in_proj, h)  # [S, 3 * dim]
        attended = push.attend(index, qkv.view(len(x), 1, 3, layer.self_attn.heads, -1))
        y = product(layer.self_attn.out_proj, attended[:, 0], partial=True)  # [P, S, dim]
        x, h = add_norm(x, y, layer.norm2.alpha, RMS_EPS)
        y = feed_forward(layer.gating, h)
    return add_norm(x, y, lm.out_norm.alpha, RMS_EPS)[1]


def depth(depformer: Depformer, hidden: Tensor, text: Tensor, decide: Pick) -> Tensor:
    """`Depformer.forward`: hidden [S, dim], text [S] -> codes [S, Q]."""
    steps, heads = depformer.steps, depformer.layers[0].heads
    inputs = product(depformer.input, hidden).unflatten(-1, (steps, -1))  # [S, Q, dim]
    slots, width = len(hidden), inputs.shape[-1]
    shape = (len(depformer.layers), 2, slots, heads, steps, width // heads)
    kv = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
    first = torch.zeros(1, dtype=torch.int64, device=hidden.device)  # where a table begins

    def embed_one(embedding: torch.nn.Embedding, tokens: Tensor) -> Tensor:
        return embed(tokens[:, None], first, embedding.weight)

    previous, codes = embed_one(depformer.text_emb, text), []
    for step in range(steps):
        x, y = inputs[:, step], previous  # [S, dim]
        for layer, columns in zip(depformer.layers, kv, strict=True):
            x, y = _depth_layer(layer, x, y, step, columns)
        x, _ = add_norm(x, y, None)
        codes.append(decide(step, product(depformer.linears[step], x)))
        if step + 1 < steps:
            previous = embed_one(depformer.emb[step], codes[-1])
    return torch.stack(codes, 1)


def find_whole_depth(depformer: Depformer, slots: int) -> WholeDepth | None:
    """The depformer as one launch, where the device and the number of slots allow it."""
    return WholeDepth(depformer) if WholeDepth.fits(depformer, slots) else None


def _depth_layer(
    layer: DepthLayer, x: Tensor, y: Tensor, step: int, kv: Tensor
) -> tuple[Tensor, Tensor]:
    """x and what is still to be added to it -> the same after the layer."""
    x, h = add_norm(x, y, layer.norm1.alpha, RMS_EPS)
    qkv = product(layer.in_proj[step], h).view(len(x), 3, layer.heads, -1)
    attended = attend_few(qkv, kv, step)
    y = product(layer.out_proj[step], attended, partial=True)
    x, h = add_norm(x, y, layer.norm2.alpha, RMS_EPS)
    return x, feed_forward(layer.gating[step], h)


# -- the codec -------------------------------------------------------------------------------------

Filters = dict[nn.Module, Filter]


def filters(mimi: nn.Module) -> Filters:
    """Every convolution and product of the codec as its kernel reads it."""
    found = {}
    for module in mimi.modules():
        if isinstance(module, Conv):
            found[module] = _conv(module)
        elif isinstance(module, ConvTranspose) and module.convtr.groups == 1:
            found[module] = _transposed(module)
        elif isinstance(module, Linear):
            found[module] = Filter(module.weight)
    return found


def _conv(module: Conv) -> Filter:
    conv = module.conv
    return Filter(
        conv.weight.flatten(1), conv.bias, conv.kernel_size[0], conv.stride[0], module.past,
        replicate=module.replicate,
    )  # fmt: skip


def _transposed(module: ConvTranspose) -> Filter:
    """Each output reads two columns: the former through the kernel's second half, and its own."""
    late, fresh = module.convtr.weight.unflatten(-1, (2, module.stride)).flip(2).unbind(2)
    weight = torch.stack([late, fresh], -1)  # [Cin, Cout, stride, 2]
    weight = weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1).contiguous()
    return Filter(weight, module.convtr.bias, kernel=2, past=1, shuffle=module.stride)


class FusedStream(Stream):
    """The same as the kernels want it: tails [2, S, Cin, P], of the upsampling [1, S, Cin]."""

    slot_dim = 1

    def __init__(
        self,
        parts: list[nn.Module],
        transformer: Transformer,
        by: Filters,
        slots: int,
        capacity: int,
    ) -> None:
        self.rings = transformer.rings(slots, capacity)
        device, self.tails = self.rings.kv.device, {}
        for module in (m for part in parts for m in part.modules()):
            if module in by and by[module].past:
                shape = (2, slots, by[module].inputs, by[module].past)
                self.tails[module] = torch.zeros(shape, device=device)
            elif isinstance(module, ConvTranspose) and module not in by:
                shape = (1, slots, module.convtr.in_channels)
                self.tails[module] = torch.zeros(shape, device=device)


def encode(mimi, pcm: Tensor, stream: FusedStream, active: Active, codebooks: int) -> Tensor:
    """One frame: pcm [S, 1920] -> codes [S, codebooks]."""
    now = Moment(stream.rings.position, mimi.frame_columns, active.mask)
    x = seanet(mimi.encoder.model, pcm[:, None], mimi.filters, stream, now)  # [S, dim, 2]
    x = run_transformer(mimi.encoder_transformer, x, mimi.filters, stream, active, now)
    down = mimi.downsample
    latent = convolve(x, mimi.filters[down], now, stream.tails[down])  # [S, dim, 1]
    codes = torch.empty(len(pcm), codebooks, dtype=torch.int64, device=pcm.device)
    for part, some in _halves(mimi, codes):
        inner = convolve(latent, mimi.filters[part.input_proj], now)[..., 0]  # [S, inner]
        nearest(inner, part.tables, part.half_norms, some)
    stream.rings.advance(active, mimi.frame_columns)
    return codes


def decode(mimi, codes: Tensor, stream: FusedStream, active: Active) -> Tensor:
    """One frame: codes [S, levels] -> pcm [S, 1920]."""
    now = Moment(stream.rings.position, mimi.frame_columns, active.mask)
    latent = None
    for part, some in _halves(mimi, codes):
        entries = sum_entries(some, part.tables)[..., None]  # [S, inner, 1]
        latent = convolve(entries, mimi.filters[part.output_proj], now, residual=latent)
    up = mimi.upsample
    x = upsample(latent[..., 0], stream.tails[up][0], up.convtr.weight, active.mask)  # [S, dim, 2]
    x = run_transformer(mimi.decoder_transformer, x, mimi.filters, stream, active, now)
    x = seanet(mimi.decoder.model, x, mimi.filters, stream, now)
    stream.rings.advance(active, mimi.frame_columns)
    return x[:, 0]


def _halves(mimi, codes: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Both quantizers, each with its columns of codes, if there are any."""
    quantizer = mimi.quantizer
    both = [(quantizer.rvq_first, codes[:, :1]), (quantizer.rvq_rest, codes[:, 1:])]
    return [(part, some) for part, some in both if some.shape[1]]


def seanet(layers: nn.ModuleList, x: Tensor, by: Filters, stream: Stream, now: Moment) -> Tensor:
    """One launch a convolution: an ELU is part of the one behind it."""

    def through(x: Tensor, module: Conv, **more) -> Tensor:
        return convolve(x, by[module], now, stream.tails.get(module), **more)

    elu = False
    for layer in layers:
        if isinstance(layer, Residual):
            _, narrow, _, wide = layer.block
            x = through(through(x, narrow, elu=True), wide, elu=True, residual=x)
        elif not isinstance(layer, Elu):
            x = through(x, layer, elu=elu)
        elu = isinstance(layer, Elu)
    return x


def run_transformer(
    transformer: Transformer, x: Tensor, by: Filters, stream: Stream, active: Active, now: Moment
) -> Tensor:
    """x [S, dim, T] through the layers and their rings, which are written, not advanced."""
    slots, _, columns = x.shape
    push = Decode(stream.rings, active, columns)
    for index, layer in enumerate(transformer.layers):
        attention = layer.self_attn
        qkv = convolve(norm_columns(layer.norm1, x), by[attention.in_proj], now, rows=True)
        qkv = qkv.transpose(1, 2).view(slots, columns, 3, attention.heads, -1)
        attended = push.attend(index, qkv).transpose(1, 2)  # [S, dim, T]
        x = convolve(
            attended, by[attention.out_proj], now, scale=layer.layer_scale_1, residual=x, rows=True
        )
        h = norm_columns(layer.norm2, x)
        hidden = convolve(h, by[layer.linear1], now, gelu=True, rows=True)
        x = convolve(
            hidden, by[layer.linear2], now, scale=layer.layer_scale_2, residual=x, rows=True
        )
    return x


def norm_columns(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """x [S, dim, T], each column over its channels."""
    return norm(x.transpose(1, 2)).transpose(1, 2)
