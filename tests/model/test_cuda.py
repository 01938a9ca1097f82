"""The CUDA C++ kernels: what a compiler says of them anywhere, what they compute on a GPU."""

import io
import re

import pytest
import torch

from engine.model.config import ModelConfig
from engine.model.gpu import cuda
from engine.model.gpu.cuda import CACHE_VARIABLE, compile_source
from engine.model.gpu.depth import MOST_SLOTS, SHARED_BYTES, WholeDepth
from engine.model.gpu.kernels_attention import Decode
from engine.model.lm import Depformer
from engine.model.sampling import Sampler
from engine.model.transformer import Active, Linear, RingPush, Rings, Rotation

KERNELS = {"attention": ["attend_int8"], "depth": ["depth_bf16", "depth_int8"]}
# A100, A10G, H100. The depformer needs more multiprocessors than the first two have, and compiling
# it takes 14 s.
COMPILED = [
    ("attention", "sm_80"),
    ("attention", "sm_86"),
    ("attention", "sm_90"),
    ("depth", "sm_90"),
]
MOST_REGISTERS = 128
SPILLED = {"attend_int8": 0, "depth_int8": 128, "depth_bf16": 256}  # bytes a thread may store
STATIC_SHARED = 48 << 10  # bytes that a kernel may name itself
CPU, GPU = torch.device("cpu"), torch.device("cuda")
BF16, INT8 = torch.bfloat16, torch.int8

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(("source", "architecture"), COMPILED)
def test_every_source_compiles_for_a_gpu_and_fits_its_registers(source, architecture):
    log = io.StringIO()
    code = compile_source(source, architecture, log)
    assert len(code.code) > 1000
    said = log.getvalue()
    for name in KERNELS[source]:
        of_this = said.split(f"function '{name}'")[1].split("Compiling entry")[0]
        stored = int(re.search(r"(\d+) bytes spill stores", of_this)[1])
        registers = int(re.search(r"Used (\d+) registers", of_this)[1])
        shared = re.search(r"(\d+) bytes smem", of_this)
        assert registers <= MOST_REGISTERS
        assert stored <= SPILLED[name]
        assert int(shared[1] if shared else 0) <= STATIC_SHARED
    assert SHARED_BYTES <= 99 << 10  # what a block may have on sm_86


@pytest.fixture
def _one_kernel(monkeypatch, tmp_path_factory):
    """A source that is compiled at once."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "one.cu").write_text('extern "C" __global__ void one(int* out) { *out = 1; }')
    monkeypatch.setattr(cuda, "FOLDER", folder)


@pytest.mark.usefixtures("_one_kernel")
def test_what_was_compiled_once_is_read_again(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    first = compile_source("one", "sm_86")
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert kept
    assert bytes(compile_source("one", "sm_86").code) == bytes(first.code)
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert again == kept


@pytest.mark.usefixtures("_one_kernel")
def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(monkeypatch, tmp_path, caplog):
    (tmp_path / "taken").write_text("no folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "taken" / "kernels"))
    assert len(compile_source("one", "sm_86").code) > 1000
    assert "compiled kernels cannot be kept in" in caplog.text


# -- on a GPU --------------------------------------------------------------------------------------


def int8_rings(slots: int, capacity: int) -> tuple[Rings, Rings]:
    """The same random rings of the public model's width on the CPU and on the GPU."""
    plain, fast = (Rings(1, slots, 4, Rotation(128, 10_000, d), capacity, INT8) for d in (CPU, GPU))
    plain.kv.copy_(torch.randint(-127, 128, plain.kv.shape))
    plain.scale.copy_(torch.rand(plain.scale.shape) / 50 + 0.01)
    return plain, fast


@needs_gpu
@pytest.mark.parametrize(
    "pushes",
    [(0, 1, 255, 256, 257), (2998, 2999, 3000, 6000, 2900), (511, 512, 767, 2047, 2048)],
)
@pytest.mark.parametrize("some", [[0, 1, 2, 3, 4], [1, 3]])
def test_attention_over_int8_rings_is_the_plain_one(pushes, some):
    slots, capacity = len(pushes), 2999
    plain, fast = int8_rings(slots, capacity)
    for slot, pushed in enumerate(pushes):
        plain.set_position(slot, pushed)
        fast.set_position(slot, pushed)
    fast.kv.copy_(plain.kv)
    fast.scale.copy_(plain.scale)
    before = fast.kv.clone(), fast.scale.clone()
    qkv = torch.randn(slots, 1, 3, 4, 128).to(BF16)
    push = Decode(fast, Active.of(some, slots, GPU))
    assert push.by_cuda
    push.part.fill_(float("nan"))
    push.stat.fill_(float("nan"))
    got = push.attend(0, qkv.to(GPU)).cpu()
    want = RingPush(plain, Active.of(some, slots, CPU)).attend(0, qkv.clone())
    error = (got[some].float() - want[some].float()).norm() / want[some].float().norm()
    assert error < 0.01  # both are rounded to bf16
    idle = [slot for slot in range(slots) if slot not in some]
    assert not got[idle].any()
    assert not push.arrived.any()
    for now, was in zip((fast.kv, fast.scale), before, strict=True):
        assert torch.equal(now[:, :, idle], was[:, :, idle])
    for slot in some:  # the new column, and no other
        column = pushes[slot] % capacity
        others = torch.arange(fast.kv.shape[-2]) != column
        assert torch.equal(
            fast.kv[0, :, slot].cpu()[:, :, others], before[0][0, :, slot].cpu()[:, :, others]
        )
        mine, theirs = (
            r.kv[0, :, slot, :, column].cpu().float() * r.scale[0, :, slot, :, column, None].cpu()
            for r in (fast, plain)
        )
        step = plain.scale[0, :, slot, :, column].float().max()
        assert (mine - theirs).abs().max() <= 1.01 * step
    alone = Decode(fast, Active.of(some[:1], slots, GPU)).attend(0, qkv.to(GPU)).cpu()
    assert torch.equal(alone[some[0]], got[some[0]])


def make_depformer(int8: bool) -> Depformer:
    """Generated weights of the public size, with norms that are not one."""
    torch.manual_seed(3)
    with GPU:
        depformer = Depformer(ModelConfig().lm).requires_grad_(False)
    for weight in depformer.parameters():
        if weight.dim() == 1:
            weight.uniform_(0.5, 1.5)
        else:
            weight.normal_().mul_(weight.shape[-1] ** -0.5)
    for table in (depformer.text_emb, *depformer.emb):
        table.weight.normal_()
    depformer.to(BF16)
    for module in depformer.modules():
        if int8 and isinstance(module, Linear):
            module.quantise()
    return depformer


@needs_gpu
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 3, 8, 9, MOST_SLOTS])
@torch.inference_mode()
def test_the_depformer_in_one_launch_is_that_of_many(int8, slots):
    from engine.model.gpu import fused

    config, depformer = ModelConfig().lm, make_depformer(int8)
    whole = WholeDepth(depformer)
    hidden = torch.randn(slots, config.dim, device=GPU).to(BF16)
    text = torch.randint(0, config.text_card, (slots,), device=GPU)
    given = torch.full((slots, 8), -1, device=GPU)
    given[1:2, 3], given[2:3] = 77, 5
    sampler = Sampler(slots, config, GPU)
    sampler.noise.exponential_()
    for slot in range(slots):
        sampler.audio.set(slot, 0.5 + slot / 20, (250, 0, 7, 2048)[slot % 4])
    codes = whole.run(hidden, text, sampler, given)
    assert torch.equal(whole.run(hidden, text, sampler, given), codes)
    assert not whole.arrivals.any()
    agreed, audio, greedy = [], sampler.audio, torch.tensor([0, 1, 0, 0] * 4, device=GPU) > 0

    def decide(step, logits):
        noise = sampler.audio_noise[:, step]
        picked = fused.pick(logits, noise, audio.temperature, audio.width, given[:, step])
        agreed.append(picked == codes[:, step])
        # The greatest must be it, but for two that bf16 may have rounded past each other.
        best = logits.float().max(1).values
        chosen = logits.float().gather(1, codes[:, step, None])[:, 0]
        sure = greedy[:slots] & (given[:, step] < 0)
        assert (chosen >= best - 0.05 * logits.float().std(1))[sure].all()
        return codes[:, step]

    fused.depth(depformer, hidden, text, decide)
    # By rank: two that are rounded past each other exchange their random numbers.
    assert torch.stack(agreed).float().mean() > 0.7
    assert (codes[1:2, 3] == 77).all()
    assert (codes[2:3] == 5).all()


@needs_gpu
@torch.inference_mode()
def test_a_slots_codes_depend_on_no_other_slot():
    config, depformer = ModelConfig().lm, make_depformer(int8=True)
    whole, most = WholeDepth(depformer), MOST_SLOTS
    hidden = torch.randn(most, config.dim, device=GPU).to(BF16)
    text = torch.randint(0, config.text_card, (most,), device=GPU)
    sampler = Sampler(most, config, GPU)
    sampler.noise.exponential_()
    for slot in range(most):
        sampler.audio.set(slot, 0.8, 250)
    given = torch.full((most, 8), -1, device=GPU)
    among = whole.run(hidden, text, sampler, given)
    for slots in (1, 2, 3, 8, 9):
        few = whole.run(hidden[:slots], text[:slots], sampler.narrow(slots), given[:slots])
        assert torch.equal(few, among[:slots])


@needs_gpu
@pytest.mark.parametrize("kind", [BF16, INT8])
@pytest.mark.parametrize(
    ("n", "k", "how"),
    [
        (12288, 4096, {}),
        (4096, 4096, {"partial": True}),
        (22528, 4096, {"gated": True}),
        (4096, 11264, {"partial": True}),
        (32000, 4096, {}),
        (3072, 1024, {}),
        (1024, 1024, {"partial": True}),
        (5632, 1024, {"gated": True}),
        (1024, 2816, {"partial": True}),
        (2048, 1024, {}),
        (8192, 4096, {}),
    ],
)
def test_a_rows_product_depends_on_no_number_of_rows(n, k, how, kind):
    from engine.model.gpu.kernels import matmul

    x = torch.randn(96, k, device=GPU).to(BF16)
    weight, scale = torch.randn(n, k, device=GPU).to(BF16), None
    if kind == INT8:
        weight, scale = (
            torch.randint(-127, 128, (n, k), dtype=INT8, device=GPU),
            torch.rand(n, device=GPU),
        )
    few = matmul(x[:16], weight, scale, **how)
    assert torch.equal(matmul(x[:1], weight, scale, **how)[..., :1, :], few[..., :1, :])
    for rows in (17, 24, 32, 48, 64, 80, 96):
        many = matmul(x[:rows], weight, scale, **how)
        assert torch.equal(many[..., :16, :], few), rows
        assert torch.isfinite(many.float()).all()
