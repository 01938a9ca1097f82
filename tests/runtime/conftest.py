"""The tiny checkpoint as a backend."""

from pathlib import Path

import pytest

from engine.dialogue.voices import Voices
from engine.runtime.loader import Checkpoint, load_checkpoint

TINY = Path(__file__).parents[1] / "golden" / "tiny"


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    return load_checkpoint(str(TINY), Voices)
