"""`bench memory`: what is measured on a CPU, and what does not fit."""

import json

import pytest
import torch

from engine.bench import tick
from engine.bench.report import parse_options
from engine.bench.tick import MEMORY
from tests.bench.conftest import QUICK

ITEMS = ["language model", "codec", "rings", "codec's state"]


@pytest.fixture
def ran(tmp_path, monkeypatch, small):
    monkeypatch.setattr(tick, "generate_models", lambda args, weights: small)

    def run(*options: str) -> list[dict]:
        path = tmp_path / "memory.json"
        given = ["--random", "--small", "--device", "cpu", "--weights", "bf16", "--json", str(path)]
        MEMORY.run(parse_options(MEMORY, [*given, *options]))
        return json.loads(path.read_text())["rows"]

    return run


def test_every_item_that_a_cpu_has_is_measured(ran):
    rows = ran("--slots", "2", "--kv", "bf16")
    assert [row["item"] for row in rows] == ITEMS
    sizes = {row["item"]: row["measured_gb"] * 1e9 for row in rows}
    layers, dim, columns = QUICK.lm.num_layers, QUICK.lm.dim, 752  # 750 on a border of 16
    assert sizes["rings"] == pytest.approx(2 * layers * 2 * dim * columns * 4)


def test_each_precision_of_weights_and_of_keys_and_values_is_measured(ran):
    rows = ran("--slots", "1", "--weights", "bf16", "int8")
    assert {(row["weights"], row["kv"]) for row in rows} == {
        (weights, kv) for weights in ("bf16", "int8") for kv in ("bf16", "int8")
    }


def test_slots_that_do_not_fit_get_a_row_that_says_so(ran, monkeypatch):
    def full(*_given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(tick, "make_loop", full)
    (row,) = ran("--kv", "bf16")
    assert row["note"].startswith("does not fit: CUDA out of memory")


def test_all_that_a_gpu_gives_is_counted_from_before_the_weights_to_after_serving(ran, monkeypatch):
    done, free = [], iter((1000, 300))

    def watched(name, answer):
        def call(*given):
            done.append(name)
            return answer(*given)

        return call

    for name, answer in {
        "free_bytes": lambda device: next(free), "generate_models": tick.generate_models,
        "Ticks": tick.Ticks, "run_tick": tick.run_tick,
    }.items():  # fmt: skip
        monkeypatch.setattr(tick, name, watched(name, answer))
    rows = ran("--slots", "1", "--kv", "bf16")
    ticks = ["run_tick"] * tick.SERVING_TICKS
    assert done == ["free_bytes", "generate_models", "Ticks", *ticks, "free_bytes"]
    assert rows[-1]["item"] == "all of it"
    assert rows[-1]["measured_gb"] * 1e9 == pytest.approx(700)
