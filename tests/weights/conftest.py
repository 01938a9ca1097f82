"""The tiny checkpoint, as in the runtime's tests."""

from tests.runtime.conftest import copy, tiny

__all__ = ["copy", "tiny"]
