"""Slots, prompts and seeds of the model as a backend. All windows wrap in all of these."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.config import GREEDY, PAD, SamplingConfig
from engine.errors import ModelError
from engine.model.transformer import Active
from engine.runtime.backend import Opening
from engine.runtime.personaplex import PersonaPlexBackend
from tests.runtime.playing import FRAMES, MINE, PERSONA, SAMPLED, Guest, audio, enter, play, tick

CROWD = (
    Guest(0, leaves=15),
    Guest(1, joins=4, every=2),
    Guest(2, joins=9, leaves=20, opening=replace(MINE, seed=3, sampling=GREEDY)),
    Guest(4, joins=2, leaves=11, every=3),
)


@pytest.fixture(scope="module")
def five(thin) -> PersonaPlexBackend:
    return PersonaPlexBackend(thin, slots=5)


@pytest.fixture(scope="module")
def alone(five):
    """Our conversation in slot 0 of five, nobody else there: what all others are compared to."""
    return play(five, 0)


@pytest.fixture
def fresh(thin):
    """A backend whose prompt cache is empty."""
    return lambda slots=2: PersonaPlexBackend(thin, slots=slots)


def test_slot_3_alone_is_slot_0_alone_to_the_bit(five, alone):
    assert play(five, 3) == alone


def test_neighbours_that_join_and_leave_change_no_bit(five, alone):
    assert play(five, 3, guests=CROWD) == alone


def test_ticks_of_others_and_of_nobody_are_no_ops_for_me(five, alone):
    assert play(five, 3, guests=CROWD[:2], idle=1, frames=FRAMES) == alone


def test_not_a_bit_of_an_inactive_slot_changes(five):
    for slot in range(5):
        enter(five, slot, replace(MINE, seed=slot))
    pcm = np.repeat(audio(2)[:1], 5, 0)
    tick(five, pcm, range(5))
    before = [tensor.clone() for tensor in five.loop.state(2)]
    for _ in range(12):
        tick(five, pcm, [0, 1, 3, 4])
    after = five.loop.state(2)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for slot in range(5):
        five.close(slot)


def test_an_engine_of_one_slot_says_the_same(fresh, alone):
    assert play(fresh(slots=1), 0).tokens == alone.tokens


def test_a_slot_that_was_used_before_is_like_a_new_one(five, fresh, alone):
    play(five, 0, Opening("TINYM0", (9, 8, 7), GREEDY), frames=11)
    assert play(five, 0) == alone
    for one, other in zip(five.loop.state(0), fresh(5).loop.state(0), strict=True):
        assert torch.equal(one, other)


def test_a_cached_prompt_is_a_fresh_one_to_the_bit(fresh):
    backend = fresh()
    first = play(backend, 1, frames=4)
    assert len(backend.cache._kept) == 1
    assert sum(1 for _ in backend.open(1, MINE)) == 0  # nothing is run again
    assert play(backend, 1, frames=4) == first


def test_a_prompt_in_one_pass_equals_stepping_through_it(fresh):
    backend, opening = fresh(), replace(MINE, sampling=GREEDY)
    enter(backend, 1, opening)
    loop = backend.loop
    [voice] = backend._voices.values()
    prompt = backend._prompt(voice, PERSONA)
    rings, active = backend.checkpoint.lm.rings(1), Active.of([0], 1, loop.device)
    with torch.inference_mode():
        for embedded in backend._embedded(prompt):
            backend.checkpoint.lm.step(embedded[None], rings, active)
    assert prompt.frames - 1 == rings.pushed[0] == loop.rings.pushed[1]
    assert prompt.frames > 2 * rings.capacity
    torch.testing.assert_close(loop.rings.used(1)[0], rings.used(0)[0], atol=1e-5, rtol=0)
    with torch.inference_mode():
        loop.rings.used(1)[0].copy_(rings.used(0)[0])
    stepped = [tick(backend, audio(1)[[0, i]], [1])[1].codes[1].tolist() for i in range(10)]
    enter(backend, 1, opening)
    assert stepped == [tick(backend, audio(1)[[0, i]], [1])[1].codes[1].tolist() for i in range(10)]


def test_the_same_seed_says_the_same_and_another_seed_something_else(five, alone):
    assert play(five, 2).tokens == alone.tokens
    assert play(five, 2, replace(MINE, seed=8)).tokens != alone.tokens


def test_sliders_of_one_never_touch_the_other(five, alone):
    wild = SamplingConfig(1.9, 1.7, 300, 64, -2.0, 1.8, 100)
    guests = [Guest(1, opening=replace(MINE, sampling=wild)), Guest(4, opening=MINE)]
    assert play(five, 3, guests=guests) == alone


def test_tuning_takes_effect_from_the_next_tick_on(fresh):
    backend = fresh(1)
    enter(backend, 0, replace(MINE, sampling=GREEDY))
    tick(backend, audio(1)[:1], [0])
    backend.tune(0, SamplingConfig(pad_bias=4, text_top_k=1))
    calm = [tick(backend, audio(1)[i : i + 1], [0])[0].text[0] for i in range(6)]
    backend.loop.sampler.pad_bias[0] = 1e6
    assert [tick(backend, audio(1)[i : i + 1], [0])[0].text[0] for i in range(6)] == [PAD] * 6
    assert calm != [PAD] * 6


def test_a_hushed_frame_is_silence_tokens_once_it_is_complete(fresh):
    backend = fresh(1)
    silence = list(backend.config.silence_tokens)
    enter(backend, 0, MINE)
    codes = []
    for step in range(8):
        active = np.ones(1, bool)
        heard = backend.listen(audio(1)[step : step + 1], active)
        spoken = backend.speak(heard.text, np.array([step in (3, 4)]))
        codes.append(spoken.codes[0].tolist())
    # the text fed in tick 3 belongs to the frame whose codes are complete in tick 4
    assert [codes[4], codes[5]] == [silence, silence]
    assert silence not in (codes[3], codes[6], codes[2])
    assert codes[0] == silence  # the bootstrap: the last frame of the prompt


def test_what_inactive_rows_carry_does_not_matter(five, alone):
    enter(five, 3, MINE)
    pcm = np.full((5, 1920), np.nan, np.float32)
    for step in range(3):
        pcm[3] = audio(1)[step]
        active = np.arange(5) == 3
        heard = five.listen(pcm, active)
        text = np.where(active, heard.text, -77)
        five.speak(text, np.ones(5, bool) & ~active)
    five.close(3)
    assert play(five, 1) == alone


def test_an_unknown_voice_is_refused_with_names(fresh):
    with pytest.raises(ModelError, match="voice 'Bob' not found; try TINYF0, TINYM0"):
        next(fresh().open(0, Opening("Bob")))


def test_a_fed_token_outside_the_vocabulary_is_our_own_fault(fresh):
    backend = fresh(1)
    enter(backend, 0, MINE)
    backend.listen(audio(1)[:1], np.ones(1, bool))
    with pytest.raises(AssertionError, match="not in the vocabulary"):
        backend.speak(np.array([384]), np.zeros(1, bool))


def test_no_persona_leaves_both_silences(fresh):
    backend = fresh(1)
    enter(backend, 0, Opening("TINYF0", (), SAMPLED))
    assert backend.loop.rings.pushed[0] == 26 + 1 + 12 - 1


def test_work_of_opening_comes_in_pieces_of_64_columns_or_of_as_many_as_are_allowed(fresh):
    backend = fresh(1)
    seen = []
    for _ in backend.open(0, replace(MINE, text_ids=tuple(range(4, 160)))):
        seen.append(backend.loop.rings.pushed[0])
        backend.limit_piece(16 if len(seen) == 2 else 64)
    assert seen == [64, 128, 128 + 16, 26 + 1 + 12 + 156 - 1]
    assert backend.context_used(0) == 1.0
