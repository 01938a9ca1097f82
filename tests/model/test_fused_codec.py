"""The codec's kernels against its plain modules: interpreted, or compiled where there is a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.config import QuantizerConfig, TransformerConfig
from engine.model.gpu import fused
from engine.model.gpu.kernels_codec import Filter, Moment, convolve
from engine.model.mimi import Conv, ConvTranspose, Mimi
from engine.model.transformer import Active
from tests.model.checking import poisoned
from tests.model.making import ODD, MimiConfig

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SLOTS, TOLERANCE = 3, 2e-5
COLUMNS = 2  # that the rings count for a frame


@pytest.fixture(autouse=True)
def _exact():
    """The plain modules in float32 throughout, on a GPU too."""
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def drawn(module: nn.Module) -> nn.Module:
    """Fresh random weights on the device."""
    for parameter in module.parameters():
        parameter.requires_grad_(False).normal_(0, 0.3)
    return module.to(DEVICE)


def close(got: Tensor, want: Tensor) -> None:
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, want, atol=TOLERANCE * max(1, want.abs().max()), rtol=0)


def moment(position: Tensor, active: Active) -> Moment:
    return Moment(position, COLUMNS, active.mask)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Conv(3, 5, 7),
        lambda: Conv(5, 4, 1),
        lambda: Conv(4, 6, 8, 4),
        lambda: Conv(18, 3, 16, 8),
        lambda: Conv(6, 6, 4, 2, replicate=True),
        lambda: ConvTranspose(6, 5, 3),
        lambda: ConvTranspose(20, 4, 8),
    ],
)
@pytest.mark.parametrize("columns", [8, 72])
@pytest.mark.parametrize("elu", [False, True])
def test_a_convolution_is_the_plain_one_frame_after_frame(make, columns, elu, monkeypatch):
    module = drawn(make())
    by = (fused._conv if isinstance(module, Conv) else fused._transposed)(module)
    past = torch.zeros(2, SLOTS, by.inputs, by.past, device=DEVICE)
    tails, position = {module: module.tail(SLOTS)}, torch.zeros(SLOTS, dtype=int, device=DEVICE)
    for frame, slots in enumerate(([0, 1, 2], [1], [0, 2], [0, 1, 2])):
        active = Active.of(slots, SLOTS, DEVICE)
        x = torch.randn(SLOTS, by.inputs, columns, device=DEVICE)
        before = past.clone()
        first = position == 0
        want = module(F.elu(x) if elu else x, tails, active, first)
        with monkeypatch.context() as patched:
            poisoned(patched)
            got = convolve(x, by, moment(position, active), past, elu=elu, rows=frame % 2 == 1)
        close(got[slots], want[slots])
        idle = [slot for slot in range(SLOTS) if slot not in slots]
        assert torch.equal(past[:, idle], before[:, idle])
        position += active.mask * COLUMNS


@pytest.mark.parametrize("columns", [1, 2, 70])
@pytest.mark.parametrize("inputs", [21, 700])  # the second is split over programs
def test_a_product_may_have_gelu_scale_and_residual(columns, inputs):
    weight = torch.randn(37, inputs, device=DEVICE) / inputs**0.5
    by = Filter(weight)
    x, scale = torch.randn(SLOTS, inputs, columns, device=DEVICE), torch.randn(37, device=DEVICE)
    residual = torch.randn(SLOTS, columns, 37, device=DEVICE).transpose(1, 2)
    now = moment(torch.zeros(SLOTS, dtype=int, device=DEVICE), Active.of([], SLOTS, DEVICE))
    got = convolve(x, by, now, gelu=True, scale=scale, residual=residual, rows=True)
    inner = F.gelu(x.transpose(1, 2) @ by.weight.T) * scale
    close(got, residual + inner.transpose(1, 2))


def test_a_slot_gives_the_same_bits_alone_and_among_others():
    by = Filter(torch.randn(40, 64, device=DEVICE))
    x = torch.randn(16, 64, 2, device=DEVICE)
    now = moment(torch.zeros(16, dtype=int, device=DEVICE), Active.of([], 16, DEVICE))
    among = convolve(x, by, now)
    for few in (1, 2, 9):
        assert torch.equal(convolve(x[:few], by, now), among[:few])


def codec() -> Mimi:
    """A small codec of random weights."""
    config = MimiConfig(
        dimension=24, n_filters=2,
        transformer=TransformerConfig(24, 3, 2, 50, context=5),
        quantizer=QuantizerConfig(10, 9, 70),
    )  # fmt: skip
    assert config.ratios == ODD.mimi.ratios
    mimi = drawn(Mimi(config))
    for name, parameter in mimi.named_parameters():
        if name.endswith("cluster_usage"):
            parameter.fill_(1)
    mimi.prepare()
    for book in (m for m in mimi.modules() if getattr(m, "match", None) is not None):
        book.match.weight, book.match.packed = nn.Parameter(book.entries), None
    return mimi


def test_the_fused_codec_is_the_plain_one_past_a_ring_wrap_and_idle_slots_do_not_move():
    mimi = codec()
    plain = mimi.encoder_stream(2), mimi.decoder_stream(2)
    mimi.filters = fused.filters(mimi)
    mimi.fused = fused
    streams = mimi.encoder_stream(2), mimi.decoder_stream(2)
    for slots in ([0, 1], [1], [0, 1]):
        active = Active.of(slots, 2, DEVICE)
        pcm = torch.randn(2, 1920, device=DEVICE)
        idle = [t.clone() for stream in streams for t in stream.state(0)]
        codes = fused.encode(mimi, pcm, streams[0], active, 9)
        said = fused.decode(mimi, codes, streams[1], active)
        mimi.fused = None
        want = mimi.encode(pcm, plain[0], active, 9)
        heard = mimi.decode(codes, plain[1], active)
        mimi.fused = fused
        assert torch.equal(codes[slots], want[slots])
        close(said[slots], heard[slots])
        if 0 not in slots:
            assert all(map(torch.equal, idle, [t for stream in streams for t in stream.state(0)]))
    streams[0].clear(1)
    assert not any(t.any() for t in streams[0].state(1))
