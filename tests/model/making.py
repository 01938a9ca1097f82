"""Random checkpoints of any size, in the layout of the public files."""

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.model.config import (
    LMConfig,
    MimiConfig,
    ModelConfig,
    QuantizerConfig,
    TransformerConfig,
)
from engine.weights.generated import on_meta
from engine.weights.names import TensorSlice, lm_pieces, mimi_pieces

ODD = ModelConfig(  # nothing here is a multiple of what a vector or a cache line holds
    lm=LMConfig(
        dim=40, num_heads=4, num_layers=2, hidden_scale=4.0, context=11, card=30, text_card=77,
        depformer_dim=36, depformer_num_heads=3, depformer_num_layers=2,
        depformer_dim_feedforward=149,
        silence_tokens=tuple(range(8)), sine_tokens=tuple(range(8, 16)),
    ),
    mimi=MimiConfig(
        dimension=24, n_filters=3,
        transformer=TransformerConfig(24, 3, 2, 50, context=7),
        quantizer=QuantizerConfig(10, 9, 30),
    ),
)  # fmt: skip


def tensors(
    pieces: Iterable[tuple[str, list[TensorSlice]]], usual: bool = True, scale: float = 0.2
) -> dict[str, Tensor]:
    """Seeded values for every tensor; `usual` False: the other shape a file may have."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for _, group in pieces:
        for piece in group:
            shape = piece.shapes[0 if usual else -1]
            value = torch.randn(shape, generator=generator) * scale
            positive = piece.name.endswith(("alpha", "cluster_usage", "scale"))
            made.setdefault(piece.name, value.abs() + 0.5 if positive else value)
    return made


def checkpoint(config: ModelConfig, usual: bool = True) -> tuple[dict, dict]:
    """(language model's, codec's) tensors; usual False: 8 depth steps, norms of one dimension."""
    lm, mimi = on_meta(config)
    audio = tensors(mimi_pieces(mimi))
    text = tensors(lm_pieces(lm), usual)
    return text, audio


class Held:
    """Tensors in memory where a `TensorFile` is expected."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values

    def read(self, piece: TensorSlice) -> Tensor:
        value = self.values[piece.name]
        return value if piece.rows is None else value[piece.skip : piece.skip + piece.rows]
