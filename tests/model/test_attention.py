"""What a query sees of a ring: the newest columns that are not newer than itself."""

import pytest
import torch

from engine.model.transformer import Active, Chunk, RingPush, Rings, Rotation, attend_few
from tests.model.conftest import CPU

HEADS, DIM, CAPACITY, SLOTS = 2, 6, 7, 3


def rings() -> Rings:
    return Rings(1, SLOTS, HEADS, Rotation(DIM, 10_000, CPU), CAPACITY, torch.float32)


@pytest.mark.parametrize("columns", [1, 2])
def test_a_step_sees_the_newest_columns_that_are_not_newer_than_itself(columns):
    """The definition, written out, over true positions; keys are what was pushed."""
    generator, ring, active = torch.Generator().manual_seed(2), rings(), Active.of([1], SLOTS, CPU)
    pushed: list[torch.Tensor] = []
    for _ in range(9):
        qkv = torch.randn(SLOTS, columns, 3, HEADS, DIM, generator=generator)
        got = RingPush(ring, active, columns).attend(0, kept := qkv.clone())[1]  # kept is rotated
        ring.advance(active, columns)
        pushed += list(kept[1])
        for row in range(columns):
            last = len(pushed) - columns + row
            window = torch.stack(pushed[max(0, len(pushed) - CAPACITY) : last + 1])
            query, keys, values = window[-1, 0], window[:, 1], window[:, 2]  # [H, D], [n, H, D]
            scores = torch.einsum("hd,nhd->hn", query, keys) / DIM**0.5
            want = torch.einsum("hn,nhd->hd", scores.softmax(-1), values)
            torch.testing.assert_close(got[row], want.flatten(), atol=1e-6, rtol=0)


def test_a_chunk_longer_than_the_ring_leaves_the_newest_columns():
    generator, ring = torch.Generator().manual_seed(3), rings()
    qkv = torch.randn(1, 20, 3, HEADS, DIM, generator=generator)
    chunk = Chunk(ring, 2, 20)
    chunk.attend(0, qkv)  # rotates in place
    chunk.advance()
    newest = torch.stack([ring.kv[0, :, 2, :, p % CAPACITY] for p in range(13, 20)])
    assert torch.equal(newest, qkv[0, 13:, 1:])
    assert not ring.kv[0, :, [0, 1]].any()


def test_rotation_turns_pairs_by_their_own_frequency_without_changing_length():
    turn = Rotation(DIM, 10_000, CPU).turn(torch.tensor([[0, 5]]))[0, :, 0, 0]  # [2, 3]
    assert torch.equal(turn[0], torch.ones(3, dtype=torch.complex64))
    want = torch.tensor([5.0, 5 * 10_000 ** (-1 / 3), 5 * 10_000 ** (-2 / 3)])
    torch.testing.assert_close(turn[1].angle() % (2 * torch.pi), want % (2 * torch.pi))


def test_a_few_columns_are_attended_to_as_usual():
    query, keys, values = torch.randn(3, 2, 4), torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    want = torch.nn.functional.scaled_dot_product_attention(query[:, :, None], keys, values)
    torch.testing.assert_close(attend_few(query, keys, values), want[:, :, 0])
