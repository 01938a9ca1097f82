"""int8 weights while loading, and the verdict that `auto` obeys."""

import torch

from engine.bench.drift import compare
from engine.dialogue.voices import Voices
from engine.model.graphs import Ticks
from engine.model.int8 import quantise, w8a16
from engine.model.linear import Linear
from engine.runtime.loader import load_checkpoint
from engine.runtime.personaplex import PersonaPlexBackend


def test_an_int8_product_is_the_dequantised_one_on_a_cpu():
    x, (weight, scale) = torch.randn(3, 2, 40), quantise(torch.randn(24, 40))
    want = x @ (weight.float() * scale[:, None]).T
    torch.testing.assert_close(w8a16(x, weight, scale), want, atol=1e-5, rtol=1e-5)


def test_a_row_of_an_int8_product_depends_on_no_other_row():
    x, (weight, scale) = torch.randn(16, 40), quantise(torch.randn(24, 40))
    whole = w8a16(x, weight, scale)
    assert all(torch.equal(w8a16(x[i : i + 1], weight, scale)[0], whole[i]) for i in range(16))


def test_loading_in_int8_leaves_no_plain_product_behind(copy):
    lm = load_checkpoint(str(copy), Voices, int8=True).lm
    products = [m for m in lm.modules() if isinstance(m, Linear)]
    assert all(p.weight.dtype == torch.int8 and p.packed is None for p in products)
    assert lm.embedding.table.dtype == torch.float32


def test_drift_passes_what_is_the_same_and_refuses_what_is_not():
    plain = torch.randn(50, 30)
    assert compare("same", plain, plain.clone())["good"]
    assert not compare("other", plain, torch.randn(50, 30))["good"]


def test_starting_times_every_bucket_and_leaves_the_slots_as_new(tiny):
    backend = PersonaPlexBackend(tiny, slots=3)
    backend.runner = Ticks(backend.loop, graphs=False, every=True)
    backend.measure()
    assert set(backend.ticks.seconds) == {1, 2, 3}
    assert backend.ticks.tick(3) > 0
    assert backend.loop.rings.pushed == [0, 0, 0]
    assert not backend.loop.rings.kv[:, :, :, :, : backend.loop.rings.capacity].any()
