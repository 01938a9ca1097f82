"""`bench stages`: each stage is what the tick does."""

import argparse
import json

import numpy as np
import pytest
import torch

from engine.bench import device as fits
from engine.bench import stages
from engine.bench.device import fill_context, loop_of
from engine.config import FRAME_SAMPLES
from engine.model.gpu.graphs import Ticks
from engine.weights.sizing import RESERVE_BYTES, WORK_BYTES


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def loop(small):
    loop = loop_of(argparse.Namespace(), *small, slots=2, kv="bf16")
    fill_context(loop, 20)
    return loop


def test_text_is_picked_as_in_a_tick_by_the_kernel_where_there_is_one(loop):
    picks = []

    def kernel(logits, *settings):
        picks.append(settings)
        return torch.zeros(len(logits), dtype=torch.int64)

    loop.sampler.text_kernel = kernel
    stages.stages(loop)["text"]()
    Ticks(loop).listen(np.zeros((2, FRAME_SAMPLES), np.float32), np.ones(2, bool))
    stage, tick = picks
    assert all(map(torch.equal, stage[:-1], tick[:-1]))
    assert stage[-1] == tick[-1]


def test_every_slot_takes_part_in_every_stage(loop):
    works = stages.stages(loop)
    for name in ("encode", "temporal", "decode"):
        works[name]()
    assert loop.encoder.rings.pushed == loop.decoder.rings.pushed == [40, 40]
    assert loop.rings.pushed == [20, 20]


def test_slots_that_do_not_fit_get_a_row_that_says_so(tmp_path, monkeypatch, small):
    monkeypatch.setattr(stages, "models", lambda args, weights: small)
    room = 24_000_000  # more than one slot's bytes, less than nine's
    monkeypatch.setattr(fits, "free_bytes", lambda device: RESERVE_BYTES + WORK_BYTES + room)
    parser, path = argparse.ArgumentParser(), tmp_path / "stages.json"
    stages.add_arguments(parser)
    options = ["--random", "--small", "--device", "cpu", "--weights", "bf16", "--times", "1"]
    stages.run(parser.parse_args([*options, "--slots", "9", "1", "--json", str(path)]))
    nine, one = json.loads(path.read_text())["rows"]
    assert nine["note"].startswith("does not fit: ")
    parts = [
        one[f"{name}_ms"]
        for name in (*("encode", "temporal", "text"), *("depformer", "decode", "copies"))
    ]
    assert min(parts) > 0
    assert one["sum_ms"] == pytest.approx(sum(parts))
    assert one["tick_ms"] > 0
