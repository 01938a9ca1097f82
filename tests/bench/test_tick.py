"""`bench tick`: what a row covers, and what becomes of it where a device is too small."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from engine.bench import device, tick
from engine.bench.__main__ import load_subject
from engine.bench.device import count_launches, make_loop
from engine.bench.report import parse_options, table
from engine.weights.generated import FULL, generated, on_meta
from tests.bench.conftest import QUICK

NUMBERS = 7_374_635_008  # that a tick reads of the public weights
H200 = 4.8e12  # bytes a second
LAUNCHES = 7


@pytest.fixture(autouse=True)
def _fast(monkeypatch, small):
    """No time for what these tests do not look at."""
    monkeypatch.setattr(tick, "measure_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(tick, "count_launches", lambda loop, slots: LAUNCHES)
    monkeypatch.setattr(tick, "generate_models", lambda args, weights: small)


@pytest.fixture
def ran(tmp_path):
    """Run the subject; what it has written."""
    path = tmp_path / "tick.json"

    def run(*options: str) -> dict:
        tick.run(parsed(path, *options))
        return json.loads(path.read_text())

    return run


def parsed(path: Path, *options: str) -> argparse.Namespace:
    given = ["--random", "--small", "--device", "cpu", "--weights", "bf16", "--json", str(path)]
    given += ["--ticks", "2", *options]
    return parse_options(load_subject("tick"), given)


def test_every_tick_of_a_row_reads_the_columns_that_the_row_states(ran, monkeypatch):
    read, codec, real = [], [], tick.run_tick

    def watched(ticks, slots, pcm):
        seconds = real(ticks, slots, pcm)
        pushed = ticks.loop.rings.pushed
        assert pushed[:slots] == ticks.loop.rings.position[:slots].tolist()
        read.append(pushed[0])
        codec.append(ticks.loop.encoder.rings.pushed[0])
        return seconds

    monkeypatch.setattr(tick, "run_tick", watched)
    ran("--slots", "2", "--kv", "bf16", "--context", "20", "750", "--ticks", "4")
    each = tick.WARM_UP_TICKS + 4
    assert read == [20] * each + [749] * each  # the whole ring
    assert codec[:each] == [40] * each  # two columns a frame


def test_a_device_that_runs_out_of_memory_costs_one_row(ran, monkeypatch, capsys):
    real = tick.make_loop

    def make_loop(lm, mimi, slots, kv):
        if slots > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee …")
        return real(lm, mimi, slots, kv)

    monkeypatch.setattr(tick, "make_loop", make_loop)
    first, second = ran("--slots", "2", "1", "--kv", "bf16", "--context", "20")["rows"]
    assert first == {
        "weights": "bf16", "kv": "bf16", "slots": 2,
        "note": "does not fit: CUDA out of memory. Tried to allocate 9 GiB.",
    }  # fmt: skip
    assert f"slots 2, {first['note']}" in capsys.readouterr().out
    assert second["p50_ms"] > 0


def test_weights_that_do_not_fit_leave_the_other_precision(ran, monkeypatch, small):
    def models(args, weights):
        if weights == "bf16":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return small

    monkeypatch.setattr(tick, "generate_models", models)
    options = ("--slots", "1", "--kv", "bf16", "--context", "20", "--weights", "bf16", "int8")
    first, second = ran(*options)["rows"]
    assert first == {"weights": "bf16", "note": "does not fit: CUDA out of memory."}
    assert (second["weights"], second["p50_ms"] > 0) == ("int8", True)


def test_rows_are_kept_when_a_later_one_breaks(tmp_path, monkeypatch):
    real = tick.measure

    def measure(ticks, columns, count):
        if ticks.loop.slots == 2:
            raise RuntimeError("illegal memory access")
        return real(ticks, columns, count)

    monkeypatch.setattr(tick, "measure", measure)
    path = tmp_path / "tick.json"
    with pytest.raises(RuntimeError):
        tick.run(parsed(path, "--slots", "1", "2", "--kv", "bf16", "--context", "20"))
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["slots"], row["p50_ms"] > 0) == (1, True)


def test_a_table_has_the_columns_of_all_its_rows():
    head, first, second = table([{"a": 1, "note": "no"}, {"a": 2, "b": 3.0}]).splitlines()
    assert head.split() == ["a", "note", "b"]
    assert (first.split(), second.split()) == (["1", "no"], ["2", "3.00"])


def public():
    """The public language model in bf16, without memory."""
    return on_meta(FULL)[0].to(torch.bfloat16)


def test_the_weights_of_a_tick_are_those_of_the_specification():
    assert tick.weight_bytes(public()) == 2 * NUMBERS  # 14.749 GB


def test_int8_weights_are_a_byte_each_and_a_scale_for_every_output():
    whole, int8 = (generated(QUICK, "cpu", weights)[0] for weights in ("bf16", "int8"))
    outputs = sum(len(m.scale) for m in int8.modules() if getattr(m, "scale", None) is not None)
    assert outputs > 0
    assert tick.weight_bytes(int8) == tick.weight_bytes(whole) / 4 + 4 * outputs  # float32 here


def test_keys_and_values_of_a_column_are_those_of_the_specification():
    lm = public()
    each = {kind: tick.kv_bytes(lm.rings(1, kind), 1) for kind in (None, torch.int8)}
    assert each == {None: 512 << 10, torch.int8: 260 << 10}
    assert tick.kv_bytes(lm.rings(1), 5000) == 2999 * (512 << 10)  # no more than the ring holds


@pytest.mark.parametrize(("slots", "milliseconds"), [(1, 3.5), (2, 3.8), (4, 4.5), (16, 8.4)])
def test_the_floors_of_an_h200_are_those_of_the_specification(slots, milliseconds):
    lm = public()
    read = tick.read_bytes(lm, lm.rings(slots), slots, 3000)
    assert round(read / H200 * 1e3, 1) == milliseconds


def test_the_figures_of_a_row_follow_from_what_is_read(ran, small):
    (row,) = ran("--slots", "2", "--kv", "int8", "--context", "20")["rows"]
    loop = make_loop(*small, slots=2, kv="int8")
    assert row["read_gb"] * 1e9 == tick.read_bytes(small[0], loop.rings, 2, 20, codec=0)
    assert row["floor_ms"] == pytest.approx(row["read_gb"] * 1e3)  # at a gigabyte a second
    assert row["share"] == pytest.approx(row["floor_ms"] / row["p50_ms"])
    assert row["launches"] == LAUNCHES


def test_what_a_tick_launches_is_counted(small):
    loop = make_loop(*small, slots=1, kv="bf16")
    assert count_launches(loop, 1) > 100


def test_the_defaults_are_those_of_the_specification():
    args = parse_options(load_subject("tick"), [])
    assert (args.slots, args.context) == ([1, 2, 4, 8, 16], [100, 750, 1500, 3000])
    assert (args.weights, args.kv) == (["bf16", "int8"], ["bf16", "int8"])
    assert args.ticks == 500


def test_the_bandwidth_counts_what_is_read_and_what_is_written(monkeypatch):
    monkeypatch.setattr(device, "time_work", lambda work, times: 0.5)
    assert device.measure_bandwidth("cpu") == 2 * device.CPU_COPY_BYTES / 0.5
