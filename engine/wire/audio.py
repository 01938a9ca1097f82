"""Audio as it travels on one socket, in both directions: an Ogg/Opus byte stream, or raw PCM16.

Opus is `sphn` 0.2.1, which has four traps. Its reader hangs after garbage, so garbage ends the
conversation. It decodes a whole page at once, which stops all other threads (10 ms for 4 s of
audio), and refuses more than 5 s, so packets go in one by one. It makes 5 s of an empty packet, so
these are left out. Its encoder breaks on NaN, so samples are made finite before it.
"""

from collections.abc import Iterator

import numpy as np

from engine.config import SAMPLE_RATE
from engine.errors import BadAudioError, BadParameterError

PAGE = b"OggS\0"  # every Ogg page begins with it: the name, and its version
PAGE_HEAD = 27  # bytes, of which the last says how many lengths of segments follow
CONTINUED, LAST = 1, 4  # flags of a page: it begins within a packet; it ends the stream
INT16_SCALE = 32768
PART_BYTES = 2 * SAMPLE_RATE  # of pcm16 that are decoded at once: 1 s


class PcmCodec:
    """Signed 16-bit little-endian samples, 24 kHz, mono."""

    def decode(self, payload: bytes) -> Iterator[np.ndarray]:
        if len(payload) % 2:
            raise BadAudioError(
                f"{len(payload)} bytes of pcm16 are not whole samples; send an even length"
            )
        for at in range(0, len(payload), PART_BYTES):  # whoever decodes may rest between them
            part = np.frombuffer(payload[at : at + PART_BYTES], "<i2")
            yield part.astype(np.float32) / INT16_SCALE

    def encode(self, pcm: np.ndarray) -> bytes:
        return (clip_finite(pcm) * (INT16_SCALE - 1)).astype("<i2").tobytes()


class OpusCodec:
    """One Ogg/Opus stream each way, 24 kHz, mono."""

    def __init__(self) -> None:
        try:
            import sphn  # here: a pcm16 conversation does not need it
        except ModuleNotFoundError:  # it has no wheel for Linux on ARM
            raise BadParameterError(
                "format is 'opus', for which this server lacks its codec (sphn); "
                "connect with format=pcm16"
            ) from None

        self._reader = sphn.OpusStreamReader(SAMPLE_RATE)
        self._writer = sphn.OpusStreamWriter(SAMPLE_RATE)
        self._begun = b""  # of a page, not whole

    def decode(self, payload: bytes) -> Iterator[np.ndarray]:
        try:
            for page in self._take_pages(payload):
                for packet in split_page(page):
                    yield self._reader.append_bytes(packet)
        except ValueError as error:
            raise BadAudioError(
                f"not an Ogg/Opus stream ({error}); send Ogg/Opus at 24 kHz mono, "
                "or connect with format=pcm16"
            ) from error

    def _take_pages(self, payload: bytes) -> Iterator[bytes]:
        """The pages that are whole now; what is left waits. Raises ValueError."""
        data, at = self._begun + payload, 0
        while len(data) - at > len(PAGE) and (size := measure_page(data, at)) <= len(data) - at:
            yield data[at : at + size]
            at += size
        self._begun = data[at:]
        if not PAGE.startswith(self._begun[: len(PAGE)]):
            raise ValueError("no page begins here")

    def encode(self, pcm: np.ndarray) -> bytes:
        return self._writer.append_pcm(clip_finite(pcm))


def make_codec(fmt: str) -> PcmCodec | OpusCodec:
    """The codec of a format's name (one of `protocol.FORMATS`), for one socket.

    `decode` brings samples in parts of float32 [n], or raises BadAudioError; `encode` takes [n].
    """
    return PcmCodec() if fmt == "pcm16" else OpusCodec()


def clip_finite(pcm: np.ndarray) -> np.ndarray:
    """Samples within −1 to 1, and 0 in the place of NaN."""
    return np.clip(np.nan_to_num(pcm, posinf=1, neginf=-1), -1, 1).astype(np.float32)


def measure_page(data: bytes, at: int) -> int:
    """Bytes of the Ogg page that begins at `at`, or more than there are. Raises ValueError."""
    if not data.startswith(PAGE, at):
        raise ValueError("no page begins here")
    count = data[at + PAGE_HEAD - 1] if at + PAGE_HEAD <= len(data) else 255
    return PAGE_HEAD + count + sum(data[at + PAGE_HEAD : at + PAGE_HEAD + count])


def split_page(page: bytes) -> Iterator[bytes]:
    """A whole Ogg page -> a page for each of its packets, and none for those that are empty.

    Their checksums are wrong; the reader does not look at them.
    """
    flags, lengths = page[5], page[PAGE_HEAD : PAGE_HEAD + page[PAGE_HEAD - 1]]
    begin, at = 0, PAGE_HEAD + len(lengths)
    for end, length in enumerate(lengths, 1):
        if length == 255 and end < len(lengths):
            continue  # the packet goes on
        ours, size = lengths[begin:end], sum(lengths[begin:end])
        kept = (flags if begin == 0 else flags & LAST) & (0xFF if end == len(lengths) else ~LAST)
        if size or kept & CONTINUED:
            head = page[:5] + bytes([kept]) + page[6 : PAGE_HEAD - 1] + bytes([len(ours)])
            yield head + ours + page[at : at + size]
        begin, at = end, at + size
