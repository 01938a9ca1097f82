"""`bench capacity`: how the number is searched, what counts as late, and the whole of it, small."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.bench import capacity
from engine.bench.__main__ import load_subject
from engine.bench.capacity import (
    HELD,
    LAGGED,
    SILENT,
    Search,
    VoidError,
    find_largest,
    hold_best,
    judge_row,
)
from engine.bench.clients import PacedTalk
from engine.bench.process import Counts, Server
from engine.bench.report import parse_options
from engine.errors import ConfigError, EngineError
from engine.runtime.metrics import Dropped, Metrics
from tests.bench.conftest import QUICK

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
COMPILER = "torch._dynamo"  # nothing of ours needs it, and it takes two seconds to load
ROW = {
    "frames": 10_000, "late_server": 9, "late_client": 9, "refused": 0, "hung_up": 0,
    "ticks_in_time": 0.99, "client_lag_ms_p99": 5.0,
}  # fmt: skip


class Machine:
    """Holds a number of conversations; remembers what it was asked."""

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
    assert find_largest(machine.holds, slots) == best
    assert machine.asked == asked


def test_a_number_that_does_not_hold_for_long_gives_way_to_a_smaller_one():
    machine = Machine(9)
    assert hold_best(machine.holds, 16, 3) == 9
    assert machine.asked == [16, 12, 9]
    assert hold_best(Machine(16).holds, 16, 3) == 16
    once = Machine(9)
    assert hold_best(once.holds, 16, times=1) == 0  # where there is no time for a second one
    assert once.asked == [16]
    assert hold_best(Machine(1).holds, 16, 3) == hold_best(Machine(0).holds, 1, 3) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, HELD),
        ({"late_server": 10}, "late"),  # one in a thousand is too many already
        ({"late_client": 10}, "late"),
        ({"ticks_in_time": 0.989}, "slow ticks"),
        ({"refused": 1}, "refused"),
        ({"hung_up": 1}, "hung up"),
        ({"frames": 0, "late_server": 0, "late_client": 0}, SILENT),
        ({"client_lag_ms_p99": 21.0, "late_client": 99}, LAGGED),
    ],
)
def test_a_row_is_held_or_says_why_not(change, said):
    assert judge_row({**ROW, **change}) == said


class ScriptedSearch(Search):
    """Rows that end as they are told to, one after the other."""

    def __init__(self, *said: str) -> None:
        options = argparse.Namespace(step_seconds=10.0, seconds=180.0)
        super().__init__(None, options)
        self._said = list(said)

    def _add_row(self, conversations: int, seconds: float) -> dict:
        self.rows.append({"n": conversations, "client_lag_ms_p99": 35.0})
        return {**self.rows[-1], "verdict": self._said.pop(0)}


def test_a_step_is_forgiven_one_hiccup_of_the_server_or_of_the_clients():
    assert ScriptedSearch("late", HELD).step(4)
    assert ScriptedSearch(LAGGED, HELD).step(4)
    assert not ScriptedSearch(LAGGED, "late").step(4)


def test_where_the_clients_lag_it_is_void_and_not_a_number_that_did_not_hold():
    with pytest.raises(VoidError, match=r"clients lagged 35 ms with 4 at once \(p99, 20 at most\)"):
        ScriptedSearch("late", LAGGED).step(4)
    with pytest.raises(VoidError, match="run it where nothing else does"):
        ScriptedSearch(LAGGED).hold(4)


def test_without_a_single_frame_it_is_void_and_not_a_number_that_held():
    with pytest.raises(VoidError, match=r"^4 sent not one frame in the time given; give more"):
        ScriptedSearch(SILENT).hold(4)


def test_a_hold_that_failed_says_what_was_tried():
    server = {"weights": "bf16", "kv": "int8", "void": None, "seconds": 180.0, "slots": 16}
    rows = [{"n": n} for n in (1, 2, 16, 16)]
    said = capacity.describe_capacity({**server, "held": 0, "rows": rows})
    assert said == "bf16/int8: none held for 180 s; tried: 1, 2, 16"
    said = capacity.describe_capacity({**server, "held": 12, "rows": rows})
    assert said == "bf16/int8: 12 of 16 conversations held for 180 s"


@pytest.mark.parametrize(("gpu", "seconds"), [(True, 600), (False, 30)])
def test_on_a_gpu_the_best_is_held_past_the_wrap_of_the_rings(gpu, seconds, monkeypatch):
    monkeypatch.setattr(capacity, "has_cuda", lambda: gpu)
    assert parse_options(load_subject("capacity"), []).seconds == seconds


def test_counts_are_what_happened_in_between():
    metrics = Metrics()
    metrics.ticked(1, 0.2)
    metrics.sent(0.121)
    metrics.renewed()
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
    metrics.renewed()
    counts = Counts.of(metrics.text().decode()).since(before)
    assert (counts.late, counts.dropped) == (1, 3)
    assert (counts.live, counts.renewals) == (2, 1)
    assert counts.share_within(0.080) == 0.75
    assert 9 <= counts.tick_ms(25) <= 10
    assert 80 <= counts.tick_ms(99) <= 90


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(EngineError, match="/nowhere"), Server(["--model", "/nowhere"]):
        pass


class ScriptedServer:
    """A server of four slots, without a process."""

    limit = 2  # conversations that it answers in time
    ready_seconds = 1.5
    url = "http://scripted"

    def __init__(self, options: list[str]) -> None:
        pass

    def __enter__(self) -> "ScriptedServer":
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def health(self) -> dict:
        return {"slots": 4}

    def precision(self) -> tuple[str, str]:
        return "int8", "bf16"

    def wait_until_empty(self) -> int:
        return 0

    def check_alive(self) -> None:
        pass

    def counts(self) -> Counts:
        return Counts.of(Metrics().text().decode())


async def talk_scripted(url: str, conversations: int, seconds: float):
    """A hundred frames a conversation; all answers are late where there are too many."""
    latency = 0.010 if conversations <= ScriptedServer.limit else 0.2
    talk = PacedTalk(latencies=[latency] * 100, sent_at=[0.0] * 100)
    return [talk] * conversations, [0.001]


def run_scripted(monkeypatch, tmp_path: Path, *more: str) -> tuple[int, dict]:
    """The exit code of the bench on the scripted server, and what it wrote of it."""
    monkeypatch.setattr(capacity, "Server", ScriptedServer)
    monkeypatch.setattr(capacity, "_talk_all", talk_scripted)
    target = tmp_path / "capacity.json"
    options = ["--model", "embedded", "--json", str(target), *more]
    code = capacity.run(parse_options(load_subject("capacity"), options))
    (server,) = json.loads(target.read_text())["servers"]
    return code, server


@pytest.mark.parametrize(("limit", "held"), [(0, 0), (1, 1), (3, 3), (9, 4)])
def test_what_the_server_holds_in_time_is_the_number(limit, held, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ScriptedServer, "limit", limit)
    code, server = run_scripted(monkeypatch, tmp_path)
    assert (code, server["void"], server["held"], server["slots"]) == (0, None, held, 4)
    verdicts = {row["n"]: row["verdict"] for row in server["rows"]}
    assert verdicts == {n: HELD if n <= limit else "late" for n in verdicts}
    assert (server["weights"], server["kv"]) == ("int8", "bf16")  # what auto came to
    said = "none held" if held == 0 else f"{held} of 4 conversations held"
    assert f"int8/bf16: {said}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("numbers", "held"), [([1], 1), ([1, 2, 4], 2), ([4, 2, 1], 2), ([3, 4], 0)]
)
def test_given_numbers_are_held_and_no_others(numbers, held, monkeypatch, tmp_path):
    given = ("--conversations", *map(str, numbers), "--seconds", "7")
    code, server = run_scripted(monkeypatch, tmp_path, *given)
    assert (code, server["held"]) == (0, held)
    assert [row["n"] for row in server["rows"]] == numbers
    assert all(row["seconds"] == 7 for row in server["rows"])


def test_more_conversations_than_slots_are_an_error_and_no_measurement(monkeypatch, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^--conversations is 5, and the server has 4 slots; use"
    ):
        run_scripted(monkeypatch, tmp_path, "--conversations", "2", "5")


def test_a_row_says_when_its_late_answers_were_asked_for():
    quick = PacedTalk(sent_at=[100.0 + n for n in range(40)], latencies=[0.119] * 40)
    silent = PacedTalk(sent_at=[109.5, 110.0, 131.0], latencies=[0.121])  # two never answered
    assert silent.late_at == [109.5, 110.0, 131.0]
    assert silent.late == 3
    assert capacity.describe_late([PacedTalk(), quick]) == ""
    assert capacity.describe_late([quick, silent]) == "0 s: 1, 10 s: 1, 30 s: 1"


def test_a_void_measurement_says_so_and_fails_and_keeps_its_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(capacity, "LAG_SECONDS", -1.0)  # as if the clients always lagged
    code, server = run_scripted(monkeypatch, tmp_path)
    assert code == 1
    assert server["held"] is None
    assert [row["verdict"] for row in server["rows"]] == [LAGGED, LAGGED]
    said = capsys.readouterr().out
    assert "int8/bf16: void, nothing is known of the server: the clients lagged" in said
    assert "conversations held" not in said


def test_a_generated_model_is_served_without_any_package_of_sounds_and_words(tmp_path):
    """The whole of it in earnest, on one slot; a slow machine's late frames are allowed here."""
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in (*FOREIGN, COMPILER))]
    lines += ["from engine.model.config import *", "from engine.weights import generated"]
    lines += [f"generated.SMALL = {QUICK!r}"]
    lines += ["from engine.bench import capacity", "capacity.LAG_SECONDS = 60.0"]
    lines += ["capacity.LATE_SHARE = 2.0", "capacity.TICK_SHARE = 0.0"]
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    target, folder = tmp_path / "capacity.json", tmp_path / "model"
    command = [sys.executable, "-m", "engine", "bench", "capacity", "--random", "--small"]
    command += ["--slots", "1", "--step-seconds", "1", "--seconds", "1"]
    command += ["--folder", str(folder), "--json", str(target)]
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    environ = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (server,) = json.loads(target.read_text())["servers"]
    assert (server["void"], server["held"], server["slots"]) == (None, 1, 1)
    assert (server["weights"], server["kv"]) == ("bf16", "bf16")  # what auto came to
    row = server["rows"][-1]
    assert row["verdict"] == HELD
    assert row["frames"] == 12
    assert row["tick_ms_p50"] > 0
    assert row["refused"] == row["hung_up"] == 0
    assert (folder / "config.json").exists()  # kept for the next run
