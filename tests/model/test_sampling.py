"""Picks against the reference's, and against the definition for what it does not have."""

import torch

from engine.config import EPAD, PAD, SamplingConfig
from engine.model.config import LMConfig
from engine.model.sampling import Sampler, race
from engine.model.transformer import Active
from tests.model.conftest import CPU

SMALL = LMConfig(text_card=50, card=20, silence_tokens=(0,) * 8, sine_tokens=(0,) * 8)


def sampler(slots: int = 2, **settings) -> Sampler:
    made = Sampler(slots, SMALL, CPU)
    for slot in range(slots):
        made.tune(slot, SamplingConfig(**settings))
        made.seed(slot, slot)
    return made


def everyone(slots: int) -> Active:
    return Active.of(list(range(slots)), slots, CPU)


def test_picks_for_given_noise_are_the_references(expected):
    want = expected("sampling")
    temperature = torch.full((32,), 0.7)
    picked = race(want["logits"], temperature, 25, want["exp_noise"])
    assert torch.equal(picked.int(), want["picked"])


def test_greedy_takes_the_first_of_equals(expected):
    want = expected("sampling")
    config = LMConfig(text_card=384, card=64, silence_tokens=(0,) * 8, sine_tokens=(0,) * 8)
    made = Sampler(32, config, CPU)
    for slot in range(32):
        made.tune(slot, SamplingConfig(text_temperature=0))
    picked = made.pick_text(want["logits"].clone())
    assert torch.equal(picked.int(), want["greedy"])


def test_the_race_draws_with_the_renormalised_top_k_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(40_000, -1)
    noise = torch.empty(40_000, 3).exponential_(generator=torch.Generator().manual_seed(1))
    picked = race(logits, torch.ones(40_000), 3, noise)
    share = torch.bincount(picked, minlength=4) / len(picked)
    want = torch.softmax(torch.tensor([2.0, 1.0, 0.0]), 0)
    torch.testing.assert_close(share[:3], want, atol=0.01, rtol=0)
    assert share[3] == 0


def test_top_k_beyond_the_vocabulary_is_the_whole_vocabulary():
    made = sampler(text_top_k=10_000, audio_top_k=10_000)
    made.draw(everyone(2))
    assert made.text.widths[0] == 50
    assert made.pick_audio(0, torch.randn(2, 20), torch.full((2,), -1)).max() < 20


def test_slots_with_different_settings_are_each_served_by_their_own():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    mixed = Sampler(3, SMALL, CPU)
    for slot, (temperature, k) in enumerate([(0, 5), (0.9, 3), (1.4, 30)]):
        mixed.tune(slot, SamplingConfig(temperature, text_top_k=k))
        mixed.seed(slot, 4)
    mixed.draw(everyone(3))
    picked = mixed.pick_text(logits.clone())
    assert picked[0] == logits[0].argmax()
    for slot, (temperature, k) in enumerate([(0.9, 3), (1.4, 30)], start=1):
        noise = mixed.text_noise[slot : slot + 1]
        assert picked[slot] == race(logits[slot : slot + 1], torch.tensor([temperature]), k, noise)


def test_padding_bias_is_added_to_the_padding_token_alone():
    made = sampler(text_temperature=0, pad_bias=4.0)
    logits = torch.zeros(2, 50)
    logits[:, 7] = 3.9
    assert made.pick_text(logits.clone()).tolist() == [PAD, PAD]
    made.tune(1, SamplingConfig(text_temperature=0))
    assert made.pick_text(logits.clone()).tolist() == [PAD, 7]


def test_the_penalty_falls_on_what_was_fed_lately_but_never_on_padding():
    made = sampler(text_temperature=0, repetition_penalty=2.0, repetition_context=2)
    logits = torch.full((2, 50), -9.0)
    logits[:, 10], logits[:, 11], logits[:, 12] = 5.0, 4.0, -1.0
    assert made.pick_text(logits.clone()).tolist() == [10, 10]
    made.feed(torch.tensor([10, 11]), everyone(2))
    assert made.pick_text(logits.clone()).tolist() == [11, 10]
    made.feed(torch.tensor([PAD, PAD]), everyone(2))
    made.feed(torch.tensor([EPAD, EPAD]), everyone(2))  # 10 is three tokens ago now
    assert made.pick_text(logits.clone()).tolist() == [10, 10]
    padded = torch.full((2, 50), 1.0)
    padded[:, PAD] = 1.5
    assert made.pick_text(padded).tolist() == [PAD, PAD]


def test_penalised_logits_below_zero_grow_more_negative():
    made = sampler(text_temperature=0, repetition_penalty=2.0)
    logits = torch.full((2, 50), -9.0)
    logits[:, 10], logits[:, 11] = -1.0, -1.5
    made.feed(torch.tensor([10, 10]), everyone(2))
    assert made.pick_text(logits).tolist() == [11, 11]


def test_a_memory_of_fed_tokens_longer_than_it_holds_keeps_the_newest():
    made = sampler(text_temperature=0, repetition_penalty=2.0, repetition_context=4096)
    for token in [10, *[11] * 4096]:
        made.feed(torch.tensor([token, token]), everyone(2))
    logits = torch.full((2, 50), -9.0)
    logits[:, 10], logits[:, 11] = 1.0, 1.1
    assert made.pick_text(logits).tolist() == [10, 10]


def test_an_inactive_slot_draws_nothing_and_remembers_nothing():
    made = sampler()
    only = Active.of([0], 2, CPU)
    before = made.fed[1, :-1].clone(), made.generators[1].get_state()
    made.draw(only)
    made.feed(torch.tensor([9, 9]), only)
    assert torch.equal(made.fed[1, :-1], before[0])
    assert torch.equal(made.generators[1].get_state(), before[1])
    assert made.count.tolist() == [1, 0]


def test_a_seed_discards_the_numbers_drawn_ahead():
    fresh, ahead, only = sampler(), sampler(), Active.of([0], 2, CPU)
    ahead.draw_ahead([0])
    drawn = ahead.noise.clone()
    for made in (fresh, ahead):
        made.seed(0, 5)
        made.draw(only)
    assert not torch.equal(ahead.noise[0], drawn[0])
    assert torch.equal(ahead.noise[0], fresh.noise[0])
    assert torch.equal(ahead.noise[1], drawn[1])
    assert not ahead.drawn


def test_numbers_drawn_ahead_are_those_of_the_next_tick_and_drawn_once():
    plain, ahead, only = sampler(), sampler(), Active.of([0], 2, CPU)
    for _ in range(3):
        ahead.draw_ahead([0])
        ahead.draw_ahead([0])
        for made in (plain, ahead):
            made.draw(only)
        assert torch.equal(ahead.noise, plain.noise)
