"""Models of generated weights, made on the device: for measuring where no checkpoint is at hand.

The shapes are the checkpoint's, the numbers a seeded draw, so that speed and memory are real and
words are not. Nothing here is for talking to people.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from engine.model.config import (
    LMConfig,
    MimiConfig,
    ModelConfig,
    QuantizerConfig,
    TransformerConfig,
)
from engine.model.lm import LM, ZERO_ROW
from engine.model.mimi import Mimi
from engine.runtime.checkpoint import place

FULL = ModelConfig()
SMALL = ModelConfig(  # the public design at a width that two CPU cores run in real time
    lm=LMConfig(
        dim=256, num_heads=4, num_layers=4, context=750,
        depformer_dim=128, depformer_num_heads=4, depformer_num_layers=2,
        depformer_dim_feedforward=512,
    ),
    mimi=MimiConfig(
        dimension=64, n_filters=8,
        transformer=TransformerConfig(64, 4, 2, 128, 250),
        quantizer=QuantizerConfig(32, 32, 2048),
    ),
)  # fmt: skip


def value_of(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """One parameter in float32: what must be positive is one, the rest keeps its input's size."""
    if name.endswith(("alpha", "cluster_usage", "_initialized")) or ".norm" in name:
        return torch.ones(shape, device=generator.device)
    inputs = shape[1:].numel() if len(shape) > 1 else 1
    spread = 1.0 if "embedding" in name or "emb." in name else max(1, inputs) ** -0.5
    value = torch.empty(shape, device=generator.device)
    value.normal_(0, 0.1 if len(shape) == 1 else spread, generator=generator)
    if name == "embedding.table":
        value[ZERO_ROW] = 0
    return value


def values(
    model: nn.Module, dtype: torch.dtype, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of every parameter of a model on the meta device, one after the other."""
    for name, parameter in list(model.named_parameters()):
        yield name, value_of(name, parameter.shape, generator).to(dtype)


def on_meta(config: ModelConfig) -> tuple[LM, Mimi]:
    """Both models without memory."""
    with torch.device("meta"):
        return LM(config.lm), Mimi(config.mimi)


def generated(
    config: ModelConfig, device: str, weights: str = "bf16", seed: int = 0
) -> tuple[LM, Mimi]:
    """Both models with seeded weights; on a CPU `bf16` is float32, as everywhere."""
    where = torch.device(device)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    generator = torch.Generator(where).manual_seed(seed)
    lm, mimi = on_meta(config)
    for name, value in values(mimi, torch.float32, generator):
        place(mimi, name, value)
    mimi.prepare()
    for name, value in values(lm, dtype, generator):
        place(lm, name, value, int8=weights == "int8")
    lm.hasten()
    return lm, mimi
