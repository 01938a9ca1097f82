"""The reference's runs through the fused kernels: few frames, as the interpreter is slow; all of
them on a GPU. With the codec, and without it where the language model's ring wraps."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from engine.bench.gpu import GOLDEN_FRAMES as ALL_FRAMES
from engine.bench.gpu import read_user_frames
from engine.commands.offline import drive_conversation
from engine.config import FRAME_SAMPLES, GREEDY, SamplingConfig
from engine.dialogue.persona import prompt_ids
from engine.model.gpu import fused
from engine.model.lm import LM
from engine.model.stt import Hearing
from engine.model.transformer import Active
from engine.runtime.backend import Opening
from engine.runtime.personaplex import PersonaPlexBackend
from engine.weights.loading import Checkpoint, load_checkpoint, load_recogniser
from tests.model.conftest import CPU, TINY, build_lm
from tests.model.listening import STT_TINY, WANT, golden_columns
from tests.model.test_fused import unpack_weights
from tests.model.test_lm import HIDDEN_TOLERANCE
from tests.model.test_loop import DROPPED, ReferenceDraws, run, start
from tests.model.test_mimi import PCM_TOLERANCE

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FRAMES = ALL_FRAMES if DEVICE.type == "cuda" else 1
MORE, COLUMNS, STEPS = (None,) * 3 if DEVICE.type == "cuda" else (2, 3, 3)  # of smaller runs
PAST = 1  # frames that are played after the one that fills the ring


def fused_checkpoint() -> Checkpoint:
    """The tiny checkpoint as a GPU runs it."""
    if DEVICE.type == "cuda":
        return load_checkpoint(str(TINY), device="cuda", dtype=torch.float32)
    checkpoint = load_checkpoint(str(TINY))
    lm, mimi = unpack_weights(checkpoint.lm), unpack_weights(checkpoint.mimi)
    lm.fused, mimi.fused, mimi.filters = fused, fused, fused.filters(mimi)
    return checkpoint


def test_the_fused_kernels_say_the_references_tokens():
    folder = TINY / "expected"
    want = load_file(folder / "gen_voice_pt.safetensors")["tokens"][1 : 1 + FRAMES]
    told = json.loads((folder / "gen_voice_pt.json").read_text())
    backend = PersonaPlexBackend(fused_checkpoint(), slots=1)
    assert backend.loop.sampler.text_kernel is fused.pick_text
    ids = prompt_ids(told["text_prompt"], backend.tokenizer)
    opening = Opening(told["voice"].split(".")[0], ids, GREEDY)
    frames = list(drive_conversation(backend, opening, read_user_frames()[:FRAMES]))
    got = [[f.text, *f.agent_codes, *f.user_codes] for f in frames]
    assert np.array_equal(got, want)


@pytest.mark.usefixtures("_wide_tiles")
def test_the_fused_kernels_say_the_references_tokens_through_a_ring_wrap(mimi, expected):
    loop = start(unpack_weights(build_lm()).to(DEVICE), mimi, GREEDY)
    full = loop.rings.capacity
    user = expected("codec")["codes8_streaming"].long().T[DROPPED:].to(DEVICE)
    want = expected("gen_no_prompt")["tokens"][: full + PAST - 1]

    def user_codes() -> Iterator[torch.Tensor]:
        """The user's codes; the plain modules play until the ring lacks one column."""
        for codes in user[: len(want)]:
            if loop.rings.pushed[0] == full - 1:
                loop.lm.fused = fused
                loop.sampler.audio_kernel, loop.sampler.text_kernel = fused.pick, fused.pick_text
            yield codes

    got = run(loop, user_codes())
    assert loop.rings.pushed[0] == full + PAST
    assert torch.equal(got.int().cpu(), want)


@pytest.mark.usefixtures("_wide_tiles")
def test_the_fused_kernels_pick_what_the_reference_draws(expected):
    checkpoint, want = fused_checkpoint(), expected("gen_sampled_optional")["tokens"][:MORE]
    loop = start(checkpoint.lm, checkpoint.mimi, SamplingConfig(0.7, 0.8, 25, 40))
    loop.sampler.draw = ReferenceDraws(loop, 4242, 25, 40)
    user = expected("codec")["codes8_streaming"].long().T[DROPPED:].to(DEVICE)
    got = run(loop, user[: len(want)])
    assert loop.sampler.audio_kernel is fused.pick
    assert torch.equal(got.int().cpu(), want)


def hidden_of(lm: LM, columns: torch.Tensor, plainly: int = 0) -> torch.Tensor:
    """Teacher forced over columns [T, 17], the first `plainly` by the plain modules -> [T, dim]."""
    rings, active, hidden = lm.rings(1), Active.of([0], 1, DEVICE), []
    for number, column in enumerate(columns.to(DEVICE)):
        lm.fused = None if number < plainly else fused
        hidden.append(lm.step(lm.embed(column[None]), rings, active))
    return torch.cat(hidden).float().cpu()


@pytest.mark.usefixtures("_wide_tiles")
def test_fused_hidden_states_are_the_references_through_a_ring_wrap(expected):
    lm, want = unpack_weights(build_lm()).to(DEVICE), expected("lm_teacher_forced")
    last = lm.window + PAST
    hidden = hidden_of(lm, want["tokens"].long().T[:last], plainly=lm.window - 1)
    torch.testing.assert_close(hidden, want["hidden"][:last], atol=HIDDEN_TOLERANCE, rtol=0)


@pytest.mark.usefixtures("_wide_tiles")
def test_fused_bf16_stays_within_twice_the_references_own_bf16_difference(expected):
    lm, want = unpack_weights(build_lm(torch.bfloat16)).to(DEVICE), expected("lm_teacher_forced")
    hidden = hidden_of(lm, want["tokens"].long().T[:COLUMNS])
    exact, theirs = want["hidden"][:COLUMNS], want["hidden_bf16"][:COLUMNS]
    assert (hidden - exact).abs().max() <= 2 * (theirs.float() - exact).abs().max()


@pytest.mark.usefixtures("_wide_tiles")
def test_the_fused_recogniser_writes_the_references_tokens(mimi):
    stt = unpack_weights(load_recogniser(str(STT_TINY), mimi, device=CPU).stt).to(DEVICE)
    stt.fused = fused
    hearing, active, tokens = Hearing(stt, 1), Active.of([0], 1, DEVICE), []
    for codes in golden_columns()[:STEPS].to(DEVICE):
        tokens.append(hearing.step(codes[None], active)[0])
    assert torch.equal(torch.cat(tokens).int().cpu(), WANT["tokens"][: len(tokens)])


@pytest.mark.usefixtures("_wide_tiles")
def test_the_fused_decoders_sound_is_the_references(expected):
    want, mimi, active = expected("codec"), fused_checkpoint().mimi, Active.of([0], 1, DEVICE)
    columns = want["codes8_streaming"].long().T.contiguous()[:MORE, None].to(DEVICE)
    stream = mimi.decoder_stream(1)
    pcm = torch.cat([mimi.decode(codes, stream, active)[0] for codes in columns]).cpu()
    assert len(pcm) == len(columns) * FRAME_SAMPLES
    exact = want["pcm_from_codes8_streaming"][: len(pcm)]
    torch.testing.assert_close(pcm, exact, atol=PCM_TOLERANCE, rtol=0)
