"""The recogniser against the reference's numbers, and its slots against each other."""

from types import SimpleNamespace

import pytest
import torch

from engine.commands.offline import split_frames
from engine.config import FRAME_SECONDS
from engine.model.config import MimiConfig
from engine.model.stt import Hearing, silence_codes
from engine.model.transformer import Active
from engine.weights.loading import load_recogniser
from engine.wire.client import read_wav
from tests.model.conftest import TINY
from tests.model.listening import CPU, STT_TINY, WANT, golden_columns, listen


@pytest.fixture(scope="module")
def stt(mimi):
    return load_recogniser(str(STT_TINY), mimi, device=CPU).stt


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=0)


def encoded(mimi, codebooks: int) -> torch.Tensor:
    frames = torch.from_numpy(split_frames(read_wav(str(TINY / "input_user.wav"))))
    stream, active = mimi.encoder_stream(1), Active.of([0], 1, CPU)
    return torch.cat([mimi.encode(frame[None], stream, active, codebooks) for frame in frames])


def test_one_pass_of_the_codec_gives_the_recognisers_32_codes_and_personaplexs_8(mimi, expected):
    codes = encoded(mimi, 32)
    assert torch.equal(codes.T.int(), WANT["codes32"])
    assert torch.equal(codes[:, :8], encoded(mimi, 8))
    assert torch.equal(codes[:, :8].T.int(), expected("codec")["codes8_streaming"].int())


def test_the_codecs_silence_is_the_references(mimi):
    assert torch.equal(silence_codes(mimi, 32).int(), WANT["silence_codes"])


def test_the_public_codec_hears_twelve_seconds_of_silence(mimi, monkeypatch):
    heard, context = [], MimiConfig().transformer.context  # 250 columns, two a frame
    public = SimpleNamespace(context=context)
    monkeypatch.setattr(mimi, "config", SimpleNamespace(transformer=public))
    monkeypatch.setattr(mimi, "encoder_stream", lambda *_: None)
    monkeypatch.setattr(mimi, "encode", lambda *_: heard.append(1) or torch.zeros(1, 32))
    silence_codes(mimi, 32)
    assert len(heard) * FRAME_SECONDS == 12.0


def test_tokens_and_pauses_are_the_references_through_ring_wraps_and_the_flush(stt):
    tokens, pause, hidden = listen(Hearing(stt, 1), golden_columns())
    assert torch.equal(tokens.int(), WANT["tokens"])
    close(pause, WANT["pause"], 1e-4)
    close(stt.pause(hidden), WANT["vad"], 1e-4)
    close(hidden, WANT["hidden"], 1e-4)
    close(stt.text_logits(hidden), WANT["text_logits"], 2e-3)


def test_what_every_step_reads_is_the_references(stt):
    hearing, active = Hearing(stt, 1), Active.of([0], 1, CPU)
    for step, codes in enumerate(golden_columns()):
        column = hearing.column(codes[None])
        assert torch.equal(column[0].int(), WANT["input_tokens"][:, step])
        close(stt.embedding(column)[0], WANT["embedding_sum"][step], 1e-6)
        hearing.step(codes[None], active)


def test_a_window_of_one_column_less_is_not_the_references(stt):
    hearing = Hearing(stt, 1)
    hearing.rings = stt.transformer.rings(1, stt.config.context - 1)
    tokens, _, _ = listen(hearing, golden_columns())
    assert int((tokens.int() != WANT["tokens"]).nonzero()[0]) >= stt.config.context - 1


def test_handing_every_frame_once_loses_the_first_as_the_reference_says(stt):
    tokens, _, _ = listen(Hearing(stt, 1), WANT["codes32"].long().T)
    assert torch.equal(tokens.int(), WANT["tokens_first_frame_once"])


def test_bf16_stays_near_the_references_own_bf16_run_with_forced_tokens(mimi, stt):
    half = load_recogniser(str(STT_TINY), mimi, device=CPU, dtype=torch.bfloat16).stt
    rings, active, pauses, logits = half.rings(1), Active.of([0], 1, CPU), [], []
    for column in WANT["input_tokens"].long().T:
        hidden = half.step(half.embedding(column[None]), rings, active)
        pauses.append(half.pause(hidden)[0, :, 0])
        logits.append(half.text_logits(hidden)[0])
    allowed = 2 * (WANT["text_logits_bf16"].float() - WANT["text_logits"]).abs().max()
    close(torch.stack(logits), WANT["text_logits"], float(allowed))
    allowed = 2 * (WANT["pause_bf16"].float() - WANT["pause"]).abs().max()
    close(torch.stack(pauses), WANT["pause"], float(allowed))


def test_any_slot_hears_what_it_would_hear_alone_to_the_bit(stt):
    columns = golden_columns()[:40]
    alone = listen(Hearing(stt, 1), columns)
    for slot, others in ((0, (1, 2)), (2, (0,)), (1, ())):
        beside = listen(Hearing(stt, 3), columns, slot, others)
        assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))


def test_a_cleared_slot_is_like_new_and_its_neighbour_does_not_notice(stt):
    columns, hearing = golden_columns()[:30], Hearing(stt, 2)
    listen(hearing, columns, 0, others=(1,))
    before = [tensor.clone() for tensor in hearing.state(1)]
    hearing.clear(0)
    again = listen(hearing, columns, 0)
    fresh = listen(Hearing(stt, 2), columns, 0)
    assert all(torch.equal(a, b) for a, b in zip(again, fresh, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(hearing.state(1), before, strict=True))
