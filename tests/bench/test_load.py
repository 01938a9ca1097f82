"""`bench load` end to end at the reduced size."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PHASES = ["load bf16", "first int8: load, convert, keep", "int8 once kept"]


def bench(tmp_path: Path, *options: str) -> dict:
    command = [sys.executable, "-m", "engine", "bench", "load", "--random", "--small"]
    command += ["--device", "cpu", "--json", str(tmp_path / "load.json"), *options]
    subprocess.run(command, cwd=ROOT, check=True, timeout=100, capture_output=True)
    return json.loads((tmp_path / "load.json").read_text())


def test_every_phase_is_measured_and_a_kept_folder_is_used_again(tmp_path):
    folder = ("--folder", str(tmp_path / "model"))
    result = bench(tmp_path, *folder)
    assert [row["phase"] for row in result["rows"]] == ["write bf16", *PHASES]
    assert all(row["s"] > 0 and row["GB"] > 0 for row in result["rows"])
    assert result["reads"].startswith("warm")
    sizes = result["files_gb"]
    assert sizes["model.int8.safetensors"] < sizes["model.safetensors"] * 3  # float32 on a CPU
    again = bench(tmp_path, *folder, "--cold")
    assert [row["phase"] for row in again["rows"]] == PHASES
    assert again["reads"].startswith("asked of the disk")
    assert again["files_gb"] == sizes
