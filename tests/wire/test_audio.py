"""The two codecs and the traps of sphn that they close."""

import numpy as np
import pytest
import sphn

from engine.errors import BadAudioError
from engine.wire.audio import OpusCodec, PcmCodec, has_right_checksum, make_codec
from tests.sound import best_match, loud_seconds, speech
from tests.wire.ogg import EMPTY_PACKET_PAGE, packets, page, pages


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


def test_a_long_message_of_pcm16_comes_out_in_parts_of_a_second():
    samples = np.arange(-32_000, 32_000, dtype="<i2")
    parts = list(PcmCodec().decode(samples.tobytes()))
    assert max(map(len, parts)) <= 24_000
    assert np.array_equal(np.concatenate(parts) * 32768, samples)


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


def paged(pcm, packets_per_page):
    """(the stream's two headers, its packets put into pages of so many)."""
    identity, comment, *audio = packets(encoded(pcm))
    chunks = [audio[at : at + packets_per_page] for at in range(0, len(audio), packets_per_page)]
    head = page([identity], 2, 0, 0) + page([comment], 0, 0, 1)
    return head, [page(some, 0, 960 * at, 2 + at) for at, some in enumerate(chunks)]


NOISE = np.random.default_rng(0).standard_normal(4 * 24_000).astype(np.float32) / 10


def test_no_part_of_a_page_of_4_s_is_longer_than_a_packet():
    """The codec stops all threads while it decodes one."""
    receiver = OpusCodec()
    head, (whole,) = paged(NOISE, 255)
    decoded(receiver, head)
    parts = list(receiver.decode(whole))
    assert sum(map(len, parts)) == len(NOISE)
    assert max(map(len, parts)) <= 0.12 * 24_000


@pytest.mark.parametrize("packets_per_page", [1, 2, 5, 255])
@pytest.mark.parametrize("cut", [1, 7, 60, 1_000_000])
def test_samples_are_the_same_in_any_pages_and_any_cut(packets_per_page, cut):
    pcm = NOISE[: 24_000 // 2]
    expected = sphn.OpusStreamReader(24_000).append_bytes(encoded(pcm))
    head, pages = paged(pcm, packets_per_page)
    stream, receiver = head + b"".join(pages), OpusCodec()
    cuts = [stream[at : at + cut] for at in range(0, len(stream), cut)]
    assert np.array_equal(np.concatenate([decoded(receiver, piece) for piece in cuts]), expected)


def test_the_audio_of_a_page_is_there_with_its_last_byte():
    head, pages = paged(NOISE[:9600], 2)
    receiver = OpusCodec()
    decoded(receiver, head)
    for one in pages:
        assert len(decoded(receiver, one[:-1])) == 0
        assert len(decoded(receiver, one[-1:])) == 1920


def test_a_packet_that_goes_on_in_the_next_page_is_one():
    identity, comment, *audio = packets(encoded(NOISE[:9600]))
    long = (
        bytes([audio[0][0] & 0xFC | 3, 0x41, 249]) + audio[0][1:] + bytes(249)
    )  # one frame, padded
    assert 255 < len(long) < 510
    head = page([identity], 2, 0, 0) + page([comment], 0, 0, 1)
    begun, rest = bytearray(page([long[:255]], 0, 0, 2)), page([long[255:], audio[1]], 1, 0, 3)
    begun[26:29] = b"\x01\xff"  # its only segment does not end the packet
    split, whole = head + bytes(begun) + rest, head + page([long, audio[1]], 0, 0, 2)
    expected = decoded(OpusCodec(), whole)
    assert len(expected) == 480 + 960
    assert np.array_equal(decoded(OpusCodec(), split), expected)
    assert np.array_equal(sphn.OpusStreamReader(24_000).append_bytes(whole), expected)


def test_packets_of_nothing_are_no_audio():
    """sphn would make 5 s of each, in one go."""
    receiver = OpusCodec()
    decoded(receiver, encoded(np.zeros(960, np.float32)))
    assert len(decoded(receiver, EMPTY_PACKET_PAGE * 3)) == 0
    assert len(decoded(receiver, page([b""] * 255, 0, 0, 9))) == 0
    assert len(decoded(receiver, encoded(np.zeros(960, np.float32)))) == 960


def test_a_stream_that_begins_again_is_decoded():
    receiver = OpusCodec()
    tone = np.sin(np.arange(9600) / 9).astype(np.float32) / 2
    first, second = decoded(receiver, encoded(tone)), decoded(receiver, encoded(tone))
    assert len(first) == len(second) == 9600
    assert loud_seconds(second) > 0.3


# -- one page a message ----------------------------------------------------------------------------


def test_each_message_of_agent_audio_is_one_ogg_page():
    sender, receiver = OpusCodec(), OpusCodec()
    frames = [sender.split(sender.encode(np.zeros(1920, np.float32))) for _ in range(3)]
    assert [[message.count(b"OggS") for message in frame] for frame in frames] == [
        *([1] * 4, [1] * 2, [1] * 2)
    ]
    assert sum(len(decoded(receiver, message)) for frame in frames for message in frame) == 3 * 1920


def test_pcm16_goes_out_as_one_message():
    data = PcmCodec().encode(np.zeros(1920))
    assert PcmCodec().split(data) == [data]


# -- bytes between pages ---------------------------------------------------------------------------

TONE = np.sin(np.arange(24_000) / 9).astype(np.float32) / 2


@pytest.mark.parametrize(
    "between", [b"\0", b"O", b"Ogg", b"OggOggS", b"OggS", b"OggS\0", b"\r\n", b"x" * 2500]
)
@pytest.mark.parametrize("cut", [1, 7, 100, 10**6])
def test_bytes_between_pages_are_skipped_and_counted(between, cut):
    receiver, stream = OpusCodec(), b"".join(between + one for one in pages(encoded(TONE)))
    assert len(np.concatenate(feed(receiver, stream, cut))) == len(TONE)
    assert receiver.skipped == len(between) * len(pages(encoded(TONE)))


def test_a_page_that_lost_its_end_costs_itself_only():
    receiver, found = OpusCodec(), pages(encoded(TONE))
    found[7] = found[7][:-20]
    arrived = decoded(receiver, b"".join(found))
    assert len(arrived) >= len(TONE) - 960
    assert receiver.skipped == len(found[7])


def test_a_page_with_a_damaged_packet_is_skipped_and_ends_nothing():
    receiver, found = OpusCodec(), pages(encoded(TONE))
    serial = int.from_bytes(found[0][14:18], "little")
    broken = bytearray(page([b"\xff" * 50], 0, 960, 2, serial))
    broken[40] ^= 1
    arrived = decoded(receiver, b"".join([*found[:6], bytes(broken), *found[6:]]))
    assert len(arrived) == len(TONE)
    assert receiver.skipped == len(broken)


def test_pages_without_a_checksum_are_read():
    found = [one[:22] + bytes(4) + one[26:] for one in pages(encoded(TONE))]
    assert len(decoded(OpusCodec(), b"".join(found))) == len(TONE)


def test_the_checksum_is_that_of_ogg():
    for one in pages(encoded(TONE)):
        assert has_right_checksum(one)
        assert not has_right_checksum(one[:-1] + bytes([one[-1] ^ 1]))


def test_an_endless_row_of_broken_pages_ends():
    head = b"OggS\0" + bytes(21) + b"\xff" + b"\xff" * 255
    with pytest.raises(BadAudioError, match="broken pages"):
        decoded(OpusCodec(), head * 2000)


def feed(receiver, data, cut):
    return [decoded(receiver, data[i : i + cut]) for i in range(0, len(data), cut)]


# -- what is never Ogg -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01", "this is WebM, as MediaRecorder makes it"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "this is a WAV file"),
        (b"ID3\x04\0\0\0\0\0\0", "this is MP3"),
        (b"\xff\xfb\x90\x64" + bytes(100), "this is MP3"),
        (b"\xff\xf1\x50\x80" + bytes(100), "this is AAC"),
        (b"fLaC\0\0\0\x22", "this is FLAC"),
        (b"\0\0\0\x20ftypisom", "this is MP4, as MediaRecorder makes it"),
        (b"OpusHead\x01\x01", "this is Opus without Ogg"),
    ],
)
@pytest.mark.parametrize("cut", [1, 10**6])
def test_what_is_never_ogg_is_named_with_the_fix_and_without_byte_values(data, name, cut):
    with pytest.raises(BadAudioError) as error:
        feed(OpusCodec(), data, cut)
    said = str(error.value)
    assert said.startswith(f"bad audio: {name}, not Ogg/Opus; ")
    assert "format=pcm16" in said
    assert "\\x" not in said


def test_raw_opus_packets_are_named():
    receiver, packets = OpusCodec(), [one[28:] for one in pages(encoded(np.tile(TONE, 20)))[2:]]
    with pytest.raises(BadAudioError, match=r"these are raw Opus packets.* put them on Ogg pages"):
        [decoded(receiver, packet) for packet in packets]


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_raw_samples_are_not_called_opus_packets(level):
    noise = np.random.default_rng(3).normal(0, 1, 240_000) * level
    samples = PcmCodec().encode(noise)
    with pytest.raises(BadAudioError, match=r"not an Ogg/Opus stream .* connect with format=pcm16"):
        feed(OpusCodec(), samples, 640)


def test_vorbis_is_named():
    head = page([b"\x01vorbis" + bytes(23)], 2, 0, 0)
    with pytest.raises(BadAudioError, match="this is Ogg/Vorbis"):
        decoded(OpusCodec(), head)


@pytest.mark.parametrize("data", [encoded(TONE), b"\x1a\x45\xdf\xa3" + bytes(100)])
def test_a_container_sent_as_pcm16_is_named(data):
    with pytest.raises(BadAudioError, match=r"this is (Ogg|WebM.*), not pcm16; "):
        decoded(PcmCodec(), data + bytes(len(data) % 2))


def test_samples_after_the_head_of_a_wav_are_heard_as_pcm16():
    assert len(decoded(PcmCodec(), b"RIFF" + bytes(40) + bytes(3840))) == 22 + 1920
