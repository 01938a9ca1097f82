"""The tiny checkpoint's modules, loaded once, and its expected results."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.model.config import ModelConfig
from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.model.names import lm_pieces, mimi_pieces, unused_by_lm
from engine.runtime.checkpoint import load
from tests.model import interpreting

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported
    interpreting.prepare()

TINY = Path(__file__).parents[1] / "golden" / "tiny"
CPU = torch.device("cpu")


def build_lm(dtype: torch.dtype = torch.float32) -> LM:
    config = ModelConfig.from_json(json.loads((TINY / "config.json").read_text()))
    with torch.device("meta"):
        lm = LM(config.lm)
    path = TINY / "model.safetensors"
    load(lm, path, lm_pieces(lm), CPU, dtype, lambda name: unused_by_lm(lm, name))
    return lm


@pytest.fixture(scope="session")
def lm() -> LM:
    return build_lm()


@pytest.fixture(scope="session")
def mimi() -> Mimi:
    config = ModelConfig.from_json(json.loads((TINY / "config.json").read_text()))
    with torch.device("meta"):
        mimi = Mimi(config.mimi)
    path = TINY / "tokenizer-e351c8d8-checkpoint125.safetensors"
    load(mimi, path, mimi_pieces(mimi), CPU, torch.float32)
    mimi.prepare()
    return mimi


@pytest.fixture(scope="session")
def expected():
    """expected("codec") -> its tensors."""
    return lambda run: load_file(TINY / "expected" / f"{run}.safetensors")


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)  # so small a model gains nothing from two
    with torch.inference_mode():
        yield
