"""Ticks by buckets: the same tokens whatever the bucket; and how many launches a tick takes."""

import numpy as np
import pytest
import torch

from engine.bench.tick import launches
from engine.bench.verify import play, play_on
from engine.config import GREEDY
from engine.model.graphs import Ticks, buckets_for
from engine.model.loop import Loop
from engine.runtime.generated import SMALL, generated

MOST_LAUNCHES = 1200  # on a GPU
MOST_OPERATORS = 6000  # on a CPU, a stand-in for a reduced size
FRAMES = 3


@pytest.fixture(scope="module", params=["bf16", "int8"])
def loop(request) -> Loop:
    with torch.inference_mode():
        lm, mimi = generated(SMALL, "cuda" if torch.cuda.is_available() else "cpu", request.param)
        loop = Loop(lm, mimi, 4, torch.int8 if request.param == "int8" else None)
        loop.sampler.tune(0, GREEDY)
    return loop


def test_buckets_are_powers_of_two_below_the_slots():
    assert buckets_for(16, every=True) == (1, 2, 4, 8, 16)
    assert buckets_for(5, every=True) == (1, 2, 4, 5)
    assert buckets_for(5, every=False) == (5,)


def test_the_smallest_bucket_gives_the_tokens_of_the_largest(loop):
    small, large = Ticks(loop, graphs=False, every=True), Ticks(loop, graphs=False)
    for slots in ([0], [0, 1], [1, 3]):
        a, _ = play(small, slots, FRAMES)
        b, _ = play(large, slots, FRAMES)
        assert np.array_equal(a, b)


def test_a_neighbour_changes_no_token_and_an_idle_slot_does_not_move(loop):
    ticks = Ticks(loop, graphs=False, every=True)
    among, alone = play(ticks, [0, 1, 2, 3], FRAMES)[0], play(ticks, [2], FRAMES)[0]
    assert np.array_equal(among[:, 2], alone[:, 0])
    before = [t.clone() for t in loop.state(1)]
    play_on(ticks, [2], 2)
    assert all(torch.equal(a, b) for a, b in zip(before, loop.state(1), strict=True))


@pytest.mark.filterwarnings("ignore")  # the profiler's own
def test_a_tick_stays_within_its_budget_of_launches(loop):
    loop.sampler.tune(0, GREEDY)
    count = launches(loop, 1)
    print(f"{count} launches on {loop.device.type}")
    assert 0 < count <= (MOST_LAUNCHES if loop.device.type == "cuda" else MOST_OPERATORS)
