"""`bench load` end to end: at the reduced size, and with a folder that is kept."""

import json
from pathlib import Path

from engine.bench import load
from engine.bench.__main__ import load_subject
from engine.bench.report import parse_options
from tests.weights.test_generated_files import LEAST

PHASES = ["load bf16", "int8, nothing kept", "quantise", "int8 once kept"]


def bench(tmp_path: Path, *options: str) -> dict:
    target = tmp_path / "load.json"
    given = ["--random", "--small", "--device", "cpu", "--json", str(target), *options]
    assert load.run(parse_options(load_subject("load"), given)) == 0
    return json.loads(target.read_text())


def test_every_phase_is_measured_at_the_reduced_size(tmp_path, capsys):
    result = bench(tmp_path)
    assert [row["phase"] for row in result["rows"]] == ["write bf16", *PHASES]
    assert all(row["s"] > 0 and row["GB"] > 0 for row in result["rows"])
    assert "int8 once kept" in capsys.readouterr().out


def test_a_kept_folder_is_used_again_and_its_conversion_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "pick_config", lambda args: LEAST)
    folder = ("--folder", str(tmp_path / "of" / "mine"))
    first, again = bench(tmp_path, *folder), bench(tmp_path, *folder)
    assert [row["phase"] for row in again["rows"]] == PHASES
    whole, converted = (
        {row["phase"]: row["GB"] for row in each["rows"]} for each in (first, again)
    )
    assert converted.items() <= whole.items()
