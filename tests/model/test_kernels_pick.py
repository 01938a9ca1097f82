"""The kernels that pick a token against the plain race, and logits that are no numbers."""

import pytest
import torch

from engine.config import PAD
from engine.model.gpu.kernels import pick, pick_text
from engine.model.sampling import race
from tests.model.checking import BF16, DEVICE, F32, draw, poisoned


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poisoned(monkeypatch)


WIDE = 7  # columns of noise beyond a slot's: it is a part of a wider tensor


def beside(noise: torch.Tensor) -> torch.Tensor:
    """The same noise as the sampler gives it: a part of its own, wider rows."""
    slots, card = noise.shape
    return torch.cat([torch.full((slots, WIDE), 1e-6), noise, noise.flip(1)], 1)[:, WIDE:][:, :card]


@pytest.mark.parametrize(
    ("card", "dtype"), [(30, F32), (64, F32), (100, F32), (100, BF16), (300, F32)]
)
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
    given = logits.to(dtype), beside(noise), temperature, width, told
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
    given = logits, beside(noise), temperature, width, bias
    got = pick_text(*(t.to(DEVICE) for t in given), most)
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


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")  # numpy's, interpreting
def test_a_sort_and_counting_pick_the_same_of_ties_and_of_what_is_no_number():
    width = torch.tensor([1, 25, 64, 25, 64, 64, 2, 25])
    slots, card, wide = len(width), 64, 300  # ranked by counting, and by a sort
    logits = torch.round(draw(slots, wide) * 2) / 2  # many are equal
    logits[:, card:] = float("-inf")
    logits[3, :card] = logits[4, 5:9] = NO_NUMBERS["nan"]
    logits[5, :card], logits[6, 7] = 1.0, NO_NUMBERS["inf"]
    noise = torch.rand(slots, wide) + 0.05
    noise[7] = 1.0  # of equal chances the first in rank wins
    rest = torch.ones(slots), width, torch.full((slots,), -1)
    given = [tensor.to(DEVICE) for tensor in (noise, *rest)]
    sorted_, counted = (pick(logits[:, :n].to(DEVICE), *given) for n in (wide, card))
    assert torch.equal(sorted_, counted)


NO_NUMBERS = {  # what a slot's logits may be after a fault
    "nan": torch.tensor(0x7FC00000, dtype=torch.int32).view(torch.float32),
    "negative nan": torch.tensor(-0x400000, dtype=torch.int32).view(torch.float32),
    "lowest nan": torch.tensor(-1, dtype=torch.int32).view(torch.float32),
    "-inf": torch.tensor(float("-inf")),
    "inf": torch.tensor(float("inf")),
}


@pytest.mark.parametrize("some", [slice(None), slice(1, None, 3)], ids=["all", "some"])
@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, in the interpreter
def test_of_logits_that_are_no_numbers_a_token_of_the_vocabulary_is_picked(some):
    slots, card, k = len(NO_NUMBERS) + 2, 77, 25
    logits, noise, one = draw(slots, card), torch.rand(slots, card) + 0.05, torch.ones(slots)
    sound, width = [0, -1], torch.full((slots,), k)
    want = race(logits[sound], one[sound], k, noise[sound])
    for slot, ill in enumerate(NO_NUMBERS, start=1):
        logits[slot, some] = NO_NUMBERS[ill]
    given = [t.to(DEVICE) for t in (logits, noise, one, width)]
    for got in (
        pick(*given, torch.full((slots,), -1, device=DEVICE)),
        pick_text(*given, torch.zeros(slots, device=DEVICE), 64),
    ):
        assert ((got >= 0) & (got < card)).all(), got
        assert torch.equal(got[sound].cpu(), want)
