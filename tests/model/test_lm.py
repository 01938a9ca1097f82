"""The language model, teacher forced, against the reference's numbers."""

import torch

from engine.model.transformer import Active
from tests.model.conftest import CPU, build_lm

EMBEDDING_TOLERANCE, HIDDEN_TOLERANCE, LOGITS_TOLERANCE = 1e-6, 1e-4, 2e-3


def hidden_of(lm, columns: torch.Tensor) -> torch.Tensor:
    """Step by step over columns [T, 17] -> hidden [T, dim]."""
    rings, active = lm.rings(1), Active.of([0], 1, CPU)
    return torch.cat([lm.step(lm.embedding(c[None]), rings, active) for c in columns])


def test_embeddings_are_the_references(lm, expected):
    want = expected("lm_teacher_forced")
    got = lm.embedding(want["tokens"].long().T)
    torch.testing.assert_close(got, want["embedding_sum"], atol=EMBEDDING_TOLERANCE, rtol=0)


def test_hidden_and_text_logits_are_the_references_through_a_ring_wrap(lm, expected):
    want = expected("lm_teacher_forced")
    hidden = hidden_of(lm, want["tokens"].long().T)
    torch.testing.assert_close(hidden, want["hidden"], atol=HIDDEN_TOLERANCE, rtol=0)
    logits = lm.text_logits(hidden)
    torch.testing.assert_close(logits, want["text_logits"], atol=LOGITS_TOLERANCE, rtol=0)


def test_depth_logits_are_the_references_for_the_agents_rows(lm, expected):
    want, steps, seen = expected("lm_teacher_forced"), lm.config.codebooks, []
    told = want["depth_audio_in"].long()

    def pick(step: int, logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return told[:, step]

    lm.depformer(want["hidden"], want["depth_text_in"].long(), pick)
    logits = torch.stack(seen, 1)  # [T, Q, card]
    first = want["depth_logits_first_frames"][:, :steps]
    torch.testing.assert_close(logits[: len(first)], first, atol=LOGITS_TOLERANCE, rtol=0)
    assert torch.equal(logits.argmax(-1).int(), want["depth_argmax"][:, :steps])


def test_bf16_stays_within_twice_the_references_own_bf16_difference(expected):
    want = expected("lm_teacher_forced")
    hidden = hidden_of(build_lm(torch.bfloat16), want["tokens"].long().T).float()
    allowed = 2 * (want["hidden_bf16"].float() - want["hidden"]).abs().max()
    assert (hidden - want["hidden"]).abs().max() <= allowed


def test_prefill_in_chunks_equals_stepping_through_a_ring_wrap(lm, expected):
    columns = expected("lm_teacher_forced")["tokens"].long().T  # [60, 17], the window is 39
    stepped = hidden_of(lm, columns)
    for sizes in ([60], [1, 59], [38, 2, 20], [7] * 8 + [4], [45, 15]):
        rings, parts = lm.rings(3), []
        for part in columns.split(sizes):
            parts.append(lm.prefill(lm.embedding(part), rings, slot=1))
        torch.testing.assert_close(torch.cat(parts), stepped, atol=1e-5, rtol=0)
        step = lm.rings(1)
        lm.prefill(lm.embedding(columns), step, slot=0)
        torch.testing.assert_close(rings.used(1)[0], step.used(0)[0], atol=1e-5, rtol=0)


def test_one_pass_without_a_ring_has_the_plain_window(lm, expected):
    want = expected("lm_teacher_forced")
    rings = lm.transformer.rings(1, lm.config.context)  # one column more than a conversation's
    hidden = lm.prefill(lm.embedding(want["tokens"].long().T), rings, slot=0)
    torch.testing.assert_close(hidden, want["hidden_offline"], atol=HIDDEN_TOLERANCE, rtol=0)
