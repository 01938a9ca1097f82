"""Every Triton kernel against plain PyTorch: interpreted here, compiled where there is a GPU."""

import pytest
import torch
import torch.nn.functional as F

from engine.config import PAD
from engine.model.attention import Rings, Rotation, Step, attend_few
from engine.model.int8 import quantise
from engine.model.kernels import add_norm, embed, matmul
from engine.model.kernels_attention import Decode
from engine.model.kernels_attention import attend_few as attend_few_kernel
from engine.model.kernels_pick import pick, pick_text
from engine.model.sampling import race
from engine.model.state import Active
from engine.model.transformer import RMS_EPS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
F32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
TYPES = [F32, BF16]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Fresh numbers, other ones on every call."""
    return torch.randn(*shape).to(dtype)


def close(got: torch.Tensor, want: torch.Tensor, ulps: float = 1.0) -> None:
    """Within so many steps of the last place of `got`'s type, relative to the largest value."""
    last = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[got.dtype]
    allowed = ulps * last * want.abs().max().float().item()
    assert torch.isfinite(got).all()
    assert (got.float().cpu() - want.float().cpu()).abs().max().item() <= allowed


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 128), (5, 70, 33), (16, 96, 300), (21, 33, 64)])
def test_a_product_is_the_plain_one(m, n, k, dtype):
    x, weight = draw(m, k, dtype=dtype), draw(n, k, dtype=dtype)
    want = x.float() @ weight.float().T
    close(matmul(x.to(DEVICE), weight.to(DEVICE)), want)
    parts = matmul(x.to(DEVICE), weight.to(DEVICE), partial=True)
    close(parts.sum(0), want, ulps=3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(3, 48, 96), (16, 130, 257)])
def test_an_int8_product_is_that_of_the_dequantised_weight(m, n, k, dtype):
    x, (weight, scale) = draw(m, k, dtype=dtype), quantise(draw(n, k))
    want = x.float() @ (weight.float() * scale[:, None]).T
    got = matmul(x.to(DEVICE), weight.to(DEVICE), scale.to(DEVICE))
    assert got.dtype == dtype
    close(got, want)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("int8", [False, True])
def test_the_gated_product_is_silu_of_the_gate_times_the_rest(int8, dtype):
    x, weight = draw(5, 80, dtype=dtype), draw(2 * 72, 80, dtype=dtype)
    scale = None
    exact = weight.float()
    if int8:
        weight, scale = quantise(weight)
        exact = weight.float() * scale[:, None]
        scale = scale.to(DEVICE)
    gate, up = F.linear(x.float(), exact).chunk(2, -1)
    got = matmul(x.to(DEVICE), weight.to(DEVICE), scale, gated=True)
    close(got, F.silu(gate) * up, ulps=3)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_of_a_product_depends_on_no_other_row(dtype):
    x, weight = draw(16, 128, dtype=dtype).to(DEVICE), draw(64, 128, dtype=dtype).to(DEVICE)
    whole = matmul(x, weight)
    assert torch.equal(matmul(x[3:4].contiguous(), weight)[0], whole[3])
    assert torch.equal(matmul(x[:9].contiguous(), weight), whole[:9])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [37, 128])
def test_residual_and_norm_are_the_plain_ones(dim, dtype):
    x, parts, alpha = draw(3, 2 * dim, dtype=dtype)[:, :dim], draw(2, 3, dim), draw(dim)
    total, normed = add_norm(x.to(DEVICE), parts.to(DEVICE), alpha.to(DEVICE), RMS_EPS)
    want = (x.float() + parts.sum(0).to(dtype).float()).to(dtype)
    close(total, want, ulps=2)
    close(normed, F.rms_norm(want.float(), (dim,), alpha, RMS_EPS), ulps=4)
    _, only = add_norm(x.to(DEVICE), None, alpha.to(DEVICE), RMS_EPS)
    close(only, F.rms_norm(x.float(), (dim,), alpha, RMS_EPS), ulps=4)


def test_the_sum_of_embeddings_is_taken_in_the_references_order():
    table = draw(40, 36).to(DEVICE)
    offsets = torch.tensor([20, 1, 6, 11], device=DEVICE)
    tokens = torch.tensor([[3, 0, -1, 4], [7, 4, 2, -1]], device=DEVICE)
    rows = table[torch.where(tokens < 0, 0, tokens + offsets)] * (tokens >= 0)[..., None]
    table[0] = 0
    got = embed(tokens, offsets, table)
    want = rows[:, 1] + rows[:, 2] + rows[:, 3] + rows[:, 0]
    assert torch.equal(got, want)


def twin_rings(slots: int, heads: int, width: int, capacity: int, dtype: torch.dtype):
    """The same empty rings on a CPU and on the device of the kernels."""
    return [
        Rings(1, slots, heads, Rotation(width, 10_000, d), capacity, dtype) for d in (CPU, DEVICE)
    ]


@pytest.mark.parametrize(
    ("heads", "width", "capacity", "columns", "ring", "dtype"),
    [
        (2, 16, 19, 1, F32, F32),
        (2, 16, 19, 1, BF16, BF16),
        (2, 16, 19, 1, INT8, F32),
        (2, 16, 19, 1, INT8, BF16),
        (3, 10, 33, 2, F32, F32),  # the codec pushes two
        (3, 10, 19, 2, BF16, BF16),
        (3, 10, 19, 2, INT8, F32),
        (3, 10, 19, 2, INT8, BF16),
    ],
)
def test_decode_attention_is_the_plain_one_through_a_ring_wrap(
    heads, width, capacity, columns, ring, dtype
):
    slots, steps = 4, 2 * capacity + 3
    plain, fast = twin_rings(slots, heads, width, capacity, ring)
    generator = torch.Generator().manual_seed(capacity)
    for step in range(steps):
        some = [s for s in range(slots) if torch.rand(1, generator=generator) < 0.7]
        qkv = draw(slots, columns, 3, heads, width, dtype=dtype)
        if step in (0, capacity - 1, capacity + 1, steps - 1):
            check_one_push(plain, fast, some, qkv)
        else:
            push_only(plain, fast, some, qkv)


def push_only(plain: Rings, fast: Rings, some: list[int], qkv: torch.Tensor) -> None:
    """Grow both rings by the plain code, so that lengths differ between the slots."""
    slots, columns = qkv.shape[:2]
    active = Active.of(some, slots, CPU)
    Step(plain, active, columns).attend(0, qkv)
    plain.advance(active, columns)
    for s in range(slots):
        fast.set_position(s, plain.pushed[s])
    make_equal(fast, plain)


def make_equal(fast: Rings, plain: Rings) -> None:
    fast.kv.copy_(plain.kv)
    if fast.scale is not None:
        fast.scale.copy_(plain.scale)


def check_one_push(plain: Rings, fast: Rings, some: list[int], qkv: torch.Tensor) -> None:
    """Same answer, same ring, idle slots untouched, every element written."""
    (slots, columns), before = qkv.shape[:2], fast.kv.clone()
    want = Step(plain, Active.of(some, slots, CPU), columns).attend(0, qkv.clone())
    push = Decode(fast, Active.of(some, slots, DEVICE), columns, split=16, block=4)
    push.part.fill_(float("nan"))
    push.stat.fill_(float("nan"))
    got = push.attend(0, qkv.to(DEVICE))
    idle = [s for s in range(slots) if s not in some]
    if some:
        close(got[some], want[some], ulps=20 if qkv.dtype == torch.float32 else 4)
        check_ring(plain, fast, some, qkv.dtype)
    assert not got[idle].any()
    assert torch.equal(fast.kv[:, :, idle], before[:, :, idle])
    for rings, device in ((plain, CPU), (fast, DEVICE)):
        rings.advance(Active.of(some, slots, device), columns)
    make_equal(fast, plain)


def check_ring(plain: Rings, fast: Rings, some: list[int], dtype: torch.dtype) -> None:
    """The same numbers within a step of the last place; as int8 within one of its own.

    Of bf16 keys within two: interpreted, they are cut where they would be rounded.
    """
    got, want = (numbers(rings)[:, :, some, :, : plain.capacity] for rings in (fast, plain))
    step = 1e-5 if dtype == torch.float32 else 2**-7 * want.abs() + 1e-6
    if plain.scale is not None:
        scale = plain.scale[:, :, some, :, : plain.capacity, None].float()
        step = (1.01 if dtype == torch.float32 else 2.01) * scale
    assert ((got - want).abs() <= step).all()


def numbers(rings: Rings) -> torch.Tensor:
    """Keys and values [L, 2, S, H, columns, D] as float32."""
    kv = rings.kv.float()
    return (kv if rings.scale is None else kv * rings.scale.float()[..., None]).cpu()


def test_a_slot_is_heard_the_same_alone_and_among_others():
    _, rings = twin_rings(4, 2, 16, 19, torch.float32)
    rings.kv.copy_(draw(*rings.kv.shape))
    for slot, pushed in enumerate((0, 7, 18, 40)):
        rings.set_position(slot, pushed)
    qkv = draw(4, 1, 3, 2, 16).to(DEVICE)
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
    close(got, attend_few(qkv[:, 0].float(), *seen.float()).flatten(1))
    assert torch.equal(fast[:, :, :, : step + 1].cpu(), seen)


@pytest.mark.parametrize(("card", "dtype"), [(30, F32), (64, F32), (100, F32), (100, BF16)])
def test_a_picked_token_is_that_of_the_plain_race(card, dtype):
    slots = 6
    logits, noise = draw(slots, card) * 3, torch.rand(slots, card) + 0.05
    if dtype == BF16:  # none of them equal, as the plain race keeps any of equals
        logits = torch.stack([torch.randperm(card) / 8 for _ in range(slots)])
    logits[5, 3] = logits[5, 9] = 50.0  # greedy takes the first of equals
    width = torch.tensor([1, 5, card, 25, 0, 0])
    temperature = torch.tensor([0.7, 0.8, 1.3, 0.1, 1.0, 1.0])
    told = torch.full((slots, 2), -1)[:, 0]
    told[3] = 11
    given = logits.to(dtype), noise, temperature, width, told
    got = pick(*(t.to(DEVICE) for t in given)).tolist()
    want = [
        race(logits[i : i + 1], temperature[i : i + 1], int(w), noise[i : i + 1]).item()
        for i, w in enumerate(width[:4])
    ]
    want[3] = 11
    assert got == [*want, logits[4].argmax().item(), 3]


@pytest.mark.parametrize("card", [13, 70, 1000])
@pytest.mark.parametrize("coarse", [False, True])
def test_a_picked_text_token_is_that_of_the_plain_race(card, coarse):
    slots, most = 6, 64
    logits, noise = draw(slots, card) * 3, torch.rand(slots, card) + 0.05
    if coarse:  # as bf16 logits are: many are equal
        logits = torch.round(logits * 2) / 2 + torch.arange(card) * 2e-6
    width = torch.tensor([1, 5, 25, most, 0, 0]).clamp(max=card)
    temperature = torch.tensor([0.7, 0.8, 1.3, 0.1, 1.0, 1.0])
    bias = torch.tensor([0.0, 2.0, -4.0, 0.5, 4.0, 0.0])
    logits[5, 7] = logits[5, 11] = 50.0  # greedy takes the first of equals
    got = pick_text(*(t.to(DEVICE) for t in (logits, noise, temperature, width, bias)), most)
    logits[:, PAD] += bias
    want = [
        race(logits[i : i + 1], temperature[i : i + 1], int(w), noise[i : i + 1]).item()
        for i, w in enumerate(width[:4])
    ]
    assert got.tolist() == [*want, logits[4].argmax().item(), 7]


def test_of_equal_text_logits_the_first_are_kept():
    logits, noise = torch.zeros(2, 50), torch.ones(2, 50)
    noise[:, 3] = 0.5  # the fourth in rank wins
    width, one = torch.tensor([8, 3]), torch.ones(2)
    given = (t.to(DEVICE) for t in (logits, noise, one, width, torch.zeros(2)))
    assert pick_text(*given, 16).tolist() == [3, 0]
