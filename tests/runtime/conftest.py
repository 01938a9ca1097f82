"""The tiny checkpoint, as a backend and as a folder."""

import shutil
from pathlib import Path

import pytest
import torch

from engine.weights.loading import Checkpoint, load_checkpoint

TINY = Path(__file__).parents[1] / "golden" / "tiny"


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    torch.set_num_threads(1)  # so small a model gains nothing from two
    return load_checkpoint(str(TINY))


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the tiny checkpoint's folder that a test may change."""
    ignored = shutil.ignore_patterns("expected", "*.int8.safetensors")
    return shutil.copytree(TINY, tmp_path / "tiny", ignore=ignored)
