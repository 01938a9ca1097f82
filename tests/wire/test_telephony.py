"""G.711: the bytes of the standard, and 8 kHz to and from 24 kHz in pieces of any size."""

import numpy as np
import pytest

from engine.wire.telephony import HALF, TelephoneCodec, make_a_law, make_mu_law


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    at = np.arange(int(seconds * 24_000)) / 24_000
    return (0.5 * np.sin(2 * np.pi * hz * at)).astype(np.float32)


def test_bytes_stand_for_the_samples_of_the_standard():
    mu, a = make_mu_law(), make_a_law()
    assert [mu[0x00], mu[0x80], mu[0x7F], mu[0xFF]] == [-32124, 32124, 0, 0]
    assert [mu[0x8F], mu[0x9A], mu[0xEF]] == [16764, 10876, 132]
    assert [a[0x55], a[0xD5], a[0x2A], a[0xAA]] == [-8, 8, -32256, 32256]
    assert [a[0x80], a[0x45]] == [5504, -264]


@pytest.mark.parametrize("law", ["u", "a"])
def test_every_byte_comes_back_as_itself(law):
    codec = TelephoneCodec(law)
    values = codec._values / 32767
    codec._taps = np.zeros_like(codec._taps)
    codec._taps[HALF] = 1  # no filter: every third sample as it is
    held = np.repeat(values, 3).astype(np.float32)
    sent = np.frombuffer(codec.encode(np.concatenate([held, np.zeros(HALF)])), np.uint8)
    assert np.array_equal(codec._values[sent[HALF // 3 :]], codec._values)  # −0 is 0


@pytest.mark.parametrize("law", ["u", "a"])
def test_a_tone_survives_the_way_there_and_back_in_odd_pieces(law):
    codec, sent = TelephoneCodec(law), tone(1000)
    coded = b"".join(codec.encode(part) for part in np.array_split(sent, 37))
    assert len(coded) == 8000
    pieces = np.array_split(np.frombuffer(coded, np.uint8), 11)
    heard = np.concatenate([pcm for piece in pieces for pcm in codec.decode(piece.tobytes())])
    assert len(heard) == 24_000
    delay = 2 * HALF
    error = heard[delay + 200 :] - sent[200 : len(heard) - delay]
    assert np.mean(error**2) < np.mean(sent**2) / 1000  # 30 dB


def test_pieces_do_not_change_the_bytes():
    sent = tone(700)
    whole = TelephoneCodec("u").encode(sent)
    codec = TelephoneCodec("u")
    assert whole == b"".join(codec.encode(part) for part in np.array_split(sent, 101))
    assert TelephoneCodec("u").encode(sent[:0]) == b""


def test_what_a_telephone_cannot_carry_does_not_come_back_as_a_lower_tone():
    codec = TelephoneCodec("u")
    coded = np.frombuffer(codec.encode(tone(6000)), np.uint8)
    assert np.abs(codec._values[coded[50:]]).max() < 100


def test_nan_and_what_is_too_loud_are_sent_as_what_can_be():
    assert len(TelephoneCodec("u").encode(np.full(1920, np.nan, np.float32))) == 640
    loud = np.frombuffer(TelephoneCodec("u").encode(np.full(1920, 9, np.float32)), np.uint8)
    assert loud[-1] == 0x80
