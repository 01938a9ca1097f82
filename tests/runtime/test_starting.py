"""How many slots a machine gets: by memory, by time, as asked; and how the log says it."""

import functools
import logging

import pytest
import torch

from engine.config import ServerConfig
from engine.errors import ModelError
from engine.model.config import ModelConfig
from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.model.stt import Recogniser, SttConfig
from engine.runtime import starting
from engine.runtime.load import TickTable
from engine.runtime.personaplex import CACHE_MB, PersonaPlexBackend
from engine.runtime.starting import (
    SPARE_SHARE,
    _room_beside,
    describe_slots,
    fit_backend,
    load_personaplex,
)
from engine.weights.loading import Checkpoint, LoadedRecogniser
from engine.weights.sizing import (
    GIB,
    PRECISIONS,
    RESERVE_BYTES,
    WORK_BYTES,
    Memory,
    Precision,
    bytes_of,
    products,
)
from tests.runtime.conftest import TINY

A10G = 23_028 << 20  # bytes that the card reports


@functools.cache
def public_model(int8: bool = False) -> Checkpoint:
    """The public checkpoint's shapes, without numbers."""
    config = ModelConfig()
    with torch.device("meta"):
        lm, mimi = LM(config.lm).to(torch.bfloat16), Mimi(config.mimi)
    for product in products(lm) if int8 else ():
        product.quantise()
    return Checkpoint("public", lm, mimi, None, None)


@functools.cache
def public_recogniser() -> LoadedRecogniser:
    with torch.device("meta"):
        stt = Recogniser(SttConfig()).to(torch.bfloat16)
    for product in products(stt):
        product.quantise()
    return LoadedRecogniser(stt, None)


def beside(*models: torch.nn.Module) -> int:
    """What an A10G has free beside these."""
    scales = [p.scale for m in models for p in products(m) if getattr(p, "scale", None) is not None]
    return A10G - sum(bytes_of(model.parameters()) for model in models) - bytes_of(scales)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("heard", "slots"), [(False, [4, 8, 8, 16]), (True, [3, 6, 7, 14])])
def test_an_a10g_holds_what_the_specification_says_whichever_mode_is_loaded(int8, heard, slots):
    model, recogniser = public_model(int8), public_recogniser() if heard else None
    free = beside(model.lm, model.mimi, *([recogniser.stt] if heard else []))
    mode = Precision("int8" if int8 else "bf16", "bf16")
    memory = Memory(model, recogniser, mode, free)
    assert [memory.slots(other) for other in PRECISIONS] == slots


def test_the_bytes_are_those_of_the_specification():
    model = public_model()
    memory = Memory(model, None, Precision(), beside(model.lm, model.mimi))
    assert bytes_of(model.lm.parameters()) / GIB == pytest.approx(14.32, abs=0.01)
    assert memory.slot_bytes(Precision()) / GIB == pytest.approx(1.49, abs=0.01)
    assert memory.slot_bytes(Precision("bf16", "int8")) / GIB == pytest.approx(0.77, abs=0.01)


def test_the_start_log_states_slots_for_both_modes():
    model = public_model()
    memory = Memory(model, None, Precision(), beside(model.lm, model.mimi))
    assert describe_slots(memory, Precision(), 4, "memory") == (
        "slots: 4 here (weights bf16, KV bf16, limited by memory); "
        "16 with int8 weights and KV (by memory, projected)"
    )
    assert describe_slots(memory, Precision("bf16", "int8"), 8, "time") == (
        "slots: 8 here (weights bf16, KV int8, limited by time); "
        "4 with bf16 weights and KV (by memory, projected); "
        "16 with int8 weights and KV (by memory, projected)"
    )


# -- choosing, with a figure for free memory in place of a GPU's -----------------------------------


@pytest.fixture
def room(tiny, monkeypatch):
    """Pretend that there is memory for so many conversations, and some bytes more."""
    each = Memory(tiny, None, Precision(), 0).slot_bytes(Precision())

    def pretend(slots: float, more: int = 0) -> None:
        free = RESERVE_BYTES + WORK_BYTES + int(slots * each) + more
        monkeypatch.setattr(starting, "free_bytes", lambda device: free)

    return pretend


@pytest.fixture
def ticks(monkeypatch):
    """Pretend that the ticks of the buckets take so many seconds."""

    def pretend(seconds: dict[int, float]) -> None:
        def measure(backend: PersonaPlexBackend) -> None:
            held = {size: taken for size, taken in seconds.items() if size <= backend.slots}
            backend.ticks = TickTable(held, {64: 0.02})

        monkeypatch.setattr(PersonaPlexBackend, "measure", measure)

    return pretend


def test_slots_are_as_many_as_memory_holds(tiny, room, caplog):
    room(5.9)
    with caplog.at_level(logging.INFO, "engine.runtime.starting"):
        backend = fit_backend(tiny, None, Precision())
    assert (backend.slots, backend.limited_by) == (5, "memory")
    assert "slots: 5 here (weights bf16, KV bf16, limited by memory)" in caplog.text


def test_where_memory_is_plenty_it_limits_nothing(tiny, room):
    room(120)
    backend = fit_backend(tiny, None, Precision())
    assert (backend.slots, backend.limited_by) == (96, "most")


def test_int8_keys_make_more_slots_of_the_same_memory(tiny, room):
    room(5.9)
    assert fit_backend(tiny, None, Precision("bf16", "int8")).slots > 5


def test_fewer_slots_in_time_than_in_memory_are_what_there_is(tiny, room, ticks):
    room(12)
    ticks({1: 0.03, 2: 0.04, 4: 0.06, 8: 0.075, 12: 0.09})
    backend = fit_backend(tiny, None, Precision())
    assert (backend.slots, backend.limited_by) == (4, "time")
    assert backend.loop.slots == backend.loop.rings.kv.shape[2] == 4  # the memory is given back
    assert backend.ticks.seconds == {1: 0.03, 2: 0.04, 4: 0.06}


def test_a_machine_too_slow_for_one_still_gets_one(tiny, room, ticks):
    room(3)
    ticks({1: 0.1, 2: 0.12, 3: 0.15})
    backend = fit_backend(tiny, None, Precision())
    assert (backend.slots, backend.limited_by) == (1, "time")


def test_slots_that_are_asked_for_are_exactly_so_many_even_if_slow(tiny, room, ticks, caplog):
    room(12)
    ticks({1: 0.03, 2: 0.04, 3: 0.09})
    backend = fit_backend(tiny, None, Precision(), 3)
    assert (backend.slots, backend.limited_by) == (3, "asked")
    assert "a tick of 3 slots takes too long here: 2 are in time" in caplog.text


def test_asking_for_more_than_memory_holds_says_what_fits_and_what_to_do(tiny, room):
    room(3.5)
    with pytest.raises(ModelError) as caught:
        fit_backend(tiny, None, Precision(), 6)
    said = str(caught.value)
    assert "slots is 6" in said
    assert "hold 3 (weights bf16, KV bf16)" in said
    assert "use --slots 3 or another precision: " in said
    assert "weights bf16, KV int8 (6)" in said
    assert "\n" not in said


def test_memory_for_not_even_one_slot_is_a_clear_error(tiny, room):
    room(0.1)
    with pytest.raises(ModelError, match=r"as many as fit.* hold 0 .*larger GPU"):
        fit_backend(tiny, None, Precision())


def test_a_device_that_runs_out_of_memory_is_a_clear_error_too(monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee …")

    monkeypatch.setattr(starting, "load_checkpoint", full)
    with pytest.raises(ModelError, match=r"^cpu ran out of memory .*2 GiB\.; .*--slots[^\n]*$"):
        load_personaplex(ServerConfig(model=str(TINY), device="cpu"))


def test_renewal_is_off_where_memory_for_the_spare_state_is_missing(tiny, room, caplog):
    each = Memory(tiny, None, Precision(), 0)
    whole = each.spare(10**12)[1]
    room(2, more=whole)  # the tiny ring has less columns than a spare must have
    backend = fit_backend(tiny, None, Precision(), 2, renewal_frames=6)
    assert backend.renewal is None
    [said] = [record.message for record in caplog.records if "not renewed" in record.message]
    assert said.endswith("use --slots 1 or --weights int8 --kv int8")
    room(2, more=whole * 4 // 3 + 1)  # a quarter is for kept prompts
    caplog.clear()
    assert fit_backend(tiny, None, Precision(), 2, renewal_frames=6).renewal.frames == 6
    assert "not renewed" not in caplog.text


def test_a_spare_that_fits_only_beside_the_slots_in_time_is_not_said_to_be_missing(
    tiny, room, ticks, caplog
):
    room(8.1)
    ticks({1: 0.03, 2: 0.04, 4: 0.05, 8: 0.09})
    backend = fit_backend(tiny, None, Precision(), renewal_frames=6)
    assert (backend.slots, backend.renewal.frames) == (4, 6)
    assert "not renewed" not in caplog.text


def test_kept_prompts_take_only_what_conversations_and_renewal_leave(tiny, room):
    room(2, more=7_000_000)
    assert fit_backend(tiny, None, Precision(), 2).cache._budget == pytest.approx(7e6, abs=1)
    room(2, more=10**10)
    assert fit_backend(tiny, None, Precision(), 2).cache._budget == CACHE_MB * 1e6


def test_on_a_cpu_nothing_is_measured_and_the_log_says_so(tiny, caplog):
    with caplog.at_level(logging.INFO, "engine.runtime.starting"):
        backend = fit_backend(tiny, None, Precision())
    assert (backend.slots, backend.limited_by, backend.ticks) == (4, "cpu", None)
    assert "slots: 4 here (weights bf16, KV bf16, not measured on a CPU)" in caplog.text


@pytest.mark.parametrize("heard", [False, True])
def test_an_a10g_renews_calls_in_every_mode_and_keeps_a_prompt_beside(heard):
    for mode in PRECISIONS:
        model = public_model(int8=mode.weights == "int8")
        recogniser = public_recogniser() if heard else None
        models = [model.lm, model.mimi, *([recogniser.stt] if heard else [])]
        memory = Memory(model, recogniser, mode, beside(*models))
        columns, cache_mb = _room_beside(memory, memory.slots(), 1000)
        _, of_spare = memory.spare(SPARE_SHARE * memory.left(memory.slots()))
        assert 750 < columns <= model.lm.window
        assert cache_mb * 1e6 > 100 * memory.slot_bytes(mode) / model.lm.window  # of 100 columns
        if columns < model.lm.window:
            assert of_spare + cache_mb * 1e6 <= memory.left(memory.slots())
    assert columns == (model.lm.window if not heard else 927)  # int8 throughout


def test_some_memory_is_left_for_kept_prompts_however_much_a_whole_ring_wants():
    model = public_model()
    memory = Memory(model, None, Precision(), beside(model.lm, model.mimi))
    for more in range(400, 3200, 100):  # MB beside the conversations
        memory._free = memory._free - memory.left(4) + more * 1_000_000
        columns, cache_mb = _room_beside(memory, 4, 1000)
        assert cache_mb >= 99
        assert columns > 400
    assert columns == model.lm.window


def test_a_spare_is_as_large_as_memory_allows_and_none_if_that_is_too_small():
    model = public_model()
    memory = Memory(model, None, Precision(), beside(model.lm, model.mimi))
    bytes_of_a_column = 512 * 1024
    columns, size = memory.spare(500 * bytes_of_a_column)
    assert (columns, size) == (495, 496 * bytes_of_a_column)
    assert memory.spare(399 * bytes_of_a_column) == (0, 0)
