"""What the benches' tests share: a generated model of the reduced size, and one thread for it."""

from collections.abc import Iterator

import pytest
import torch

from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.weights.generated import SMALL, generated


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a model gains nothing from two, and waits long for a busy machine's second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small() -> tuple[LM, Mimi]:
    return generated(SMALL, "cpu")
