"""What the kernels' tests share: numbers to give, and how close an answer has to be."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
F32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
TYPES = [F32, BF16]
ROUNDED = 0.6  # of a step: what is rounded once, and never merely cut


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Fresh numbers, other ones on every call."""
    return torch.randn(*shape).to(dtype)


def close(got: torch.Tensor, want: torch.Tensor, ulps: float = 1.0) -> None:
    """Within so many steps of the last place of `got`'s type, relative to the largest value."""
    last = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[got.dtype]
    allowed = ulps * last * want.abs().max().float().item()
    assert torch.isfinite(got).all()
    assert (got.float().cpu() - want.float().cpu()).abs().max().item() <= allowed


def poisoned(monkeypatch) -> None:
    """What a kernel forgets to write is no number, or no token."""
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, **k: empty(*a, **k).fill_(_poison(k.get("dtype")))
    )


def _poison(dtype: torch.dtype | None) -> float:
    return float("nan") if dtype is None or dtype.is_floating_point else -7
