"""The fused step against the plain modules: same weights, same rings, same tokens."""

import pytest
import torch

from engine.model.gpu import fused
from engine.model.transformer import Active, RingPush
from tests.model.conftest import TINY, build_lm

pytestmark = pytest.mark.usefixtures("_wide_tiles")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = 2e-4


def unpack_weights(lm):
    """The plain weights again: kernels read them as they lie."""
    for linear in (m for m in lm.modules() if getattr(m, "packed", None) is not None):
        linear.weight = torch.nn.Parameter(linear.packed.to_dense(), requires_grad=False)
        linear.packed = None
    return lm


@pytest.fixture(scope="module")
def lm():
    assert TINY.exists()
    return unpack_weights(build_lm()).to(DEVICE)


def test_fused_steps_are_the_plain_ones(lm, expected):
    columns = expected("lm_teacher_forced")["tokens"].long().T[:3].to(DEVICE)  # [3, 17]
    plain, rings, active = lm.rings(2), lm.rings(2), Active.of([1], 2, DEVICE)
    for column in columns:
        tokens = torch.stack([column, column])
        embedded = lm.embedding(tokens)
        torch.testing.assert_close(fused.embed_column(lm.embedding, tokens), embedded)
        x = lm.transformer(embedded[:, None], RingPush(plain, active))
        want = lm.out_norm(x[:, 0])
        got = fused.step(lm, embedded, rings, active)
        torch.testing.assert_close(got[1], want[1], atol=TOLERANCE, rtol=0)
        plain.advance(active, 1)
        rings.advance(active, 1)
    torch.testing.assert_close(rings.used(1)[0], plain.used(1)[0], atol=TOLERANCE, rtol=0)
    assert not rings.kv[:, :, 0].any()


def test_fused_depth_steps_are_the_plain_ones(lm, expected):
    want = expected("lm_teacher_forced")
    hidden, text = want["hidden"][:2].to(DEVICE), want["depth_text_in"][:2].long().to(DEVICE)
    told, seen = want["depth_audio_in"][:2].long().to(DEVICE), []

    def pick(step: int, logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return told[:, step]

    fused.depth(lm.depformer, hidden, text, pick)
    first = want["depth_logits_first_frames"][:2, : lm.config.codebooks]
    torch.testing.assert_close(torch.stack(seen, 1).cpu(), first, atol=2e-3, rtol=0)
