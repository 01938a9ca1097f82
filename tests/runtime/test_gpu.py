"""The model on a GPU: the reference's tokens in float32, its hidden states in bf16."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.config import GREEDY
from engine.model.transformer import Active
from engine.runtime.personaplex import PersonaPlexBackend
from engine.weights.loading import Checkpoint, load_checkpoint
from tests.runtime.conftest import TINY
from tests.runtime.playing import MINE, Guest, play

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GUESTS = (Guest(0, leaves=9), Guest(2, joins=3, every=2))


@pytest.fixture(scope="module")
def exact() -> Checkpoint:
    return load_checkpoint(str(TINY), device="cuda", dtype=torch.float32)


def test_float32_on_a_gpu_says_what_a_cpu_says(exact, tiny):
    opening = replace(MINE, sampling=GREEDY)
    there = play(PersonaPlexBackend(exact, slots=3), 1, opening, GUESTS)
    here = play(PersonaPlexBackend(tiny, slots=3), 1, opening, GUESTS)
    assert there.tokens == here.tokens
    for one, other in zip(there.said[3::4], here.said[3::4], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)


def test_draws_on_a_gpu_are_those_of_a_cpu(exact, tiny):
    there = play(PersonaPlexBackend(exact, slots=2), 1)
    assert there.tokens == play(PersonaPlexBackend(tiny, slots=2), 1).tokens


def test_bf16_on_a_gpu_stays_within_twice_the_references_difference():
    checkpoint = load_checkpoint(str(TINY), device="cuda")
    lm, want = checkpoint.lm, load_file(TINY / "expected" / "lm_teacher_forced.safetensors")
    assert lm.embedding.table.dtype == torch.bfloat16
    columns, device = want["tokens"].long().T.cuda(), torch.device("cuda")
    with torch.inference_mode():
        rings, active = lm.rings(1), Active.of([0], 1, device)
        steps = [lm.step(lm.embedding(c[None]), rings, active) for c in columns]
    hidden = torch.cat(steps).float().cpu()
    allowed = 2 * (want["hidden_bf16"].float() - want["hidden"]).abs().max()
    assert (hidden - want["hidden"]).abs().max() <= allowed


def test_a_conversation_in_bf16_runs_and_idle_slots_do_not_change():
    backend = PersonaPlexBackend(load_checkpoint(str(TINY), device="cuda"), slots=3)
    alone = play(backend, 1)
    assert play(backend, 1).tokens == alone.tokens
