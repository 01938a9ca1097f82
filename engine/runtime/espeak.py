"""eSpeak NG by ctypes: one word in, its samples out.

Not a voice of the model and not asynchronous: the library calls back while `espeak_Synth` runs.
eSpeak keeps one global state, so all calls go through one lock.
Source: espeak-ng `speak_lib.h`; library and data come with the `espeakng-loader` package.
"""

import ctypes
import functools
import os
import threading

import espeakng_loader
import numpy as np
import soxr

from engine.config import SAMPLE_RATE

AUDIO_OUTPUT_SYNCHRONOUS = 2
CHARS_UTF8 = 1
PARAMETER_RATE, PARAMETER_PITCH = 1, 3
POSITION_CHARACTER = 1
TRIM_LEVEL = 10 ** (-45 / 20)  # quieter samples at either end of a word are cut
EDGE_SAMPLES = SAMPLE_RATE // 100  # 10 ms kept around what is left, faded
WORDS_CACHED = 2048

CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Synthesizer:
    """The process's one eSpeak instance."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: list[bytes] = []
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = os.fsencode(espeakng_loader.get_data_path())
        self.sample_rate = self._library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)
        assert self.sample_rate > 0, f"eSpeak NG found no data in {data!r}"
        self._callback = CALLBACK(self._collect)  # kept: the library holds only the pointer
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]

    def _collect(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, count * 2))
        return 0

    def say(self, text: str, voice: str, pitch: int, rate: int) -> np.ndarray:
        """Samples of a word: float32 [n] at 24 kHz, silence at both ends cut.

        voice is an eSpeak name such as `en-us+f3`, pitch 0 to 100, rate in words per minute.
        Text without anything to say (punctuation) gives 0 samples.
        """
        data = text.replace("\0", "").encode()
        with self._lock:
            self._chunks.clear()
            self._library.espeak_SetVoiceByName(voice.encode())
            self._library.espeak_SetParameter(PARAMETER_RATE, rate, 0)
            self._library.espeak_SetParameter(PARAMETER_PITCH, pitch, 0)
            self._library.espeak_Synth(
                data, len(data) + 1, 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None
            )
            raw = b"".join(self._chunks)
        samples = np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32768
        return _trim(soxr.resample(samples, self.sample_rate, SAMPLE_RATE).astype(np.float32))


def _trim(samples: np.ndarray) -> np.ndarray:
    """Cut the silence at both ends; fade the edges so that words join without a click."""
    loud = np.flatnonzero(np.abs(samples) > TRIM_LEVEL)
    if not loud.size:
        return np.zeros(0, np.float32)
    cut = samples[max(0, loud[0] - EDGE_SAMPLES) : loud[-1] + EDGE_SAMPLES].copy()
    edge = min(EDGE_SAMPLES, len(cut) // 2)
    ramp = np.linspace(0, 1, edge, dtype=np.float32)
    cut[:edge] *= ramp
    cut[len(cut) - edge :] *= ramp[::-1]
    return cut


@functools.cache
def synthesizer() -> Synthesizer:
    """The shared instance; made on first use."""
    return Synthesizer()


@functools.lru_cache(WORDS_CACHED)
def say(text: str, voice: str = "en-us", pitch: int = 50, rate: int = 175) -> np.ndarray:
    """`Synthesizer.say`, remembered: conversations say the same small words again and again."""
    samples = synthesizer().say(text, voice, pitch, rate)
    samples.flags.writeable = False
    return samples
