"""The GPU suite end to end on a CPU at a reduced size; what takes long there has its own tests."""

import argparse
import json

import pytest
import torch

from engine.bench import gpu, tick
from engine.bench.__main__ import load_subject
from engine.bench.gpu import run
from engine.bench.report import Subject, parse_options
from engine.errors import ModelError


def parsed(*options: str) -> argparse.Namespace:
    return parse_options(load_subject("gpu"), options)


@pytest.mark.timeout(600)  # much on a busy machine
def test_the_suite_runs_on_a_cpu_and_keeps_every_part_in_one_file(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(tick, "NEW", 1)
    monkeypatch.setattr(tick, "KEPT", 1)
    # test_personaplex_golden has all runs, whole
    monkeypatch.setattr(gpu, "GOLDEN_RUNS", gpu.GOLDEN_RUNS[:1])
    monkeypatch.setattr(gpu, "GOLDEN_FRAMES", 20)
    path, parts = tmp_path / "gpu.json", ("verify", "connect")
    assert run(parsed("--random", "--small", "--parts", *parts, "--json", str(path))) == 0
    kept = json.loads(path.read_text())
    assert all(kept[part]["code"] == 0 for part in parts)
    assert len(kept["verify"]["checks"]) > 9
    assert all(check["holds"] for check in kept["verify"]["checks"])
    assert {row["weights_and_kv"] for row in kept["connect"]["rows"]} == {"bf16", "int8"}
    assert list(tmp_path.iterdir()) == [path]
    said = capfd.readouterr().out
    assert "== connect" in said
    assert "written:" not in said  # of files that are gone


@pytest.fixture
def _whole(monkeypatch):
    """As if the full size could be run here."""
    monkeypatch.setattr(gpu, "pick_config", lambda args: None)


class Part:
    """A subject that writes one row and ends well."""

    error: Exception | None = None

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--kv")

    @classmethod
    def run(cls, args: argparse.Namespace) -> int:
        with open(args.json, "w", encoding="utf-8") as file:
            file.write('{"rows": [1]}')
        if cls.error:
            raise cls.error
        return 0


def subject_of(part: type[Part]) -> Subject:
    return Subject(part.add_arguments, part.run)


@pytest.mark.usefixtures("_whole")
@pytest.mark.parametrize(
    "error",
    [
        ModelError("no such weights"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        AssertionError(),
    ],
)
def test_a_part_that_fails_does_not_stop_the_others_and_is_told(
    error, tmp_path, monkeypatch, capfd
):
    broken = type("Broken", (Part,), {"error": error})
    subjects = {"connect": broken, "memory": Part}
    monkeypatch.setattr(gpu, "load_subject", lambda name: subject_of(subjects[name]))
    path, parts = tmp_path / "gpu.json", ("connect", "memory")
    assert run(parsed("--parts", *parts, "--json", str(path))) == 1
    kept = json.loads(path.read_text())
    assert type(error).__name__ in kept["connect"]["error"]
    assert str(error) in kept["connect"]["error"]
    assert kept["connect"]["rows"] == [1]  # what it had measured
    assert (kept["memory"]["code"], kept["memory"]["rows"]) == (0, [1])
    assert list(tmp_path.iterdir()) == [path]
    assert "Traceback" in capfd.readouterr().out
