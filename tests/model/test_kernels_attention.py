"""The attention kernels against plain PyTorch, through ring wraps and beside idle slots."""

import pytest
import torch

from engine.model.gpu.kernels_attention import Decode
from engine.model.gpu.kernels_attention import attend_few as attend_few_kernel
from engine.model.transformer import Active, RingPush, Rings, Rotation, attend_few
from tests.model.checking import BF16, CPU, DEVICE, F32, INT8, ROUNDED, TYPES, close, draw, poisoned

MOSTLY = 0.01  # of a ring's numbers may be rounded to their other neighbour


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poisoned(monkeypatch)


def twin_rings(slots: int, heads: int, width: int, capacity: int, dtype: torch.dtype):
    """The same empty rings on a CPU and on the device of the kernels."""
    return [
        Rings(1, slots, heads, Rotation(width, 10_000, d), capacity, dtype) for d in (CPU, DEVICE)
    ]


@pytest.mark.parametrize(
    ("heads", "width", "capacity", "columns", "ring", "dtype", "split"),
    [
        (2, 16, 19, 1, F32, F32, 16),
        (2, 16, 19, 1, BF16, BF16, 16),
        (2, 16, 19, 1, INT8, F32, 16),
        (2, 16, 19, 1, INT8, BF16, 16),
        (3, 10, 33, 2, F32, F32, 16),  # the codec pushes two
        (3, 10, 19, 2, BF16, BF16, 16),
        (3, 10, 19, 2, INT8, F32, 16),
        (3, 10, 19, 2, INT8, BF16, 16),
        (2, 16, 19, 1, INT8, BF16, 512),  # one program reads the whole ring
        (3, 10, 19, 2, F32, F32, 512),
    ],
)
def test_decode_attention_is_the_plain_one_through_a_ring_wrap(
    heads, width, capacity, columns, ring, dtype, split
):
    slots, steps = 3, 2 * capacity + 3
    plain, fast = twin_rings(slots, heads, width, capacity, ring)
    generator = torch.Generator().manual_seed(capacity)
    for step in range(steps):
        some = [s for s in range(slots) if torch.rand(1, generator=generator) < 0.7]
        qkv = draw(slots, columns, 3, heads, width, dtype=dtype)
        if step in (0, capacity - 1, capacity + 1, steps - 1):
            check_one_push(plain, fast, some, qkv, split)
        else:
            push_only(plain, fast, some, qkv)


def fill(rings: Rings) -> None:
    """Random keys and values, and scales where there are any."""
    if rings.scale is None:
        rings.kv.copy_(draw(*rings.kv.shape))
    else:
        rings.kv.copy_(torch.randint(-127, 128, rings.kv.shape))
        rings.scale.copy_(torch.rand(rings.scale.shape) / 50 + 0.01)


def push_only(plain: Rings, fast: Rings, some: list[int], qkv: torch.Tensor) -> None:
    """Grow both rings by the plain code, so that lengths differ between the slots."""
    slots, columns = qkv.shape[:2]
    active = Active.of(some, slots, CPU)
    RingPush(plain, active, columns).attend(0, qkv)
    plain.advance(active, columns)
    for s in range(slots):
        fast.set_position(s, plain.pushed[s])
    make_equal(fast, plain)


def make_equal(fast: Rings, plain: Rings) -> None:
    for mine, theirs in zip(kept_of(fast), kept_of(plain), strict=True):
        mine.copy_(theirs)


def kept_of(rings: Rings) -> list[torch.Tensor]:
    """What a push may write: numbers, and scales where there are any."""
    return [rings.kv] if rings.scale is None else [rings.kv, rings.scale]


def check_one_push(
    plain: Rings, fast: Rings, some: list[int], qkv: torch.Tensor, split: int
) -> None:
    """Same answer, same ring, idle slots untouched, every element written."""
    (slots, columns), before = qkv.shape[:2], [kept.clone() for kept in kept_of(fast)]
    want = RingPush(plain, Active.of(some, slots, CPU), columns).attend(0, qkv.clone())
    push = Decode(fast, Active.of(some, slots, DEVICE), columns, split, block=4)
    got = push.attend(0, qkv.to(DEVICE))
    idle = [s for s in range(slots) if s not in some]
    if some:
        close(got[some], want[some], ulps=20 if qkv.dtype == torch.float32 else 2)
        check_ring(plain, fast, some, qkv.dtype)
    assert not got[idle].any()
    for kept, was in zip(kept_of(fast), before, strict=True):
        assert torch.equal(kept[:, :, idle], was[:, :, idle])
    for rings, device in ((plain, CPU), (fast, DEVICE)):
        rings.advance(Active.of(some, slots, device), columns)
    make_equal(fast, plain)


def check_ring(plain: Rings, fast: Rings, some: list[int], dtype: torch.dtype) -> None:
    """The same numbers within a step of the last place, as int8 one of its own; nearly all equal.

    What was rounded differs only where float32, in another order, fell between two neighbours.
    """
    got, want = (numbers(rings)[:, :, some, :, : plain.capacity] for rings in (fast, plain))
    step = 1e-5 if dtype == torch.float32 else 2**-7 * want.abs() + 1e-6
    if plain.scale is not None:
        step = 1.01 * plain.scale[:, :, some, :, : plain.capacity, None].float()
    off = (got - want).abs()
    assert (off <= step).all()
    assert (off > 1e-5).float().mean() < MOSTLY


def numbers(rings: Rings) -> torch.Tensor:
    """Keys and values [L, 2, S, H, columns, D] as float32."""
    kv = rings.kv.float()
    return (kv if rings.scale is None else kv * rings.scale.float()[..., None]).cpu()


@pytest.mark.parametrize("ring", [F32, BF16, INT8])
def test_a_slot_is_heard_the_same_alone_and_among_others(ring):
    _, rings = twin_rings(4, 2, 16, 19, ring)
    fill(rings)
    for slot, pushed in enumerate((0, 7, 18, 40)):
        rings.set_position(slot, pushed)
    qkv = draw(4, 1, 3, 2, 16, dtype=F32 if ring == F32 else BF16).to(DEVICE)
    among = Decode(rings, Active.of([0, 1, 2, 3], 4, DEVICE), 1, 16, 4).attend(0, qkv)
    for slot in range(4):
        alone = Decode(rings, Active.of([slot], 4, DEVICE), 1, 16, 4).attend(0, qkv)
        assert torch.equal(alone[slot], among[slot])
    narrow = rings.narrow(2)
    few = Decode(narrow, Active.of([1], 2, DEVICE), 1, 16, 4).attend(0, qkv[:2])
    assert torch.equal(few[1], among[1])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("step", [0, 3, 7])
def test_the_depformers_attention_is_the_plain_one(step, dtype):
    slots, heads, steps, width = 3, 2, 8, 12
    kv = draw(2, slots, heads, steps, width, dtype=dtype)
    qkv = draw(slots, 3, heads, width, dtype=dtype)
    kv[:, :, :, step + 1 :] = float("nan")
    fast = kv.to(DEVICE).clone()
    got = attend_few_kernel(qkv.to(DEVICE), fast, step)
    kv[:, :, :, step] = qkv[:, 1:].transpose(0, 1)
    seen = kv[:, :, :, : step + 1]
    close(got, attend_few(qkv[:, 0].float(), *seen.float()).flatten(1), ROUNDED)
    assert torch.equal(fast[:, :, :, : step + 1].cpu(), seen)
