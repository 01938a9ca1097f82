"""What the benches' tests share: a generated model of the reduced size."""

import pytest

from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.weights.generated import SMALL, generated


@pytest.fixture(scope="session")
def small() -> tuple[LM, Mimi]:
    return generated(SMALL, "cpu")
