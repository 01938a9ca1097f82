"""What becomes of a combination that does not fit, whatever bench asks for it."""

import weakref

import pytest
import torch

from engine.bench.device import skip_if_full


def test_what_did_fit_is_given_back_before_the_next_combination():
    held, rows = [], []

    def work():
        rings = torch.zeros(8)
        held.append(weakref.ref(rings))
        yield {"row": 1}
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee …")

    def keep(row: dict) -> None:
        rows.append((row, held[0]() is None))

    with skip_if_full({"slots": 16}, keep):
        list(work())
    note = "does not fit: CUDA out of memory. Tried to allocate 2 GiB."
    assert rows == [({"slots": 16, "note": note}, True)]


def test_work_that_fits_gets_no_row_and_other_errors_pass():
    rows = []
    with skip_if_full({"slots": 1}, rows.append):
        pass
    with pytest.raises(RuntimeError, match="illegal"), skip_if_full({"slots": 1}, rows.append):
        raise RuntimeError("illegal memory access")
    assert rows == []
