"""A model of odd sizes, and tensors in memory where a file is expected."""

from torch import Tensor

from engine.model.config import (
    LMConfig,
    MimiConfig,
    ModelConfig,
    QuantizerConfig,
    TransformerConfig,
)
from engine.weights.names import TensorSlice

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


class Held:
    """Tensors in memory where a `TensorFile` is expected."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values

    def read(self, part: TensorSlice) -> Tensor:
        value = self.values[part.name]
        return value if part.rows is None else value[part.skip : part.skip + part.rows]
