"""G.711 as telephones send it: 8 kHz, a byte a sample, μ-law or A-law, to and from 24 kHz.

Source: ITU-T G.711; the resampler is a windowed sinc at a third of the rate.
"""

from collections.abc import Iterator

import numpy as np

from engine.wire.audio import INT16_SCALE, clip_finite

FACTOR = 3  # 24 kHz to 8 kHz
HALF = 24  # taps on each side, at 24 kHz: 1 ms
PART_BYTES = 8000  # that are decoded at once: 1 s
PASS_HZ, RATE = 3600, 24_000  # of the low-pass; a telephone line ends at 3.4 kHz


class TelephoneCodec:
    """One G.711 stream each way for one socket. law: "u" or "a"."""

    def __init__(self, law: str) -> None:
        self._values = make_mu_law() if law == "u" else make_a_law()  # [256], of int16
        self._order = np.argsort(self._values, kind="stable")
        ordered = self._values[self._order]
        self._edges = (ordered[1:] + ordered[:-1]) / 2
        self._taps = make_low_pass()
        self._before_in = np.zeros(2 * HALF, np.float32)  # of the 24 kHz streams, for the filter
        self._before_out = np.zeros(2 * HALF, np.float32)
        self._phase = 0  # of the next outgoing sample: every third is sent

    def decode(self, payload: bytes) -> Iterator[np.ndarray]:
        """Bytes [n] -> parts of float32, 3n samples in all."""
        for at in range(0, len(payload), PART_BYTES):
            part = np.frombuffer(payload[at : at + PART_BYTES], np.uint8)
            spread = np.zeros(len(part) * FACTOR, np.float32)
            spread[::FACTOR] = self._values[part] * (FACTOR / INT16_SCALE)
            pcm, self._before_in = self._filter(spread, self._before_in)
            yield pcm

    def encode(self, pcm: np.ndarray) -> bytes:
        """Float32 [n] at 24 kHz -> bytes, a third as many."""
        smooth, self._before_out = self._filter(clip_finite(pcm), self._before_out)
        kept = smooth[-self._phase % FACTOR :: FACTOR]
        self._phase = (self._phase + len(pcm)) % FACTOR
        index = np.searchsorted(self._edges, np.clip(kept, -1, 1) * (INT16_SCALE - 1))
        return self._order[index].astype(np.uint8).tobytes()

    def _filter(self, pcm: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole = np.concatenate([before, pcm])
        if not len(pcm):
            return pcm, before
        return np.convolve(whole, self._taps, "valid").astype(np.float32), whole[-2 * HALF :]


def make_low_pass() -> np.ndarray:
    """Taps [2 * HALF + 1] that sum to 1."""
    at = np.arange(-HALF, HALF + 1)
    taps = np.sinc(2 * PASS_HZ / RATE * at) * np.hamming(len(at))
    return (taps / taps.sum()).astype(np.float32)


def make_mu_law() -> np.ndarray:
    """The samples [256], of 16 bits, that the bytes stand for."""
    byte = ~np.arange(256) & 0xFF
    size = (((byte & 0x0F) << 3) + 0x84 << ((byte >> 4) & 7)) - 0x84
    return np.where(byte & 0x80, -size, size).astype(np.float32)


def make_a_law() -> np.ndarray:
    """The samples [256], of 16 bits, that the bytes stand for."""
    byte = np.arange(256) ^ 0x55
    step, low = (byte >> 4) & 7, (byte & 0x0F) << 4
    size = np.where(step == 0, low + 8, low + 0x108 << np.maximum(step - 1, 0))
    return np.where(byte & 0x80, size, -size).astype(np.float32)
