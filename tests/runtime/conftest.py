"""The tiny checkpoint, whole and with fewer layers."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.weights.loading import Checkpoint, load_checkpoint

TINY = Path(__file__).parents[1] / "golden" / "tiny"
LAYERS = {"transformer": 2, "depformer": 1}  # that a thin one keeps


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    torch.set_num_threads(1)  # so small a model gains nothing from two
    return load_checkpoint(str(TINY))


def make_thin(folder: Path, **lm: int) -> Path:
    """Put the tiny checkpoint with fewer layers and changed numbers of its model into a folder.

    A tick of it takes a quarter less. It is for what two forms of one model have to say alike; what
    the reference says is compared with the whole one.
    """

    def is_kept(name: str) -> bool:
        found = re.match(r"(\w+)\.layers\.(\d+)\.", name)
        return not found or int(found[2]) < LAYERS[found[1]]

    for path in TINY.iterdir():
        if path.name not in ("config.json", "model.safetensors", "expected"):
            (folder / path.name).symlink_to(path)
    config = json.loads((TINY / "config.json").read_text())
    config["lm"] |= {"num_layers": LAYERS["transformer"], **lm}
    config["lm"]["depformer_num_layers"] = LAYERS["depformer"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(TINY / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if is_kept(name)}
    save_file(kept, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def thin(tmp_path_factory) -> Checkpoint:
    torch.set_num_threads(1)
    return load_checkpoint(str(make_thin(tmp_path_factory.mktemp("thin"))))


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the tiny checkpoint's folder that a test may change."""
    ignored = shutil.ignore_patterns("expected", "*.int8.safetensors")
    return shutil.copytree(TINY, tmp_path / "tiny", ignore=ignored)
