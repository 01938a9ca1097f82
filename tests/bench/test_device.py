"""What becomes of a combination that does not fit, whatever bench asks for it."""

import weakref

import pytest
import torch

from engine.bench.device import check_room, skip_if_full
from engine.weights.sizing import Memory, Precision
from tests.runtime.test_starting import beside, public_model


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


def test_an_a10g_has_room_for_four_slots_in_bf16_and_is_told_why_not_for_sixteen():
    model = public_model()
    memory = Memory(model, None, Precision(), beside(model.lm, model.mimi))
    check_room(memory, 4)
    with pytest.raises(torch.OutOfMemoryError, match=r"^25\.50 GB of 6\.94 GB beside the weights"):
        check_room(memory, 16)
