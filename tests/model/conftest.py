"""The tiny checkpoint's modules, loaded once, and its expected results."""

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.model.config import ModelConfig
from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.weights.loading import load
from tests.model import interpreting

HAS_TRITON = importlib.util.find_spec("triton") is not None  # it exists on Linux only
NEED_TRITON = (
    *(
        "test_compiled",
        "test_cuda",
        "test_fused",
        "test_fused_codec",
        "test_fused_golden",
        "test_graphs",
    ),
    *("test_kernels", "test_kernels_attention", "test_kernels_pick", "test_prefill"),
)
collect_ignore = [] if HAS_TRITON else [f"{name}.py" for name in NEED_TRITON]

if HAS_TRITON and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported
    interpreting.prepare()

TINY = Path(__file__).parents[1] / "golden" / "tiny"
CPU = torch.device("cpu")


def build_lm(dtype: torch.dtype = torch.float32) -> LM:
    config = ModelConfig.from_json(json.loads((TINY / "config.json").read_text()))
    with torch.device("meta"):
        lm = LM(config.lm)
    load(lm, TINY / "model.safetensors", CPU, dtype)
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
    load(mimi, path, CPU, torch.float32)
    mimi.prepare()
    return mimi


@pytest.fixture(scope="session")
def expected():
    """expected("codec") -> its tensors."""
    return lambda run: load_file(TINY / "expected" / f"{run}.safetensors")


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def _wide_tiles(monkeypatch):
    """One program for all outputs of a product, as the interpreter runs programs one by one.

    A GPU keeps its own tiles, for it has no room for wider ones. test_kernels.py looks at tiles.
    """
    from engine.model.gpu import kernels

    if not kernels.INTERPRETED:
        return
    tile_for = kernels.tile_for

    def wide(n, *of):
        tile = tile_for(n, *of)
        return replace(tile, bn=max(tile.bn, kernels.triton.next_power_of_2(n)))

    monkeypatch.setattr(kernels, "tile_for", wide)


def pytest_report_header() -> list[str]:
    """Say once what this machine cannot test."""
    skipped = f"skipped, for triton is not on this machine: {', '.join(NEED_TRITON)}"
    return [] if HAS_TRITON else [skipped]
