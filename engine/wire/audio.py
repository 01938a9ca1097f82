"""Audio as it travels on one socket, in both directions: an Ogg/Opus byte stream, or raw PCM16.

Opus is `sphn` 0.2.1, which has three traps. Its reader hangs after garbage, so garbage ends the
conversation. It refuses more than 5 s at once, so messages go in page by page. Its encoder breaks
on NaN, so samples are made finite before it.
"""

from collections.abc import Iterator

import numpy as np

from engine.config import SAMPLE_RATE
from engine.errors import BadAudioError, BadParameterError

PAGE = b"OggS"  # every Ogg page begins with it
INT16_SCALE = 32768


class PcmCodec:
    """Signed 16-bit little-endian samples, 24 kHz, mono."""

    def decode(self, payload: bytes) -> Iterator[np.ndarray]:
        if len(payload) % 2:
            raise BadAudioError(
                f"{len(payload)} bytes of pcm16 are not whole samples; send an even length"
            )
        yield np.frombuffer(payload, "<i2").astype(np.float32) / INT16_SCALE

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

    def decode(self, payload: bytes) -> Iterator[np.ndarray]:
        for part in _pages(payload):
            try:
                yield self._reader.append_bytes(part)
            except ValueError as error:
                raise BadAudioError(
                    f"not an Ogg/Opus stream ({error}); send Ogg/Opus at 24 kHz mono, "
                    "or connect with format=pcm16"
                ) from error

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


def _pages(payload: bytes) -> Iterator[bytes]:
    """The payload, cut before every page. The reader takes any cut."""
    start = 0
    while start < len(payload):
        end = payload.find(PAGE, start + 1)
        end = len(payload) if end < 0 else end
        yield payload[start:end]
        start = end
