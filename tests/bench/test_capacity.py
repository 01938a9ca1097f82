"""`bench capacity`: how the number is searched, what counts as late, and the whole of it, small."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.bench import capacity
from engine.bench.capacity import HELD, LAGGED, SILENT, Search, VoidError, held, largest, verdict
from engine.bench.process import Counts, Server
from engine.bench.report import parsed
from engine.errors import EngineError
from engine.runtime.metrics import Dropped, Metrics

ROOT = Path(__file__).parents[2]
FOREIGN = (
    "sphn",
    "soundfile",
    "soxr",
    "espeakng_loader",
    "unicode_rbnf",
    "bm25s",
    "gradio",
    "modal",
)
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
    once = Machine(9)
    assert held(once.holds, 16, times=1) == 0  # and whoever has no time for a second one
    assert once.asked == [16]
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
        ({"frames": 0, "late_server": 0, "late_client": 0}, SILENT),
        ({"client_lag_ms_p99": 21.0, "late_client": 99}, LAGGED),
    ],
)
def test_a_row_is_held_or_says_why_not(change, said):
    assert verdict({**ROW, **change}) == said


class Scripted(Search):
    """Rows that end as they are told to, one after the other."""

    def __init__(self, *said: str) -> None:
        options = argparse.Namespace(step_seconds=10.0, seconds=180.0)
        super().__init__(None, options, {})
        self._said = list(said)

    def _row(self, conversations: int, seconds: float) -> dict:
        self.rows.append({"n": conversations, "client_lag_ms_p99": 35.0})
        return {**self.rows[-1], "verdict": self._said.pop(0)}


def test_a_step_is_forgiven_one_hiccup_of_the_server_or_of_the_clients():
    assert Scripted("late", HELD).steps(4)
    assert Scripted(LAGGED, HELD).steps(4)
    assert not Scripted(LAGGED, "late").steps(4)


def test_where_the_clients_lag_it_is_void_and_not_a_number_that_did_not_hold():
    with pytest.raises(VoidError, match=r"clients lagged 35 ms with 4 at once \(p99, 20 at most\)"):
        Scripted("late", LAGGED).steps(4)
    with pytest.raises(VoidError, match="run it where nothing else does"):
        Scripted(LAGGED).holds(4)


def test_without_a_single_frame_it_is_void_and_not_a_number_that_held():
    with pytest.raises(VoidError, match=r"^4 sent not one frame in the time given; give more"):
        Scripted(SILENT).holds(4)


def test_a_hold_that_failed_says_what_was_tried():
    server = {"weights": "bf16", "kv": "int8", "void": None, "seconds": 180.0, "slots": 16}
    rows = [{"n": n} for n in (1, 2, 16, 16)]
    said = capacity.outcome({**server, "held": 0, "rows": rows})
    assert said == "bf16/int8: none held for 180 s; tried: 1, 2, 16"
    said = capacity.outcome({**server, "held": 12, "rows": rows})
    assert said == "bf16/int8: 12 of 16 conversations held for 180 s"


@pytest.mark.parametrize(("gpu", "seconds"), [(True, 600), (False, 30)])
def test_on_a_gpu_the_best_is_held_past_the_wrap_of_the_rings(gpu, seconds, monkeypatch):
    monkeypatch.setattr(capacity, "has_cuda", lambda: gpu)
    assert parsed(capacity, []).seconds == seconds


def test_counts_are_what_happened_in_between():
    metrics = Metrics()
    metrics.ticked(1, 0.2)
    metrics.sent(0.121)
    before = Counts.of(metrics.text().decode())
    for milliseconds in (10, 11, 79, 81):
        metrics.ticked(1, milliseconds / 1e3)
    assert metrics.sent(0.121)
    assert not metrics.sent(0.119)
    metrics.dropped(3, Dropped.OVERLOAD)
    metrics.dropped(5, Dropped.LATE)
    for _ in range(3):
        metrics.opened()
    metrics.ended("left")
    counts = Counts.of(metrics.text().decode()).since(before)
    assert (counts.late, counts.dropped, counts.ended) == (1, 3, {"left": 1})
    assert counts.live == 2
    assert counts.share_within(0.080) == 0.75
    assert 9 <= counts.tick_ms(25) <= 10
    assert 80 <= counts.tick_ms(99) <= 90
    assert counts.backend_seconds == pytest.approx(0.181)


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(EngineError, match="/nowhere"), Server(["--model", "/nowhere"]):
        pass


def measured(tmp_path: Path, *more: str) -> tuple[int, dict]:
    """The exit code of the bench on one slot, a second a row, and its only server."""
    parser, target = argparse.ArgumentParser(), tmp_path / "capacity.json"
    capacity.add_arguments(parser)
    options = ["--slots", "1", "--step-seconds", "1", "--seconds", "1", "--json", str(target)]
    code = capacity.run(parser.parse_args([*options, *more]))
    (server,) = json.loads(target.read_text())["servers"]
    return code, server


def test_a_small_generated_model_is_measured_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "WINDOW_SECONDS", 0.0)  # a busy machine may be in overload
    monkeypatch.setattr(capacity, "LAG_SECONDS", 60.0)  # and hold its clients up
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "model"
    code, server = measured(tmp_path, "--random", "--small", "--folder", str(folder))
    assert (code, server["void"], server["slots"]) == (0, None, 1)
    assert (server["weights"], server["kv"]) == ("bf16", "bf16")  # what auto came to
    assert {(row["weights"], row["kv"]) for row in server["rows"]} == {("bf16", "bf16")}
    assert server["held"] in (0, 1)  # it is measured, whatever it is
    assert server["rows"][0]["frames"] == 12
    assert (folder / "config.json").exists()  # kept for the next run


def test_a_void_measurement_says_so_and_fails_and_keeps_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(capacity, "WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(capacity, "LAG_SECONDS", -1.0)  # as if the clients always lagged
    code, server = measured(tmp_path, "--model", "embedded")
    assert code == 1
    assert server["held"] is None
    assert [row["verdict"] for row in server["rows"]] == [LAGGED, LAGGED]
    said = capsys.readouterr().out
    assert "auto/auto: void, nothing is known of the server: the clients lagged" in said
    assert "conversations held" not in said


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
    assert target.exists(), done.stderr
    server = json.loads(target.read_text())["servers"][0]
    assert done.returncode == bool(server["void"]), done.stderr  # a busy machine's clients may lag
    row = server["rows"][0]
    assert row["frames"] == 12
    assert row["tick_ms_p50"] > 0
    assert row["refused"] == row["broken"] == 0
