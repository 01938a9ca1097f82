"""The codec against the reference's numbers."""

import pytest
import soundfile
import torch

from engine.config import FRAME_SAMPLES
from engine.model.state import Active
from tests.model.conftest import CPU, TINY

ENCODER_TOLERANCE, PCM_TOLERANCE = 1e-4, 1e-5


def only(slot: int, slots: int = 1) -> Active:
    return Active.of([slot], slots, CPU)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """The user's audio [82, 1, 1920]."""
    samples, _ = soundfile.read(TINY / "input_user.wav", dtype="int16")
    pcm = torch.from_numpy(samples) / 32768
    pcm = torch.nn.functional.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES))
    return pcm.view(-1, 1, FRAME_SAMPLES)


@pytest.mark.parametrize("codebooks", [8, 32])
def test_codes_are_the_references(mimi, expected, frames, codebooks):
    stream, active = mimi.encoder_stream(1), only(0)
    codes = torch.cat([mimi.encode(f, stream, active, codebooks) for f in frames])
    assert torch.equal(codes.T.int(), expected("codec")[f"codes{codebooks}_streaming"])


def test_every_stage_of_the_encoder_is_the_references(mimi, expected, frames):
    want, active = expected("codec"), only(0)
    stream = mimi.encoder_stream(1)
    columns = torch.cat([mimi.columns(f, stream, active) for f in frames], 2)
    torch.testing.assert_close(columns[0], want["enc_seanet_out"], atol=ENCODER_TOLERANCE, rtol=0)
    stream = mimi.encoder_stream(1)
    latent = torch.cat([mimi.latent(f, stream, active) for f in frames])
    torch.testing.assert_close(latent.T, want["enc_latent"], atol=ENCODER_TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("codes", "pcm"),
    [
        ("codes8_streaming", "pcm_from_codes8_streaming"),
        ("codes32_streaming", "pcm_from_codes32_streaming_first_frames"),
    ],
)
def test_decoded_audio_is_the_references(mimi, expected, codes, pcm):
    want = expected("codec")
    stream, active = mimi.decoder_stream(1), only(0)
    length = len(want[pcm]) // FRAME_SAMPLES
    columns = want[codes].long().T[:length, None]  # [T, 1, levels]
    got = torch.cat([mimi.decode(c, stream, active)[0] for c in columns])
    torch.testing.assert_close(got, want[pcm], atol=PCM_TOLERANCE, rtol=0)


def test_dequantized_latent_is_the_references(mimi, expected):
    want = expected("codec")
    got = mimi.quantizer.decode(want["codes8_streaming"].long().T)
    torch.testing.assert_close(
        got.T, want["dequantized_latent_codes8"], atol=ENCODER_TOLERANCE, rtol=0
    )
