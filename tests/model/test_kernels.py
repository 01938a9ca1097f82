"""Products, norm and embedding in Triton against plain PyTorch: interpreted, compiled on a GPU."""

import pytest
import torch
import torch.nn.functional as F

from engine.model.gpu.kernels import add_norm, embed, matmul
from engine.model.transformer import RMS_EPS, quantise_weight
from tests.model.checking import DEVICE, ROUNDED, TYPES, close, draw, poisoned

PRODUCTS = [
    (1, 64, 128),
    (5, 70, 33),
    (16, 96, 300),
    (21, 33, 64),
    (2, 64, 384),  # three whole blocks for two programs
]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poisoned(monkeypatch)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("m", "n", "k"), PRODUCTS)
def test_a_product_is_the_plain_one(m, n, k, dtype):
    x, weight = draw(m, k, dtype=dtype), draw(n, k, dtype=dtype)
    want = x.float() @ weight.float().T
    close(matmul(x.to(DEVICE), weight.to(DEVICE)), want, ROUNDED)
    parts = matmul(x.to(DEVICE), weight.to(DEVICE), partial=True)
    close(parts.sum(0), want, ulps=3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(3, 48, 96), (16, 130, 257)])
def test_an_int8_product_is_that_of_the_dequantised_weight(m, n, k, dtype):
    x, (weight, scale) = draw(m, k, dtype=dtype), quantise_weight(draw(n, k))
    want = x.float() @ (weight.float() * scale[:, None]).T
    got = matmul(x.to(DEVICE), weight.to(DEVICE), scale.to(DEVICE))
    assert got.dtype == dtype
    close(got, want, ROUNDED)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("int8", [False, True])
def test_the_gated_product_is_silu_of_the_gate_times_the_rest(int8, dtype):
    x, weight = draw(5, 80, dtype=dtype), draw(2 * 72, 80, dtype=dtype)
    scale = None
    exact = weight.float()
    if int8:
        weight, scale = quantise_weight(weight)
        exact = weight.float() * scale[:, None]
        scale = scale.to(DEVICE)
    gate, up = F.linear(x.float(), exact).chunk(2, -1)
    got = matmul(x.to(DEVICE), weight.to(DEVICE), scale, gated=True)
    close(got, F.silu(gate) * up, ulps=1.5)  # rounded four times


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("k", [128, 300, 1024])
@pytest.mark.parametrize("how", [{}, {"gated": True}, {"partial": True}], ids=str)
@pytest.mark.parametrize("int8", [False, True])
def test_a_row_of_a_product_depends_on_no_other_row(int8, how, k, dtype):
    x, weight, scale = draw(16, k, dtype=dtype).to(DEVICE), draw(128, k, dtype=dtype) / k, None
    if int8:
        weight, scale = (t.to(DEVICE) for t in quantise_weight(weight))
    weight = weight.to(DEVICE)
    whole = matmul(x, weight, scale, **how)
    one = matmul(x[3:4].contiguous(), weight, scale, **how)
    assert torch.equal(one, whole[..., 3:4, :])
    assert torch.equal(matmul(x[:9].contiguous(), weight, scale, **how), whole[..., :9, :])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [37, 128])
def test_residual_and_norm_are_the_plain_ones(dim, dtype):
    x, parts, alpha = draw(3, 2 * dim, dtype=dtype)[:, :dim], draw(2, 3, dim), draw(dim)
    total, normed = add_norm(x.to(DEVICE), parts.to(DEVICE), alpha.to(DEVICE), RMS_EPS)
    want = (x.float() + parts.sum(0).to(dtype).float()).to(dtype)
    assert torch.equal(total.cpu(), want)
    close(normed, F.rms_norm(want.float(), (dim,), alpha, RMS_EPS), ROUNDED)
    _, only = add_norm(x.to(DEVICE), None, alpha.to(DEVICE), RMS_EPS)
    close(only, F.rms_norm(x.float(), (dim,), alpha, RMS_EPS), ROUNDED)


def test_the_sum_of_embeddings_is_taken_in_the_references_order():
    table = draw(40, 36).to(DEVICE)
    offsets = torch.tensor([20, 1, 6, 11], device=DEVICE)
    tokens = torch.tensor([[3, 0, -1, 4], [7, 4, 2, -1]], device=DEVICE)
    rows = table[torch.where(tokens < 0, 0, tokens + offsets)] * (tokens >= 0)[..., None]
    table[0] = 0
    got = embed(tokens, offsets, table)
    want = rows[:, 1] + rows[:, 2] + rows[:, 3] + rows[:, 0]
    assert torch.equal(got, want)
