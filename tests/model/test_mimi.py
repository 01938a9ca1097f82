"""The codec against the reference's numbers."""

import pytest
import torch

from engine.config import FRAME_SAMPLES
from engine.model.mimi import Stream, run_layers, run_transformer
from engine.model.transformer import Active, Chunk
from tests.model.conftest import CPU, TINY

ENCODER_TOLERANCE, PCM_TOLERANCE = 1e-4, 1e-5


def only(slot: int, slots: int = 1) -> Active:
    return Active.of([slot], slots, CPU)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """The user's audio [82, 1, 1920]."""
    import soundfile  # here: a GPU machine has none, and other tests import this file

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
    seen = torch.cat(
        [run_transformer(mimi.encoder_transformer, c, stream, active) for c in columns.split(2, 2)],
        2,
    )
    torch.testing.assert_close(seen[0], want["enc_transformer_out"], atol=ENCODER_TOLERANCE, rtol=0)
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


def one_shot(mimi, parts: list, transformer) -> Stream:
    """A codec that is given everything in one call: its attention has the plain window."""
    return Stream(parts, transformer, 1, mimi.config.transformer.context)


def test_one_call_on_the_whole_signal_is_the_references(mimi, expected, frames):
    want, active, first = expected("codec"), only(0), torch.tensor([True])
    stream = one_shot(mimi, [mimi.encoder, mimi.downsample], mimi.encoder_transformer)
    columns = mimi.columns(frames.view(1, -1), stream, active)  # [1, dim, 164]
    chunk = Chunk(stream.rings, 0, columns.shape[2])
    seen = mimi.encoder_transformer(columns.transpose(1, 2), chunk).transpose(1, 2)
    latent = mimi.downsample(seen, stream.tails, active, first)[0].T  # [82, dim]
    assert torch.equal(mimi.quantizer.encode(latent, 32).T.int(), want["codes32_offline"])
    stream = one_shot(mimi, [mimi.decoder, mimi.upsample], mimi.decoder_transformer)
    pcm = want["pcm_from_codes8_offline_first_frames"]
    codes = want["codes8_streaming"].long().T[: len(pcm) // FRAME_SAMPLES]
    columns = mimi.upsample(mimi.quantizer.decode(codes).T[None], stream.tails, active, first)
    chunk = Chunk(stream.rings, 0, columns.shape[2])
    seen = mimi.decoder_transformer(columns.transpose(1, 2), chunk).transpose(1, 2)
    got = run_layers(mimi.decoder.model, seen, stream.tails, active, first)[0, 0]
    torch.testing.assert_close(got, pcm, atol=PCM_TOLERANCE, rtol=0)


def test_eight_codebooks_are_the_first_of_thirty_two(mimi, frames):
    few, many = mimi.encoder_stream(1), mimi.encoder_stream(1)
    for frame in frames[:4]:
        eight = mimi.encode(frame, few, only(0))
        assert torch.equal(eight, mimi.encode(frame, many, only(0), 32)[:, :8])
