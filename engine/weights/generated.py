"""Models of generated weights, for measuring and testing where no checkpoint is at hand.

The shapes are a checkpoint's, the numbers a seeded draw: speed and memory are real, words are not.
`generated` makes models on a device, `write_checkpoint` a folder that loads like any other.
Nothing here is for talking to people.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.config import PAD, VOICE_NAMES
from engine.model.config import (
    LMConfig,
    MimiConfig,
    ModelConfig,
    QuantizerConfig,
    TransformerConfig,
)
from engine.model.lm import LM, ZERO_ROW
from engine.model.mimi import Mimi
from engine.model.prompt import RING
from engine.weights.checkpoint import set_parameter, usual_dtype
from engine.weights.hub import CONFIG, LM_FILE, MIMI_FILE, TEXT_FILE
from engine.weights.loading import SentencePieceTokenizer
from engine.weights.names import find_sources

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


def draw_values(
    model: nn.Module, dtype: torch.dtype, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of every parameter of a model on the meta device, one after the other.

    What must be positive is one, the rest keeps its input's size. Drawn in float32.
    """
    for name, parameter in list(model.named_parameters()):
        shape = parameter.shape
        value = torch.ones(shape, device=generator.device)
        if not (name.endswith(("alpha", "cluster_usage", "_initialized")) or ".norm" in name):
            inputs = shape[1:].numel() if len(shape) > 1 else 1
            spread = 1.0 if "embedding" in name or "emb." in name else max(1, inputs) ** -0.5
            value.normal_(0, 0.1 if len(shape) == 1 else spread, generator=generator)
        if name == "embedding.table":
            value[ZERO_ROW] = 0
        yield name, value.to(dtype)


def on_meta(config: ModelConfig) -> tuple[LM, Mimi]:
    """Both models without memory."""
    with torch.device("meta"):
        return LM(config.lm), Mimi(config.mimi)


def generated(
    config: ModelConfig, device: str | torch.device, weights: str = "bf16", seed: int = 0
) -> tuple[LM, Mimi]:
    """Both models with seeded weights; on a CPU `bf16` is float32, as everywhere."""
    generator = torch.Generator(device).manual_seed(seed)
    lm, mimi = on_meta(config)
    for name, value in draw_values(mimi, torch.float32, generator):
        set_parameter(mimi, name, value)
    mimi.prepare()
    mimi.use_fused_kernels()
    for name, value in draw_values(lm, usual_dtype(generator.device), generator):
        set_parameter(lm, name, value, int8=weights == "int8")
    lm.use_fused_kernels()
    return lm, mimi


# -- checkpoints on disk ---------------------------------------------------------------------------
#
# In the layout of the public files of 8 depth steps. The vocabulary is that of the tests' tiny
# checkpoint; the voice is a saved one as the public ones are, so that no sound must be read.

TINY = Path(__file__).parents[2] / "tests" / "golden" / "tiny"
VOICE_FRAMES = 50  # four seconds
FILLER_SCORE = -100.0  # of pieces that only fill the vocabulary: a text never needs one


def write_checkpoint(folder: Path, config: ModelConfig, device: str = "cpu", seed: int = 0) -> None:
    """A folder that loads like any checkpoint and equals `generated`; holds the model twice."""
    (folder / "voices").mkdir(parents=True, exist_ok=True)
    rows = [PAD, *config.lm.silence_tokens, *config.lm.sine_tokens]
    size = (VOICE_FRAMES, 1, 1, config.lm.dim)
    voice = {
        "embeddings": torch.randn(size, generator=torch.Generator().manual_seed(seed)),
        "cache": torch.tensor(rows)[None, :, None].repeat(1, 1, RING),
    }
    torch.save(voice, folder / "voices" / f"{VOICE_NAMES[0]}.pt")
    write_tokenizer(folder / TEXT_FILE, config.lm.text_card)
    generator = torch.Generator(torch.device(device)).manual_seed(seed)
    lm, mimi = on_meta(config)
    write_model(folder / MIMI_FILE, mimi, torch.float32, generator)
    write_model(folder / LM_FILE, lm, torch.bfloat16, generator)
    written = replace(config, lm=replace(config.lm, dep_q=config.lm.codebooks))
    (folder / CONFIG).write_text(json.dumps(asdict(written), indent=2), encoding="utf-8")


def write_model(
    path: Path, model: LM | Mimi, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Draw a model's parameters into the file that it is read from."""
    sources, tensors = find_sources(model), {}
    for name, value in draw_values(model, dtype, generator):
        for part in sources[name]:
            if part.name not in tensors:
                tensors[part.name] = torch.empty(part.shapes[-1], dtype=dtype)
            row = math.prod(value.shape[1:])  # numbers
            end = None if part.rows is None else part.start + part.rows
            rows = value[part.start : end].flatten()
            tensors[part.name].view(-1)[part.skip * row :][: len(rows)].copy_(rows)
    save_file(tensors, path)


def write_tokenizer(path: Path, size: int) -> None:
    """The tiny vocabulary and fillers up to `size`: protobuf takes repeated fields at the end."""
    source = TINY / TEXT_FILE
    own = len(SentencePieceTokenizer(source))
    assert size >= own, f"text_card is {size}; the vocabulary of {source} has {own} pieces"
    score = b"\x15" + torch.tensor(FILLER_SCORE).numpy().tobytes()
    # Field 1 of SentencePiece's ModelProto: a piece's text (1) and score (2).
    texts = (_field(1, f"▁w{number}".encode()) for number in range(own, size))
    path.write_bytes(source.read_bytes() + b"".join(_field(1, text + score) for text in texts))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content
