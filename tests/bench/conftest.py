"""What the benches' tests share: a model smaller than --small's, as no number here is a result."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.bench import device, gpu, peer
from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.weights.generated import SMALL, generated

QUICK = replace(
    SMALL,
    lm=replace(
        SMALL.lm, dim=64, num_layers=2,
        depformer_dim=32, depformer_num_layers=1, depformer_dim_feedforward=128,
    ),
)  # fmt: skip


@pytest.fixture(scope="session")
def small() -> tuple[LM, Mimi]:
    return generated(QUICK, "cpu")


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """The same for the benches that make a model themselves; and a short copy is timed."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (device, gpu, peer):
            patch.setattr(module, "SMALL", QUICK)
        patch.setattr(device, "CPU_COPY_BYTES", 16 << 20)
        yield
