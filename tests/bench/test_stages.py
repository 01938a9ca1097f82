"""`bench stages`: each stage is what the tick does."""

import json

import numpy as np
import pytest
import torch

from engine.bench import tick
from engine.bench.device import fill_context, make_loop
from engine.bench.report import parse_options
from engine.bench.tick import STAGES, list_stages
from engine.config import FRAME_SAMPLES
from engine.model.gpu.graphs import Ticks


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def loop(small):
    loop = make_loop(*small, slots=2, kv="bf16")
    fill_context(loop, 20)
    return loop


def test_text_is_picked_as_in_a_tick_by_the_kernel_where_there_is_one(loop):
    picks = []

    def kernel(logits, *settings):
        picks.append(settings)
        return torch.zeros(len(logits), dtype=torch.int64)

    loop.sampler.text_kernel = kernel
    list_stages(loop)["text"]()
    Ticks(loop).listen(np.zeros((2, FRAME_SAMPLES), np.float32), np.ones(2, bool))
    stage, whole = picks
    assert all(map(torch.equal, stage[:-1], whole[:-1]))
    assert stage[-1] == whole[-1]


def test_every_slot_takes_part_in_every_stage(loop):
    works = list_stages(loop)
    for name in ("encode", "temporal", "decode"):
        works[name]()
    assert loop.encoder.rings.pushed == loop.decoder.rings.pushed == [40, 40]
    assert loop.rings.pushed == [20, 20]


def test_slots_that_do_not_fit_get_a_row_that_says_so(tmp_path, monkeypatch, small):
    def make(lm, mimi, slots, kv):
        if slots > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return make_loop(lm, mimi, slots, kv)

    monkeypatch.setattr(tick, "generate_models", lambda args, weights: small)
    monkeypatch.setattr(tick, "make_loop", make)
    path = tmp_path / "stages.json"
    options = ["--random", "--small", "--device", "cpu", "--weights", "bf16"]
    options += ["--slots", "9", "1", "--json", str(path)]
    STAGES.run(parse_options(STAGES, options))
    nine, one = json.loads(path.read_text())["rows"]
    assert nine["note"].startswith("does not fit: ")
    parts = [one[f"{name}_ms"] for name in ("encode", "temporal", "text", "depformer", "decode")]
    assert min(parts) > 0
    assert one["sum_ms"] == pytest.approx(sum(parts))
    assert one["tick_ms"] > 0
