"""Generated checkpoints on disk: they load like any, and are the model that is made in memory."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from engine.config import GREEDY, VOICE_NAMES
from engine.model.config import LMConfig, MimiConfig, ModelConfig
from engine.model.config import QuantizerConfig as Quantizer
from engine.model.config import TransformerConfig as Transformer
from engine.model.transformer import Linear
from engine.runtime.backend import Opening
from engine.runtime.personaplex import PersonaPlexBackend
from engine.weights.checkpoint import TensorFile
from engine.weights.generated import generated, write_checkpoint
from engine.weights.hub import LM_FILE, MIMI_FILE
from engine.weights.loading import load_checkpoint
from tests.runtime.playing import play

LEAST = ModelConfig(  # what takes no time, and no two widths alike
    lm=LMConfig(
        dim=64, num_heads=4, num_layers=2, context=60, card=64, text_card=400,
        depformer_dim=24, depformer_num_heads=2, depformer_num_layers=2,
        depformer_dim_feedforward=99,
        silence_tokens=tuple(range(8)), sine_tokens=tuple(range(8, 16)),
    ),
    mimi=MimiConfig(
        dimension=32, n_filters=4,
        transformer=Transformer(32, 4, 2, 64, 20), quantizer=Quantizer(16, 16, 64),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    write_checkpoint(folder, LEAST)
    return folder


def numbers(model) -> dict[str, torch.Tensor]:
    """Every parameter in float32, whatever became of it."""
    found = {name: value.float() for name, value in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.packed is not None:
            found[f"{name}.weight"] = module.packed.to_dense()
    return found


def test_a_generated_folder_is_the_generated_model(folder):
    loaded, (lm, mimi) = load_checkpoint(str(folder)), generated(LEAST, "cpu")
    for got, want, rounded in ((loaded.lm, lm, True), (loaded.mimi, mimi, False)):
        got, want = numbers(got), numbers(want)
        assert got.keys() == want.keys()
        for name, value in want.items():
            expected = value.bfloat16().float() if rounded else value
            assert torch.equal(got[name], expected), name


def test_another_seed_makes_other_weights(folder, tmp_path):
    write_checkpoint(tmp_path, LEAST, seed=1)
    assert (tmp_path / LM_FILE).read_bytes() != (folder / LM_FILE).read_bytes()


def test_a_generated_folder_has_the_types_and_steps_of_a_release(folder):
    assert types(folder / LM_FILE) == {"BF16"}
    assert types(folder / MIMI_FILE) == {"F32"}
    names = TensorFile(folder / LM_FILE).names
    assert "linears.7.weight" in names
    assert "linears.8.weight" not in names
    assert json.loads((folder / "config.json").read_text())["lm"]["dep_q"] == 8


def types(path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def test_a_generated_vocabulary_has_exactly_the_pieces_of_the_config(folder):
    tokenizer = load_checkpoint(str(folder)).tokenizer
    assert len(tokenizer) == LEAST.lm.text_card
    assert tokenizer.piece(399) == "▁w399"
    assert tokenizer.decode(tokenizer.encode("hello there")) == "hello there"


def test_a_vocabulary_below_the_tiny_one_is_refused(tmp_path):
    small = replace(LEAST, lm=replace(LEAST.lm, text_card=300))
    with pytest.raises(AssertionError, match="text_card is 300"):
        write_checkpoint(tmp_path, small)


def test_a_conversation_runs_on_a_generated_folder(folder):
    backend = PersonaPlexBackend(load_checkpoint(str(folder)), slots=1)
    assert play(backend, 0, Opening(VOICE_NAMES[0], (5, 6), GREEDY), frames=3).tokens
