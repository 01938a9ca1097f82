"""`bench memory`: what is measured on a CPU, and what does not fit."""

import json

import pytest

from engine.bench import device, tick
from engine.bench.report import parse_options
from engine.bench.tick import MEMORY
from engine.weights.generated import SMALL
from engine.weights.sizing import RESERVE_BYTES, WORK_BYTES

ITEMS = ["language model", "codec", "rings", "codec's state"]


@pytest.fixture
def ran(tmp_path, monkeypatch, small):
    monkeypatch.setattr(tick, "generate_models", lambda args, weights: small)

    def run(*options: str) -> list[dict]:
        path = tmp_path / "memory.json"
        given = ["--random", "--small", "--device", "cpu", "--weights", "bf16", "--json", str(path)]
        args = parse_options(MEMORY, [*given, *options])
        args.slots = None if "--slots" not in options else args.slots
        MEMORY.run(args)
        return json.loads(path.read_text())["rows"]

    return run


def test_every_item_that_a_cpu_has_is_measured(ran):
    rows = ran("--slots", "2", "--kv", "bf16")
    assert [row["item"] for row in rows] == ITEMS
    sizes = {row["item"]: row["measured_gb"] * 1e9 for row in rows}
    layers, dim, columns = SMALL.lm.num_layers, SMALL.lm.dim, 752  # 750 on a border of 16
    assert sizes["rings"] == pytest.approx(2 * layers * 2 * dim * columns * 4)


def test_as_many_slots_as_fit_are_measured_and_more_get_a_row_that_says_so(ran, monkeypatch):
    rings = 4 * 2 * 256 * 752 * 4  # bytes of one slot, in float32
    monkeypatch.setattr(
        device, "free_bytes", lambda _device: RESERVE_BYTES + WORK_BYTES + int(3.5 * rings)
    )
    assert {row["slots"] for row in ran("--kv", "bf16")} == {3}
    (row,) = ran("--kv", "bf16", "--slots", "4")
    assert row["note"].startswith("does not fit: ")


def test_loading_serving_and_graphs_are_measured_apart(ran, monkeypatch, small):
    done, taken, peaks = [], iter((100, 350)), iter((9000, 700))

    def watched(name, answer):
        def call(*given, **named):
            done.append(name)
            return answer(*given, **named)

        return call

    for name, answer in {
        "begin_peak": lambda: None, "generate_models": lambda args, weights: small,
        "device_bytes": lambda: next(taken), "read_peak": lambda: next(peaks),
        "Ticks": tick.Ticks, "run_tick": tick.run_tick,
    }.items():  # fmt: skip
        monkeypatch.setattr(tick, name, watched(name, answer))
    sizes = {row["item"]: row["measured_gb"] * 1e9 for row in ran("--slots", "1", "--kv", "bf16")}
    assert done[:4] == ["begin_peak", "generate_models", "read_peak", "begin_peak"]
    ticks = ["run_tick"] * tick.SERVING_TICKS
    assert done[4:] == ["device_bytes", "Ticks", "device_bytes", *ticks, "read_peak"]
    named = ("graphs", "peak of loading", "peak of serving")
    assert [sizes[name] for name in named] == pytest.approx([250, 9000, 700])
