"""`bench soak`: what counts as growth, that faults are noticed, and the whole of it, small."""

import argparse
import json
import sys

import pytest

from engine.bench import process
from engine.bench import soak as subject
from engine.bench.process import Server
from engine.bench.soak import faults, grown, rows, slope, soak

WELL = {
    "conversations": 9,
    "refused": 1,
    "errors": [],
    "grown": {"own_mb": 3.0},
    "before": {"files": 7, "threads": 4},
    "after": {"files": 9, "threads": 4},
    "slots": 4,
    "slots_lost": 0,
}


def test_growth_leaves_out_the_warming_up_and_single_peaks():
    flat = [100, 300, 500, 500, 500, 900, 500, 500]
    assert grown(flat) == grown([5.0]) == 0
    assert grown([0, 0, 10, 10, 20, 20, 30, 30]) == 20


def test_the_slope_is_per_hour():
    seconds = list(range(100))
    assert slope(seconds, [7 + s for s in seconds]) == pytest.approx(3600)
    assert slope([1.0], [7.0]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"errors": ["internal error: 1"]}, "1 conversations ended by error, the first: internal"),
        ({"grown": {"own_mb": 101.0}}, "own_mb grew by 101"),
        ({"grown": {"own_mb": 0.0, "device_mb": 300.0}}, "device_mb grew by 300"),
        ({"after": {"files": 99, "threads": 4}}, "92 files more than before"),
        ({"after": {"files": 7, "threads": 14}}, "10 threads more than before"),
        ({"conversations": 0}, "nobody was let in (1 were refused): nothing was tried"),
        ({"slots_lost": 1}, "1 of 4 slots were not given back"),
    ],
)
def test_every_fault_is_named(change, said):
    assert faults(WELL) == []
    (fault,) = faults({**WELL, **change})
    assert fault.startswith(said)


@pytest.mark.parametrize(("lag", "said"), [(20.0, ""), (21.0, " (not valid: clients lag)")])
def test_where_the_clients_lag_the_late_frames_are_said_to_mean_nothing(lag, said):
    result = {
        **WELL, "weights": "bf16", "kv": "bf16", "people": 1, "seconds": 60.0, "leaves": {},
        "says": 0, "late": 5, "frames": 9, "dropped": 0, "tick_ms_p99": 1.0, "samples": [],
        "client_lag_ms_p99": lag, "before": {}, "per_hour": {},
    }  # fmt: skip
    assert f"5 of 9 frames late{said}, 0 dropped" in subject.summary(result)


def test_a_healthy_server_stays_well_while_people_come_and_go():
    with Server(["--model", "embedded", "--slots", "3"]) as server:
        result = soak(server, people=3, seconds=7, seed=1, fmt="pcm16")
    assert faults(result) == []
    assert result["conversations"] >= 2
    assert result["frames"] > 0
    assert [row["watched"] for row in rows(result)][:2] == ["rss_mb", "own_mb"]


def test_a_leak_an_error_and_a_lost_slot_are_noticed(monkeypatch):
    monkeypatch.setattr(process, "EMPTY_SECONDS", 1.0)
    command = [sys.executable, "-m", "tests.bench.faulty_server", "leak,error,slot"]
    with Server(["--model", "embedded", "--slots", "4"], command) as server:
        result = soak(server, people=3, seconds=8, seed=1, fmt="pcm16")
    error, memory, slot = faults(result)
    assert "internal error" in error
    assert memory.startswith("own_mb grew by ")
    assert slot == "1 of 4 slots were not given back"


def test_a_small_generated_model_is_soaked_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parser, target = argparse.ArgumentParser(), tmp_path / "soak.json"
    subject.add_arguments(parser)
    options = ["--random", "--small", "--device", "cpu", "--slots", "1", "--minutes", "0.08"]
    code = subject.run(parser.parse_args([*options, "--json", str(target)]))
    told = json.loads(target.read_text())
    (server,) = told["servers"]
    assert code == bool(told["faults"])
    assert all("nobody was let in" in fault for fault in told["faults"])  # a busy machine may
    assert (server["slots"], server["people"], server["weights"]) == (1, 1, "bf16")
    assert server["conversations"] + server["refused"] >= 1
    assert len(server["samples"]) > 10
    assert "0 errors, 0 of 1 slots lost" in capsys.readouterr().out
