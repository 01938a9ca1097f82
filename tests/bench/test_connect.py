"""`bench connect`: from the opening to the first agent audio, with a new prompt and a kept one."""

import json

import pytest
import torch

from engine.bench import tick
from engine.bench.device import make_loop
from engine.bench.report import parse_options
from engine.bench.tick import CONNECT, make_prompt, open_slot
from engine.model.gpu.graphs import Ticks
from tests.bench.conftest import QUICK

COLUMNS = 30


@pytest.mark.parametrize("columns", [11, 749])
def test_the_shortest_prompt_and_the_longest_are_as_long_as_the_row_says(columns, small):
    with torch.inference_mode():
        loop = make_loop(*small, slots=2, kv="bf16")
        _, ready = open_slot(Ticks(loop), make_prompt(loop, columns))
    assert ready.columns == columns


def test_a_new_prompt_and_a_kept_one_end_in_the_same_first_frame(small):
    with torch.inference_mode():
        loop = make_loop(*small, slots=2, kv="bf16")
        ticks, prompt = Ticks(loop), make_prompt(loop, COLUMNS)
        new, ready = open_slot(ticks, prompt)
        after_new = [part.clone() for part in loop.state(0)]
        kept, same = open_slot(ticks, prompt, ready)
        assert all(map(torch.equal, after_new, loop.state(0)))
    assert same is ready
    assert ready.columns == COLUMNS
    assert loop.rings.pushed[0] == COLUMNS + 2  # the bootstrap tick, and one that hears the user
    assert loop.encoder.rings.pushed[0] == QUICK.mimi.columns
    assert new > 0 < kept


def test_the_time_to_first_audio_is_told_cold_new_and_kept(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tick, "generate_models", lambda args, weights: small)
    path = tmp_path / "connect.json"
    options = ["--random", "--small", "--device", "cpu", "--weights", "bf16"]
    args = parse_options(CONNECT, [*options, "--json", str(path)])
    args.columns = [20, 40]
    assert CONNECT.run(args) == 0
    first, second = json.loads(path.read_text())["rows"]
    for row in (first, second):
        assert row["first_audio_new_ms"] > 0 < row["first_audio_kept_ms"]
    assert first["cold_s"] > first["first_audio_first_ms"] / 1e3
    assert "cold_s" not in second  # nothing is cold by then
