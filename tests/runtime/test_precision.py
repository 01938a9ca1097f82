"""int8 weights while loading, and the verdict that `auto` obeys."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.bench.drift import compare
from engine.config import ServerConfig
from engine.model.gpu.graphs import Ticks
from engine.model.stt import Hearing
from engine.model.transformer import Active, Linear, quantise_weight, w8a16
from engine.runtime.personaplex import PersonaPlexBackend
from engine.runtime.starting import load_personaplex
from engine.weights.loading import load_checkpoint, load_recogniser
from tests.model.listening import STT_TINY, golden_columns, listen
from tests.runtime.conftest import TINY, make_thin
from tests.runtime.playing import MINE, Guest, audio, enter, play, tick


def test_an_int8_product_is_the_dequantised_one_on_a_cpu():
    x, (weight, scale) = torch.randn(3, 2, 40), quantise_weight(torch.randn(24, 40))
    want = x @ (weight.float() * scale[:, None]).T
    torch.testing.assert_close(w8a16(x, weight, scale), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 33), (17, 33), (2, 3, 33)])
def test_an_int8_product_rounds_once_in_any_shape_and_type(shape, dtype):
    x, (weight, scale) = (
        torch.randn(*shape).to(dtype),
        quantise_weight(torch.randn(29, 33).to(dtype)),
    )
    want = x.double() @ (weight.double() * scale.double()[:, None]).T
    got = w8a16(x, weight, scale)
    assert (got.dtype, got.shape) == (dtype, want.shape)
    torch.testing.assert_close(got, want.to(dtype), atol=1e-5, rtol=2 * torch.finfo(dtype).eps)


def test_a_row_of_an_int8_product_depends_on_no_other_row():
    x, (weight, scale) = torch.randn(16, 40), quantise_weight(torch.randn(24, 40))
    whole = w8a16(x, weight, scale)
    assert all(torch.equal(w8a16(x[i : i + 1], weight, scale)[0], whole[i]) for i in range(16))


def test_loading_in_int8_leaves_no_plain_product_behind(copy):
    lm = load_checkpoint(str(copy), int8=True).lm
    products = [m for m in lm.modules() if isinstance(m, Linear)]
    assert all(p.weight.dtype == torch.int8 and p.packed is None for p in products)
    assert lm.embedding.table.dtype == torch.float32


def test_an_int8_weight_is_off_by_half_a_step_at_most():
    weight = torch.randn(24, 40)
    weight[3] = 0
    steps, scale = quantise_weight(weight)
    assert ((steps * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()
    assert not steps[3].any()
    assert steps.abs().amax(1)[weight.any(1)].eq(127).all()


@pytest.fixture
def int8_backend(tmp_path) -> PersonaPlexBackend:
    """Weights, keys and values in int8, by the way that a server loads them."""
    threads = torch.get_num_threads()
    yield load_personaplex(
        ServerConfig(
            model=str(make_thin(tmp_path)), device="cpu", slots=3, weights="int8", kv="int8"
        )
    )
    torch.set_num_threads(threads)


def test_in_int8_neighbours_and_idle_ticks_change_no_bit(int8_backend):
    assert int8_backend.loop.rings.kv.dtype == torch.int8
    assert any(p.dtype == torch.int8 for p in int8_backend.checkpoint.lm.parameters())
    alone, crowd = play(int8_backend, 0), (Guest(0, leaves=15), Guest(2, joins=4, every=2))
    assert play(int8_backend, 1) == alone
    assert play(int8_backend, 1, guests=crowd) == alone
    assert play(int8_backend, 1, guests=crowd[:1], idle=1) == alone


def test_in_int8_a_prompt_goes_in_by_pieces_that_the_ticks_kernel_takes(int8_backend):
    opening, seen = replace(MINE, text_ids=tuple(range(4, 130))), [0]
    for _ in int8_backend.open(1, opening):
        seen.append(int8_backend.loop.rings.pushed[1])
    pieces = np.diff(seen)
    assert pieces[:-1].tolist() == [64] * (len(pieces) - 1)
    assert 0 < pieces[-1] <= 64
    assert seen[-1] > 128


def test_in_int8_not_a_bit_of_an_inactive_slot_changes(int8_backend):
    for slot in range(3):
        enter(int8_backend, slot, MINE)
    pcm = np.repeat(audio(2)[:1], 3, 0)
    tick(int8_backend, pcm, range(3))
    before = [tensor.clone() for tensor in int8_backend.loop.state(1)]
    for _ in range(6):
        tick(int8_backend, pcm, [0, 2])
    for old, new in zip(before, int8_backend.loop.state(1), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("kv", [None, torch.int8])
def test_int8_stays_within_twice_the_references_own_bf16_distance(copy, kv):
    lm = load_checkpoint(str(copy), int8=True).lm
    want = load_file(TINY / "expected" / "lm_teacher_forced.safetensors")
    rings, active = lm.rings(1, kv), Active.of([0], 1, torch.device("cpu"))
    steps = [lm.step(lm.embed(c[None]), rings, active) for c in want["tokens"].long().T]
    allowed = 2 * (want["hidden_bf16"] - want["hidden"]).abs().max()
    assert (torch.cat(steps) - want["hidden"]).abs().max() <= allowed


def test_the_recogniser_in_int8_hears_the_same_alone_and_among_others(tiny, tmp_path):
    ignored = shutil.ignore_patterns("expected", "*.int8.safetensors")
    folder = shutil.copytree(STT_TINY, tmp_path / "stt", ignore=ignored)
    cpu = torch.device("cpu")
    stt = load_recogniser(str(folder), tiny.mimi, device=cpu, int8=True).stt
    columns = golden_columns()[:30]
    alone = listen(Hearing(stt, 1), columns)
    among = listen(Hearing(stt, 3), columns, 1, others=(0,))
    assert all(torch.equal(a, b) for a, b in zip(alone, among, strict=True))


def test_drift_passes_what_is_the_same_and_refuses_what_is_not():
    plain = torch.randn(50, 30)
    assert compare("same", plain, plain.clone())["good"]
    assert not compare("other", plain, torch.randn(50, 30))["good"]


def test_starting_times_every_bucket_and_leaves_the_slots_as_new(thin):
    backend = PersonaPlexBackend(thin, slots=3)
    backend.runner = Ticks(backend.loop, graphs=False, every=True)
    backend.measure()
    assert set(backend.ticks.seconds) == {1, 2, 3}
    assert backend.ticks.tick(3) > 0
    assert backend.loop.rings.pushed == [0, 0, 0]
    assert not backend.loop.rings.kv[:, :, :, :, : backend.loop.rings.capacity].any()
