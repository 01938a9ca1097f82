"""The language model's step in few, large kernels: about 8 launches a layer instead of 20.

The same weights and the same rounding as the plain modules, which are its oracle. Imported only
where the kernels can run: on a CUDA device with triton, or under triton's interpreter in tests.
"""

import torch
from torch import Tensor

from engine.model.attention import Rings
from engine.model.depformer import Depformer, DepthLayer, Pick
from engine.model.kernels import add_norm, embed, matmul
from engine.model.kernels_attention import Decode, attend_few
from engine.model.kernels_pick import pick, pick_text
from engine.model.kernels_prompt import Piece
from engine.model.linear import Linear
from engine.model.state import Active
from engine.model.transformer import RMS_EPS, Attends, Gating, RMSNorm

__all__ = ["depth", "embedded", "pick", "pick_text", "prefill", "product", "step"]


def product(linear: Linear, x: Tensor, **how: bool) -> Tensor:
    """A linear layer through the kernel, whatever its weight is kept in."""
    return matmul(x, linear.weight, linear.scale, **how)


def normed(x: Tensor, y: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    return add_norm(x, y, norm.alpha, RMS_EPS)


def gated(gating: Gating, x: Tensor) -> Tensor:
    """x [S, dim] -> parts of the feed-forward's result [P, S, dim]."""
    return product(gating.linear_out, product(gating.linear_in, x, gated=True), partial=True)


def embedded(embedding, tokens: Tensor) -> Tensor:
    """tokens [S, K] -> [S, dim]."""
    if embedding.offsets is None:
        embedding.offsets = torch.tensor(embedding.starts, device=embedding.table.device)
    return embed(tokens, embedding.offsets, embedding.table)


def step(lm, embedded: Tensor, rings: Rings, active: Active) -> Tensor:
    """`Temporal.step`: embedded [S, dim] -> hidden [S, dim]; the rings are not advanced."""
    return temporal(lm, embedded, Decode(rings, active))


def prefill(lm, embedded: Tensor, rings: Rings, slot: Tensor, count: Tensor) -> None:
    """The next columns of a slot, embedded [T, dim], of which the first `count` [1] count.

    They must fit behind what the ring of the slot [1] holds.
    """
    piece = Piece(rings, slot, count, len(embedded))
    temporal(lm, embedded, piece)
    piece.advance()


def temporal(lm, x: Tensor, push: Attends) -> Tensor:
    """All layers: embedded rows [S, dim] -> hidden [S, dim]; the rings are written."""
    y = None
    for index, layer in enumerate(lm.transformer.layers):
        x, h = normed(x, y, layer.norm1)
        qkv = product(layer.self_attn.in_proj, h)  # [S, 3 * dim]
        heard = push.attend(index, qkv.view(len(x), 1, 3, layer.self_attn.heads, -1))
        y = product(layer.self_attn.out_proj, heard[:, 0], partial=True)  # [P, S, dim]
        x, h = normed(x, y, layer.norm2)
        y = gated(layer.gating, h)
    return normed(x, y, lm.out_norm)[1]


def depth(depformer: Depformer, hidden: Tensor, text: Tensor, decide: Pick) -> Tensor:
    """`Depformer.forward`: hidden [S, dim], text [S] -> codes [S, Q]."""
    config = depformer.config
    steps, heads = config.codebooks, config.depformer_num_heads
    inputs = product(depformer.input, hidden).unflatten(-1, (steps, -1))  # [S, Q, dim]
    slots, width = len(hidden), inputs.shape[-1]
    shape = (len(depformer.layers), 2, slots, heads, steps, width // heads)
    kv = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
    first = torch.zeros(1, dtype=torch.int64, device=hidden.device)  # where a table begins

    def told(embedding: torch.nn.Embedding, tokens: Tensor) -> Tensor:
        return embed(tokens[:, None], first, embedding.weight)

    said, codes = told(depformer.text_emb, text), []
    for step in range(steps):
        x, y = inputs[:, step], said  # [S, dim]
        for layer, columns in zip(depformer.layers, kv, strict=True):
            x, y = _depth_layer(layer, x, y, step, columns)
        x, _ = add_norm(x, y, None)
        codes.append(decide(step, product(depformer.linears[step], x)))
        if step + 1 < steps:
            said = told(depformer.emb[step], codes[-1])
    return torch.stack(codes, 1)


def _depth_layer(
    layer: DepthLayer, x: Tensor, y: Tensor, step: int, kv: Tensor
) -> tuple[Tensor, Tensor]:
    """x and what is still to be added to it -> the same after the layer."""
    x, h = normed(x, y, layer.norm1)
    qkv = product(layer.in_proj[step], h).view(len(x), 3, layer.heads, -1)
    heard = attend_few(qkv, kv, step)
    x, h = normed(x, product(layer.out_proj[step], heard, partial=True), layer.norm2)
    return x, gated(layer.gating[step], h)
