"""The frame loop against the reference's runs that no backend can make."""

import torch

from engine.config import GREEDY, SamplingConfig
from engine.model.loop import Loop
from engine.model.prompt import Voice, build_prompt, voice_frames

DROPPED = 1  # user frames that never reach the model after a reset


def start(lm, mimi, sampling: SamplingConfig) -> Loop:
    """One slot without any prompt: the initial column alone."""
    loop = Loop(lm, mimi, 1)
    nothing = torch.zeros(1, lm.config.n_q + 1, dtype=torch.int64)  # the frame a reset swallows
    prompt = build_prompt(lm.config, Voice(), nothing)
    assert prompt.frames == 1
    loop.start(0, loop.save_prompt(0, prompt))
    loop.sampler.tune(0, sampling)
    return loop


def run(loop: Loop, user: torch.Tensor) -> torch.Tensor:
    """Tokens [T, 17] of the frames that user codes [T, 8] make, after the bootstrap."""
    active, rows, text = loop.active([0]), [], torch.zeros(1, dtype=torch.int64, device=loop.device)
    hush = torch.zeros(1, dtype=torch.bool, device=loop.device)
    for codes in [loop.user_now[0].clone(), *user]:
        loop.sampler.draw(active)
        following = loop.step_temporal(codes[None], active).clone()
        frame = loop.step_depth(following, hush, active)
        rows.append(torch.cat([text, frame[0], codes]))
        text = following
    return torch.stack(rows[1:])  # the first was the bootstrap


def test_without_a_prompt_tick_i_is_the_references_row_i_minus_1(lm, mimi, expected):
    user = expected("codec")["codes8_streaming"].long().T
    want = expected("gen_no_prompt")["tokens"]
    got = run(start(lm, mimi, GREEDY), user[DROPPED:])
    assert torch.equal(got[: len(want)].int(), want)


def test_what_is_kept_of_a_recorded_voice_is_what_the_reference_saves(lm, expected):
    want = expected("voice_wav_details")
    codes = want["codes"].long().T  # [24, 8]
    prompt = build_prompt(lm.config, Voice(codes=codes), codes.new_zeros(0, 17))
    assert prompt.frames == len(codes)
    embeddings = lm.embedding(prompt.columns[:-1])
    torch.testing.assert_close(embeddings, want["saved_embeddings"][:, 0, 0], atol=1e-6, rtol=0)
    ring, late = want["saved_cache"][0], torch.tensor(lm.config.delays) == 1
    now = prompt.frames
    for back in (1, 2, 3):
        assert torch.equal(ring[:, (now - back) % 4], prompt.columns[-back])
    assert torch.equal(ring[late, now % 4], prompt.after[late])


def test_replaying_a_saved_voice_equals_playing_its_audio(lm, expected):
    want = expected("voice_wav_details")
    codes = want["codes"].long().T
    more = voice_frames(lm.config, codes[:5])
    played = build_prompt(lm.config, Voice(codes=codes), more)
    saved = Voice(embeddings=want["saved_embeddings"][:, 0, 0], ring=want["saved_cache"][0])
    replayed = build_prompt(lm.config, saved, more)
    assert replayed.frames == played.frames
    assert torch.equal(replayed.columns, played.columns[len(saved.embeddings) :])
    late = torch.tensor(lm.config.delays) == 1
    assert torch.equal(replayed.after[late], played.after[late])


class ReferenceDraws:
    """Random numbers in the order in which the reference draws them, all 16 depth steps."""

    def __init__(self, loop: Loop, seed: int, text_k: int, audio_k: int) -> None:
        self.loop, self.widths = loop, (text_k, audio_k)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, active) -> None:
        text_k, audio_k = self.widths
        sampler = self.loop.sampler
        sampler.text_noise[0, :text_k] = self._exponential(text_k)
        for step in range(2 * sampler.codebooks):
            numbers = self._exponential(audio_k)
            if step < sampler.codebooks:
                sampler.audio_noise[0, step, :audio_k] = numbers

    def _exponential(self, count: int) -> torch.Tensor:
        return torch.empty(1, count).exponential_(1, generator=self.generator)[0]


def test_sampled_tokens_are_the_references_when_the_draws_are(lm, mimi, expected):
    want = expected("gen_sampled_optional")["tokens"]
    loop = start(lm, mimi, SamplingConfig(0.7, 0.8, 25, 40))
    loop.sampler.draw = ReferenceDraws(loop, 4242, 25, 40)
    user = expected("codec")["codes8_streaming"].long().T
    got = run(loop, user[DROPPED:])
    assert torch.equal(got[: len(want)].int(), want)
