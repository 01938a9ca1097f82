"""Rows of a batch do not feel each other, at sizes that fit no vector and no cache line."""

import numpy as np
import pytest
import torch

from engine.config import FRAME_SAMPLES, SamplingConfig
from engine.model.gpu.graphs import Ticks
from engine.model.loop import Loop
from engine.model.prompt import Voice, build_prompt, prompt_frames
from engine.model.transformer import Linear
from engine.weights.generated import generated
from tests.model.making import ODD

SETTINGS = SamplingConfig(text_top_k=20, audio_top_k=12, repetition_penalty=1.3)


@pytest.fixture(scope="module")
def odd():
    """A random model of odd sizes."""
    return generated(ODD, "cpu")


def talk(loop: Loop, slot: int, frames: int, others: tuple[int, ...] = ()) -> tuple[list, list]:
    """Everything that came out of a slot, and its state after it."""
    ticks, generator, out = Ticks(loop, graphs=False), torch.Generator().manual_seed(3), []
    prompt = build_prompt(ODD.lm, Voice(), prompt_frames(ODD.lm, (5, 6, 7)))
    for seat in (slot, *others):
        loop.clear(seat)
        loop.lm.prefill(loop.lm.embedding(prompt.columns[:-1]), loop.rings, seat)
        loop.start(seat, loop.save_prompt(seat, prompt))
        loop.sampler.seed(seat, 11 if seat == slot else seat)
        loop.sampler.tune(seat, SETTINGS)
    for step in range(frames):
        pcm = torch.rand(loop.slots, FRAME_SAMPLES) - 0.5
        pcm[slot] = torch.rand(FRAME_SAMPLES, generator=generator) - 0.5
        seats = [slot, *(s for s in others if (s + step) % 3)]
        text, codes, _ = ticks.listen(pcm.numpy(), np.isin(np.arange(loop.slots), seats))
        sound, frame = ticks.speak(text, np.zeros(loop.slots, bool))
        out += [text[slot], codes[slot], frame[slot], sound[slot], loop.hidden[slot].numpy().copy()]
    return out, [x.numpy().copy() for x in loop.state(slot)]


@pytest.fixture
def threads():
    """threads(n) for one test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("shape", "cores"),
    [((64, 192), 1), ((64, 192), 2), ((48, 29), 1), ((33, 29), 1), ((66, 31), 1)],
)
def test_a_row_of_a_product_is_the_same_alone_and_among_others(threads, shape, cores):
    threads(cores)
    linear = Linear(*shape)
    weight = linear.weight.normal_(generator=torch.Generator().manual_seed(5)).clone()
    linear.pack()
    rows = torch.randn(7, shape[0], generator=torch.Generator().manual_seed(6))
    alone = torch.stack([linear(row.clone()[None])[0] for row in rows])
    torch.testing.assert_close(alone, rows @ weight.T, rtol=1e-4, atol=1e-4)
    for count in (2, 3, 7):
        assert torch.equal(linear(rows[-count:, None]), alone[-count:, None])
    elsewhere = torch.empty(rows.numel() + 5)[5:].view_as(rows).copy_(rows)
    assert torch.equal(linear(elsewhere), alone)
    assert linear(rows[:0]).shape == (0, shape[1])


def test_a_small_weight_stays_as_it_is_and_a_large_one_is_packed():
    for shape, is_packed in (((64, 192), False), ((256, 256), True), ((66, 31), True)):
        linear = Linear(*shape)
        linear.pack()
        assert (linear.packed is not None) is is_packed


@pytest.mark.parametrize(("slots", "cores", "frames"), [(2, 1, 14), (7, 1, 14), (3, 2, 3)])
def test_a_row_is_the_same_to_the_bit_wherever_it_stands_and_whoever_is_beside_it(
    odd, threads, slots, cores, frames
):
    threads(cores)
    loop = Loop(*odd, slots)
    want = talk(loop, 0, frames)
    for slot in sorted({1, slots // 2, slots - 1}):
        others = tuple(s for s in range(slots) if s != slot)[: slot + 1]
        for part, expected in zip(talk(loop, slot, frames, others), want, strict=True):
            assert all(map(np.array_equal, part, expected))
