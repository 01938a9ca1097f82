"""A prompt's pieces: their kernels against `Chunk`, and as one launch for every slot and length."""

import pytest
import torch

from engine.model.gpu import fused
from engine.model.gpu.graphs import Prefill
from engine.model.gpu.kernels_attention import PromptPiece
from engine.model.transformer import Chunk, Rings, Rotation
from tests.model.checking import BF16, CPU, DEVICE, F32, INT8, close, draw, poisoned
from tests.model.conftest import build_lm
from tests.model.test_fused import TOLERANCE, unpack_weights
from tests.model.test_kernels_attention import check_ring

MINE, SLOTS = 1, 3  # the slot whose prompt goes in, of so many


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poisoned(monkeypatch)


def twins(heads: int, width: int, capacity: int, ring: torch.dtype, pushed: int) -> list[Rings]:
    """The same rings on a CPU and on the kernels' device, with a past in every slot."""
    plain, quick = (
        Rings(2, SLOTS, heads, Rotation(width, 10_000, d), capacity, ring) for d in (CPU, DEVICE)
    )
    if ring == INT8:
        plain.kv.random_(-127, 128)
        plain.scale.copy_(torch.rand(plain.scale.shape) / 50 + 0.01)
        quick.scale.copy_(plain.scale)
    else:
        plain.kv.copy_(draw(*plain.kv.shape))
    quick.kv.copy_(plain.kv)
    for rings in (plain, quick):
        for slot in range(SLOTS):
            rings.set_position(slot, pushed if slot == MINE else 5)
    return [plain, quick]


def whose(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([MINE], device=DEVICE), torch.tensor([count], device=DEVICE)


@pytest.mark.parametrize(
    ("heads", "width", "pushed", "columns", "count", "ring", "dtype"),
    [
        (2, 16, 0, 16, 16, F32, F32),
        (3, 10, 0, 5, 5, F32, F32),  # fewer columns than a tile has rows, an odd width
        (2, 16, 7, 33, 21, F32, F32),  # several tiles, the last ones beyond what counts
        (2, 16, 70, 16, 1, F32, F32),  # a past longer than a block
        (2, 16, 64, 16, 16, BF16, BF16),
        (3, 10, 31, 20, 17, INT8, F32),
        (2, 16, 66, 16, 14, INT8, BF16),
        (2, 16, 79, 16, 16, F32, F32),  # up to the ring's last column
    ],
)
def test_a_piece_is_heard_and_kept_as_the_plain_chunk(
    heads, width, pushed, columns, count, ring, dtype
):
    plain, quick = twins(heads, width, 95, ring, pushed)
    before = quick.kv.clone()
    qkv = draw(columns, 1, 3, heads, width, dtype=dtype)
    piece = PromptPiece(quick, *whose(count), columns)
    got = piece.attend(1, qkv.to(DEVICE))
    chunk = Chunk(plain, MINE, count)
    want = chunk.attend(1, qkv[:count, 0][None].clone())[0]
    close(got[:count, 0], want, ulps=20 if dtype == F32 else 2)
    assert torch.isfinite(got).all()  # what does not count is written all the same
    check_ring(plain, quick, [MINE], dtype)
    chunk.advance()
    piece.advance()
    assert quick.position.tolist() == plain.position.tolist()
    behind, others = pushed + count, [slot for slot in range(SLOTS) if slot != MINE]
    assert torch.equal(quick.kv[:, :, MINE, :, behind:], before[:, :, MINE, :, behind:])
    assert torch.equal(quick.kv[:, :, others], before[:, :, others])
    assert torch.equal(quick.kv[0], before[0])  # the other layer's


def test_nothing_that_counts_changes_nothing_and_hears_silence():
    _, rings = twins(2, 16, 95, F32, 0)
    before = rings.kv.clone()
    piece = PromptPiece(rings, *whose(0), 16)
    assert not piece.attend(0, draw(16, 1, 3, 2, 16).to(DEVICE)).any()
    piece.advance()
    assert torch.equal(rings.kv, before)
    assert rings.position.tolist() == [5, 0, 5]


@pytest.fixture(scope="module")
def lm():
    """The tiny model as a GPU runs it."""
    model = unpack_weights(build_lm()).to(DEVICE)
    model.fused = fused
    return model


def columns_of(lm, expected, count: int) -> torch.Tensor:
    """The first embedded columns of the reference's run [count, dim]."""
    return lm.embedding(expected("lm_teacher_forced")["tokens"].long().T[:count].to(DEVICE))


@pytest.mark.parametrize("ring", [None, INT8])
def test_a_prompt_in_pieces_leaves_the_ring_of_the_plain_modules(lm, expected, ring):
    embedded = columns_of(lm, expected, 9)
    plain, quick = lm.rings(2, ring), lm.rings(2, ring)
    prefill = Prefill(lm, quick, (4,))
    for part in embedded.split(4):
        lm.prefill(part, plain, 1)
        prefill.run(1, part)
    assert (quick.pushed, quick.position.tolist()) == ([0, 9], [0, 9])
    got, want = (rings.read(slice(None), 1, 9, F32) for rings in (quick, plain))
    step = TOLERANCE if ring is None else 1.01 * plain.used(1)[1].float()[..., None]
    assert ((got[:, :, 0] - want[:, :, 0]).abs() <= step).all()
    assert not quick.kv[:, :, 0].any()


def test_neither_where_a_prompt_is_cut_nor_the_size_of_the_pieces_changes_a_bit(lm, expected):
    embedded, rings = columns_of(lm, expected, 5), lm.rings(2)
    for slot, (cuts, sizes) in enumerate((([4, 1], (4,)), ([1, 2, 2], (1, 17)))):
        prefill = Prefill(lm, rings, sizes)  # 17: more rows than a tile has
        for part in embedded.split(cuts):
            prefill.run(slot, part)
    assert torch.equal(rings.used(0)[0], rings.used(1)[0])


def test_a_piece_that_would_push_columns_out_is_run_by_the_plain_modules(lm, expected):
    capacity, rings = lm.window, [lm.rings(1), lm.rings(1)]
    embedded = columns_of(lm, expected, 8)
    prefill = Prefill(lm, rings[0], (8,))
    for each in rings:
        each.kv.copy_(torch.linspace(-1, 1, each.kv.numel()).view_as(each.kv))
        each.set_position(0, capacity - 7)
    prefill.run(0, embedded)
    lm.prefill(embedded, rings[1], 0)
    assert rings[0].pushed == [capacity + 1]
    assert torch.equal(rings[0].kv, rings[1].kv)
