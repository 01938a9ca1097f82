"""Ticks by buckets: the same tokens whatever the bucket; and how many launches a tick takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.bench.device import count_launches
from engine.bench.gpu import play
from engine.config import FRAME_SAMPLES, GREEDY
from engine.model.config import ModelConfig
from engine.model.gpu.graphs import Ticks, buckets_for
from engine.model.loop import Loop
from engine.model.stt import Hearing, Recogniser, SttConfig
from engine.weights.checkpoint import set_parameter, usual_dtype
from engine.weights.generated import FULL, SMALL, draw_values, generated

MOST_LAUNCHES = 1200  # on a GPU; test_graphs.py counts them where there is none
MOST_OPERATORS = {"bf16": 9_500, "int8": 12_500}  # of the plain modules on a CPU, with its views
DEEP = ModelConfig(  # as many layers as the public model, and rings that are read in parts
    lm=replace(
        FULL.lm, dim=128, num_heads=2, context=600, depformer_dim=64, depformer_num_heads=4,
        depformer_dim_feedforward=64,
    ),
    mimi=replace(SMALL.mimi, transformer=replace(FULL.mimi.transformer, d_model=64, num_heads=4)),
)  # fmt: skip
FRAMES = 3


@pytest.fixture(scope="module", params=["bf16", "int8"])
def loop(request) -> Loop:
    with torch.inference_mode():
        return loop_of(SMALL, request.param, slots=4)


def loop_of(config: ModelConfig, weights: str, slots: int) -> Loop:
    """Generated weights, weights and rings of one precision."""
    lm, mimi = generated(config, "cuda" if torch.cuda.is_available() else "cpu", weights)
    loop = Loop(lm, mimi, slots, torch.int8 if weights == "int8" else None)
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
    play(ticks, [2], 2, anew=False)
    assert all(torch.equal(a, b) for a, b in zip(before, loop.state(1), strict=True))


def make_recogniser(config: SttConfig, device: torch.device) -> Recogniser:
    """One with seeded weights."""
    with torch.device("meta"):
        stt = Recogniser(config)
    generator = torch.Generator(device).manual_seed(0)
    for name, value in draw_values(stt, usual_dtype(device), generator):
        set_parameter(stt, name, value)
    stt.use_fused_kernels()
    return stt


def test_the_recogniser_writes_the_same_in_every_bucket_and_only_for_whom_it_is_asked(loop):
    config = SttConfig(dim=64, num_heads=4, num_layers=2, hidden=96, context=20)
    stt = make_recogniser(config, loop.device)
    silence = torch.zeros(config.n_q, dtype=torch.int64, device=loop.device)
    seen = []
    for every in (True, False):
        hearing = Hearing(stt, loop.slots, silence)
        ticks = Ticks(loop, graphs=False, every=every, hearing=hearing)
        play(ticks, [1], 1)  # everybody is new
        untouched = [t.clone() for t in hearing.state(1)]
        seen.append([write(ticks, 0.1 * number) for number in range(4)])
        assert all(map(torch.equal, untouched, hearing.state(1)))
        assert hearing.rings.pushed == [5, 0, 0, 0]
    for one, other in zip(*seen, strict=True):
        assert one[0] == other[0]
        np.testing.assert_allclose(one[1], other[1], atol=1e-6)


def test_what_one_verb_leaves_for_the_next_stays_at_its_address_whichever_verb_it_was(loop):
    config = SttConfig(dim=64, num_heads=4, num_layers=1, hidden=96, context=20)
    stt = make_recogniser(config, loop.device)
    silence = torch.zeros(config.n_q, dtype=torch.int64, device=loop.device)
    ticks = Ticks(loop, False, every=True, hearing=Hearing(stt, loop.slots, silence))
    play(ticks, [0], 1)  # everybody is new
    before = addresses(ticks)
    for transcribed in ([], [0], []):  # a graph of `speak` serves `listen` and `transcribe`
        for slots in (1, 2, 4):
            active = np.arange(loop.slots) < slots
            text, *_ = ticks.listen(np.zeros((4, FRAME_SAMPLES), np.float32), active, transcribed)
            ticks.speak(np.where(active, text, 3), np.zeros(4, bool))
    ticks.flush([0])
    assert addresses(ticks) == before


def addresses(ticks: Ticks) -> list[int]:
    """Of every tensor through which the verbs of a bucket know of each other."""
    found = []
    for size, loop in ticks.loops.items():
        ear, left = ticks.hearings[size], (loop.hidden, loop.logits, loop.agent, loop.forced)
        users = loop.user_before, loop.user_now
        rings = loop.rings.kv, loop.rings.position, ear.rings.kv, ear.rings.position, ear.text
        kept = *left, *users, *rings, *loop.encoder.tensors(), *loop.decoder.tensors()
        found += [tensor.data_ptr() for tensor in kept]
    return found


def write(ticks: Ticks, level: float) -> tuple[int, np.ndarray]:
    """A tick of slots 0 and 1, slot 0 transcribed; on the first a flush too: what was written."""
    active = np.arange(ticks.loop.slots) < 2
    pcm = np.full((ticks.loop.slots, FRAME_SAMPLES), level, np.float32)
    text, _, (tokens, pauses) = ticks.listen(pcm, active, [0])
    ticks.speak(np.where(active, text, 3), np.zeros(ticks.loop.slots, bool))
    if level == 0:
        tokens, pauses = ticks.flush([0])
    return int(tokens[0]), pauses[0]


@pytest.mark.parametrize("weights", ["bf16", "int8"])
@pytest.mark.filterwarnings("ignore")  # the profiler's own
def test_a_tick_of_all_layers_launches_no_more_than_it_may(weights, record_property):
    loop = loop_of(DEEP, weights, slots=1)
    count, cuda = count_launches(loop, 1), loop.device.type == "cuda"
    record_property(f"launches of a profiled tick on {loop.device.type}", f"{count} {weights}")
    most = MOST_LAUNCHES if cuda else MOST_OPERATORS[weights]
    assert most // 2 < count <= most
