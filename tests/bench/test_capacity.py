"""`bench capacity`: how the number is searched, what counts as late, and the whole of it, small."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.bench import capacity
from engine.bench.capacity import HELD, held, largest, verdict
from engine.bench.process import Counts, Server
from engine.errors import EngineError
from engine.runtime.metrics import Metrics

ROOT = Path(__file__).parents[2]
FOREIGN = ("sphn", "soundfile", "soxr", "espeakng_loader", "num2words", "bm25s", "gradio", "modal")
ROW = {
    "frames": 10_000, "late_server": 9, "late_client": 9, "refused": 0, "broken": 0,
    "ticks_in_time": 0.99, "client_lag_ms_p99": 5.0,
}  # fmt: skip


class Machine:
    """Holds so many conversations; remembers what it was asked."""

    def __init__(self, limit: int) -> None:
        self.limit, self.asked = limit, []

    def holds(self, number: int) -> bool:
        self.asked.append(number)
        return number <= self.limit


@pytest.mark.parametrize(
    ("limit", "slots", "best", "asked"),
    [
        (99, 16, 16, [1, 2, 4, 8, 16]),
        (99, 6, 6, [1, 2, 4, 6]),
        (99, 1, 1, [1]),
        (5, 16, 5, [1, 2, 4, 8, 6, 5]),
        (7, 16, 7, [1, 2, 4, 8, 6, 7]),
        (13, 16, 13, [1, 2, 4, 8, 16, 12, 14, 13]),
        (1, 16, 1, [1, 2]),
        (0, 16, 0, [1]),
    ],
)
def test_the_number_is_doubled_and_then_halved_in_between(limit, slots, best, asked):
    machine = Machine(limit)
    assert largest(machine.holds, slots) == best
    assert machine.asked == asked


def test_a_number_that_does_not_hold_for_long_gives_way_to_a_smaller_one():
    machine = Machine(9)
    assert held(machine.holds, 16) == 9
    assert machine.asked == [16, 12, 9]
    assert held(Machine(16).holds, 16) == 16
    assert held(Machine(1).holds, 16) == held(Machine(0).holds, 1) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, HELD),
        ({"late_server": 10}, "late"),  # one in a thousand is too many already
        ({"late_client": 10}, "late"),
        ({"ticks_in_time": 0.989}, "slow ticks"),
        ({"refused": 1}, "refused"),
        ({"broken": 1}, "hung up"),
        ({"client_lag_ms_p99": 21.0, "late_client": 99}, "not valid: clients lag"),
    ],
)
def test_a_row_is_held_or_says_why_not(change, said):
    assert verdict({**ROW, **change}) == said


def test_counts_are_what_happened_in_between():
    metrics = Metrics()
    metrics.ticked(1, 0.2)
    metrics.sent(0.121)
    before = Counts.of(metrics.text().decode())
    for milliseconds in (10, 11, 79, 81):
        metrics.ticked(1, milliseconds / 1e3)
    assert metrics.sent(0.121)
    assert not metrics.sent(0.119)
    metrics.dropped(3)
    metrics.opened()
    metrics.ended("left")
    counts = Counts.of(metrics.text().decode()).since(before)
    assert (counts.late, counts.dropped, counts.ended) == (1, 3, {"left": 1})
    assert counts.share_within(0.080) == 0.75
    assert 9 <= counts.tick_ms(25) <= 10
    assert 80 <= counts.tick_ms(99) <= 90
    assert counts.backend_seconds == pytest.approx(0.181)


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(EngineError, match="/nowhere"), Server(["--model", "/nowhere"]):
        pass


def test_a_small_generated_model_is_measured_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "WINDOW_SECONDS", 0.0)  # a busy machine may be in overload
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser()
    capacity.add_arguments(parser)
    folder, target = tmp_path / "model", tmp_path / "capacity.json"
    options = ["--random", "--small", "--folder", str(folder), "--slots", "1"]
    options += ["--step-seconds", "1", "--seconds", "1", "--json", str(target)]
    assert capacity.run(parser.parse_args(options)) == 0
    (server,) = json.loads(target.read_text())["servers"]
    assert server["slots"] == 1
    assert server["rows"][0]["frames"] == 12
    assert (folder / "config.json").exists()  # kept for the next run


def test_a_server_needs_no_package_of_sounds_and_words_for_pcm16(tmp_path):
    blocked = "\n".join(f"sys.modules[{name!r}] = None" for name in FOREIGN)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{blocked}\n")
    target = tmp_path / "capacity.json"
    command = [sys.executable, "-m", "engine", "bench", "capacity", "--model", "tests/golden/tiny"]
    command += ["--slots", "1", "--step-seconds", "1", "--seconds", "1", "--json", str(target)]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(target.read_text())["servers"][0]["rows"][0]
    assert row["frames"] == 12
    assert row["tick_ms_p50"] > 0
    assert row["refused"] == row["broken"] == 0
