"""The two codecs and the traps of sphn that they close."""

import numpy as np
import pytest
import sphn

from engine.errors import BadAudioError
from engine.wire.audio import OpusCodec, PcmCodec, make_codec
from tests.sound import best_match, loud_seconds, speech
from tests.wire.ogg import EMPTY_PACKET_PAGE


def decoded(receiver, payload):
    return np.concatenate([np.zeros(0, np.float32), *receiver.decode(payload)])


def encoded(pcm):
    return sphn.OpusStreamWriter(24_000).append_pcm(pcm)


@pytest.mark.parametrize(("fmt", "like"), [("pcm16", 0.9999), ("opus", 0.9)])
def test_speech_survives_the_way_there_and_back(fmt, like):
    spoken = speech("seven yellow umbrellas")
    sender, receiver = make_codec(fmt), make_codec(fmt)
    arrived = [
        decoded(receiver, sender.encode(spoken[i : i + 1920])) for i in range(0, len(spoken), 1920)
    ]
    assert best_match(np.concatenate(arrived), spoken[:-6000])[0] > like


@pytest.mark.parametrize("fmt", ["pcm16", "opus"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_not_a_number_never_reaches_the_listener(fmt, value):
    sender, receiver = make_codec(fmt), make_codec(fmt)
    broken = np.full(1920, 0.1, np.float32)
    broken[::7] = value
    arrived = decoded(receiver, sender.encode(broken))
    assert np.isfinite(arrived).all()
    assert np.abs(arrived).max() <= 2


def test_a_frame_goes_out_whole_at_once():
    sender, receiver = OpusCodec(), OpusCodec()
    for _ in range(5):
        assert len(decoded(receiver, sender.encode(np.zeros(1920, np.float32)))) == 1920


def test_pcm16_is_little_endian_and_full_scale():
    assert PcmCodec().encode(np.array([1.0, -1.0, 0.0, 5.0])).hex() == "ff7f01800000ff7f"
    assert decoded(PcmCodec(), bytes.fromhex("00800040")).tolist() == [-1.0, 0.5]


def test_an_empty_message_holds_no_audio():
    assert len(decoded(PcmCodec(), b"")) == 0
    assert len(decoded(OpusCodec(), b"")) == 0


def test_a_reader_is_not_reused_after_garbage():
    receiver = OpusCodec()
    decoded(receiver, encoded(np.zeros(4800, np.float32)))
    with pytest.raises(BadAudioError, match="send Ogg/Opus"):
        decoded(receiver, b"garbage " * 1000)


def test_many_seconds_in_one_message_are_decoded_page_by_page():
    spoken = speech("seven yellow umbrellas " * 5)
    assert len(spoken) > 6 * 24_000  # more than sphn takes at once
    arrived = decoded(OpusCodec(), encoded(spoken))
    assert loud_seconds(arrived) > 0.8 * loud_seconds(spoken)


def test_empty_packets_come_out_bit_by_bit_so_that_somebody_can_count():
    receiver = OpusCodec()
    decoded(receiver, encoded(np.zeros(960, np.float32)))
    parts = list(receiver.decode(EMPTY_PACKET_PAGE * 3))
    assert len(parts) == 3
    assert all(len(part) <= 5 * 24_000 for part in parts)


def test_a_stream_that_begins_again_is_decoded():
    receiver = OpusCodec()
    tone = np.sin(np.arange(9600) / 9).astype(np.float32) / 2
    first, second = decoded(receiver, encoded(tone)), decoded(receiver, encoded(tone))
    assert len(first) == len(second) == 9600
    assert loud_seconds(second) > 0.3
