"""What a tick asks of a GPU: launches, copies and waits, seen without one (absent.py)."""

from collections.abc import Iterable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config import FRAME_SAMPLES, GREEDY, SamplingConfig
from engine.model.config import ModelConfig
from engine.model.gpu import graphs
from engine.model.gpu.graphs import Ticks
from engine.model.lm import LM
from engine.model.loop import Loop
from engine.model.mimi import Mimi
from engine.model.stt import Hearing, Recogniser, SttConfig
from engine.model.transformer import Linear
from engine.weights.generated import FULL, SMALL, on_meta
from tests.model.absent import GPU, Copy, Device, Seen
from tests.model.test_compiled import OF_A_PIECE, OF_A_TICK

pytestmark = pytest.mark.usefixtures("_wide_tiles")

MOST_LAUNCHES = 900  # of a tick with a recogniser
BY_LAUNCHES = {"_attend_few", "_pick"}  # of a depformer that is no launch of its own
MOST_OF_A_PIECE = 8 * FULL.lm.num_layers + 16
UP, DOWN = Copy(up=True, waits=False), Copy(up=False, waits=False)


@pytest.fixture(autouse=True)
def _recorded_at_once(monkeypatch):
    """Nothing is compiled here: one run makes what is made once."""
    monkeypatch.setattr(graphs, "WARM_UPS", 1)


def quantise(model: torch.nn.Module) -> None:
    """Every product in int8, in place."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.quantise()


@cache
def models_of(config: ModelConfig, weights: str) -> tuple[LM, Mimi]:
    """As a GPU runs them, of weights that are not there; many loops may share them."""
    lm, mimi = on_meta(config)
    lm = lm.to(torch.bfloat16)
    mimi.prepare()
    if weights == "int8":
        quantise(lm)
    lm.use_fused_kernels()
    mimi.use_fused_kernels()
    return lm, mimi


def loop_of(config: ModelConfig, slots: int, weights: str = "bf16") -> Loop:
    loop = Loop(*models_of(config, weights), slots, torch.int8 if weights == "int8" else None)
    for slot in range(slots):
        loop.sampler.tune(slot, GREEDY)
    return loop


TINY_STT = SttConfig(dim=64, num_heads=4, num_layers=2, hidden=96, context=20)


def hearing_of(slots: int, config: SttConfig = TINY_STT, weights: str = "bf16") -> Hearing:
    with torch.device("meta"):
        stt = Recogniser(config).to(torch.bfloat16)
    if weights == "int8":
        quantise(stt)
    stt.use_fused_kernels()
    return Hearing(stt, slots, torch.zeros(config.n_q, dtype=torch.int64, device=GPU))


def listen(ticks: Ticks, writing: Iterable[int] = ()) -> np.ndarray:
    pcm = np.zeros((ticks.loop.slots, FRAME_SAMPLES), np.float32)
    return ticks.listen(pcm, np.ones(ticks.loop.slots, bool), writing)[0]


def speak(ticks: Ticks) -> None:
    ticks.speak(np.zeros(ticks.loop.slots, int), np.zeros(ticks.loop.slots, bool))


def one_tick(device: Device, loop: Loop, hearing: Hearing | None = None) -> Seen:
    """The second, as the first makes what is made once; everybody is transcribed, if anybody."""
    ticks = Ticks(loop, graphs=False, hearing=hearing)
    for _ in range(2):
        device.taken()
        listen(ticks, range(loop.slots) if hearing else ())
        speak(ticks)
    return device.taken()


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_tick_of_the_public_model_stays_within_its_budget_of_launches(weights, record_property):
    with Device() as device:
        seen = one_tick(device, loop_of(FULL, 1, weights))
    record_property(f"launches a tick (budget {MOST_LAUNCHES})", f"{seen.launches} {weights}")
    by_cuda = {"depth_int8", "attend_int8"} if weights == "int8" else {"depth_bf16"}
    without = {"_merge"} if weights == "int8" else set()
    assert set(seen.kernels) == OF_A_TICK - BY_LAUNCHES - without | by_cuda
    assert seen.kernels[f"depth_{weights}"] == 1
    assert seen.launches <= MOST_LAUNCHES


def test_more_than_sixteen_slots_run_the_depformer_by_launches():
    """A server's slots decide, not who is there: the bits of a conversation must not change."""
    with Device() as device:
        many, few = loop_of(FULL, 24), loop_of(FULL, 16)
        seen = one_tick(device, many)
    assert many.whole_depth is None
    assert few.whole_depth is few.narrow(1).whole_depth is not None
    assert set(seen.kernels) == OF_A_TICK


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_sixteen_transcribed_conversations_stay_within_it_too(weights, record_property):
    with Device() as device:
        hearing = hearing_of(16, SttConfig(), weights)
        seen = one_tick(device, loop_of(FULL, 16, weights), hearing)
    record_property("launches with a recogniser", f"{seen.launches} {weights}")
    by_cuda = {"depth_int8", "attend_int8"} if weights == "int8" else {"depth_bf16"}
    assert set(seen.kernels) == OF_A_TICK - BY_LAUNCHES | by_cuda
    assert 8 * SttConfig().num_layers < seen.launches <= MOST_LAUNCHES


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_piece_of_a_prompt_is_one_replay_of_eight_launches_a_layer(weights, record_property):
    with Device() as device:
        ticks = Ticks(loop_of(FULL, 1, weights))
        device.taken()
        ticks.prefill.run(0, torch.zeros(ticks.loop.piece_columns, FULL.lm.dim, device=GPU))
        seen = device.taken()
    [piece] = seen.replays
    record_property("launches a piece of a prompt", f"{piece.launches} {weights}")
    assert set(piece.kernels) == OF_A_PIECE
    assert piece.launches <= MOST_OF_A_PIECE
    assert not piece.copies
    assert not piece.waits
    assert not seen.waits


def test_with_graphs_each_half_of_a_tick_is_one_replay_one_copy_down_and_one_wait():
    with Device() as device:
        ticks = Ticks(loop_of(SMALL, 2), hearing=hearing_of(2))
        assert len(ticks.captured) == 2 * len(("listen", "speak", "transcribe", "flush"))
        for verb, up in (
            (lambda: listen(ticks), [UP, UP]),  # the samples and the random numbers
            (lambda: speak(ticks), [UP]),
            (lambda: listen(ticks, (1,)), [UP, UP]),
            (lambda: speak(ticks), [UP]),
            (lambda: ticks.flush([0, 1]), [UP]),
        ):
            device.taken()
            verb()
            seen = device.taken()
            assert seen.copies == [*up, DOWN]
            assert (len(seen.replays), seen.launches, seen.waits) == (1, 0, 1)
            assert seen.replays[0].launches > 0
            assert not seen.replays[0].copies
            assert not seen.replays[0].waits


def some_ticks(
    ticks: Ticks, slots: list[int], writing: Iterable[int] = (), frames: int = 1
) -> None:
    """Frames of these slots alone."""
    loop, active = ticks.loop, np.isin(np.arange(ticks.loop.slots), slots)
    for _ in range(frames):
        ticks.listen(np.zeros((loop.slots, FRAME_SAMPLES), np.float32), active, writing)
        speak(ticks)


def replayed(device: Device, ticks: Ticks) -> list[tuple[str, int]]:
    """Verb and bucket of every graph replayed since this was last called."""
    recorded = {id(c.graph.recorded): which for which, c in ticks.captured.items()}
    return [recorded[id(seen)] for seen in device.taken().replays]


def test_the_smallest_bucket_that_covers_the_active_slots_is_replayed():
    with Device() as device:
        ticks = Ticks(loop_of(SMALL, 5), hearing=hearing_of(5))
        assert ticks.buckets == (1, 2, 4, 5)
        device.taken()
        for slots, size in (([0], 1), ([1], 2), ([0, 1], 2), ([0, 2], 4), ([3], 4), ([0, 4], 5)):
            some_ticks(ticks, slots)
            assert replayed(device, ticks) == [("listen", size), ("speak", size)]
            some_ticks(ticks, slots, slots[:1])
            ticks.flush(slots)
            verbs = "transcribe", "speak", "flush"
            assert replayed(device, ticks) == [(verb, size) for verb in verbs]


def test_the_host_counts_what_a_replay_pushes_for_the_active_slots_and_no_other():
    with Device():
        ticks = Ticks(loop_of(SMALL, 4), hearing=hearing_of(4))
        loop, ear = ticks.loop, ticks.hearing
        some_ticks(ticks, [0, 2], frames=2)
        some_ticks(ticks, [2, 3], [3], frames=3)
        some_ticks(ticks, [1, 2, 3], [1, 3])
        ticks.flush([0, 3])
    ticked = [2, 1, 6, 4]
    codec = [SMALL.mimi.columns * count for count in ticked]
    assert loop.rings.pushed == ticked
    assert loop.encoder.rings.pushed == codec
    assert loop.decoder.rings.pushed == codec
    assert ear.rings.pushed == [1, 1, 0, 5]


def test_all_graphs_of_ticks_share_one_memory_pool():
    with Device():
        ticks = Ticks(loop_of(SMALL, 2), hearing=hearing_of(2))
    [pool] = {captured.graph.in_pool for captured in ticks.captured.values()}
    assert pool is not None


def test_the_absent_device_notices_what_makes_the_host_wait():
    with Device() as device:
        there, pinned = torch.zeros(3, device=GPU), torch.zeros(3).pin_memory()
        device.taken()
        there.copy_(torch.zeros(3), non_blocking=True)
        there.copy_(pinned)
        torch.tensor([1, 2], device=GPU)
        assert device.taken().copies == 3 * [Copy(up=True, waits=True)]
        for read in (Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.nonzero, bool):
            with pytest.raises((RuntimeError, NotImplementedError)):
                read(there[:1])


def test_a_tick_with_a_penalised_slot_waits_for_a_gpu_no_more_often_than_others():
    with Device() as device:
        ticks = Ticks(loop_of(SMALL, 2))
        ticks.loop.sampler.tune(1, SamplingConfig(repetition_penalty=1.3))
        device.taken()
        listen(ticks)
        seen = device.taken()
    assert seen.copies == [UP, UP, DOWN]
    assert seen.waits == 1
    assert seen.operators["scatter_.value"] == 1  # it was penalised
    assert seen.operators["index_put_"] == 0  # an index of numbers is copied, and not seen above
