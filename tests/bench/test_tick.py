"""`bench tick`: what a row covers, and what becomes of it where a device is too small."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from engine.bench import fits, tick
from engine.bench.fits import beside
from engine.bench.report import table
from engine.runtime.capacity import RESERVE_BYTES, WORK_BYTES
from engine.runtime.fitting import Mode


@pytest.fixture(autouse=True)
def _fast(monkeypatch, small):
    """No time for what these tests do not look at."""
    monkeypatch.setattr(tick, "bandwidth", lambda device: 1e9)
    monkeypatch.setattr(tick, "launches", lambda loop, slots: 0)
    monkeypatch.setattr(tick, "models", lambda args, weights: small)


@pytest.fixture
def ran(tmp_path):
    """Run the subject; what it has written."""
    path = tmp_path / "tick.json"

    def run(*options: str) -> dict:
        tick.run(parsed(path, *options))
        return json.loads(path.read_text())

    return run


def parsed(path: Path, *options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tick.add_arguments(parser)
    given = ["--random", "--small", "--device", "cpu", "--weights", "bf16", "--json", str(path)]
    return parser.parse_args([*given, "--ticks", "2", "--warm-up", "1", *options])


def test_every_tick_of_a_row_reads_the_columns_that_the_row_states(ran, monkeypatch):
    read, codec, real = [], [], tick.tick

    def watched(ticks, slots, pcm, writing=False):
        seconds = real(ticks, slots, pcm, writing)
        pushed = ticks.loop.rings.pushed
        assert pushed[:slots] == ticks.loop.rings.position[:slots].tolist()
        read.append(pushed[0])
        codec.append(ticks.loop.encoder.rings.pushed[0])
        return seconds

    monkeypatch.setattr(tick, "tick", watched)
    ran("--slots", "2", "--kv", "bf16", "--context", "20", "750", "--ticks", "4")
    plain, full = read[:5], read[5:10]
    assert plain == [20] * 5
    assert full == [749] * 5  # the whole ring
    assert codec[:5] == [40] * 5  # two columns a frame


def test_slots_that_do_not_fit_get_a_row_that_says_so_and_the_others_are_measured(
    ran, monkeypatch, small, capsys
):
    each = beside_with(monkeypatch, small, 10**9).slot_bytes(Mode())
    beside_with(monkeypatch, small, RESERVE_BYTES + WORK_BYTES + int(1.5 * each))
    told = ran("--slots", "2", "1", "--kv", "bf16", "int8", "--context", "20")
    large, one, *int8 = told["rows"]
    note = f"does not fit: {2 * each / 1e9:.2f} GB of {1.5 * each / 1e9:.2f} GB beside the weights"
    assert large["note"].startswith(note)
    assert (large["kv"], large["slots"]) == ("bf16", 2)
    assert f"slots 2, {note}" in capsys.readouterr().out
    assert [row["p50_ms"] > 0 for row in (one, *int8)] == [True] * 3
    assert [("note" in row, row["slots"]) for row in told["recogniser"]] == [(True, 2), (False, 1)]


def beside_with(monkeypatch, models, free: int):
    """The arithmetic of a device with so many bytes free, from now on."""
    monkeypatch.setattr(fits, "free_bytes", lambda device: free)
    return beside(*models, Mode())


def test_a_device_that_runs_out_of_memory_costs_one_row(ran, monkeypatch):
    real = tick.loop_of

    def loop_of(args, lm, mimi, slots, kv):
        if slots > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee …")
        return real(args, lm, mimi, slots, kv)

    monkeypatch.setattr(tick, "loop_of", loop_of)
    first, second = ran("--slots", "2", "1", "--kv", "bf16", "--context", "20")["rows"]
    assert first == {
        "weights": "bf16", "kv": "bf16", "slots": 2,
        "note": "does not fit: CUDA out of memory. Tried to allocate 9 GiB.",
    }  # fmt: skip
    assert second["p50_ms"] > 0


def test_weights_that_do_not_fit_leave_the_other_precision(ran, monkeypatch, small):
    def models(args, weights):
        if weights == "bf16":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return small

    monkeypatch.setattr(tick, "models", models)
    options = ("--slots", "1", "--kv", "bf16", "--context", "20", "--weights", "bf16", "int8")
    first, second = ran(*options)["rows"]
    assert first == {"weights": "bf16", "note": "does not fit: CUDA out of memory."}
    assert (second["weights"], second["p50_ms"] > 0) == ("int8", True)


def test_rows_are_kept_when_a_later_one_breaks(tmp_path, monkeypatch):
    real = tick.measure

    def measure(ticks, slots, columns, *more):
        if slots == 2:
            raise RuntimeError("illegal memory access")
        return real(ticks, slots, columns, *more)

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
