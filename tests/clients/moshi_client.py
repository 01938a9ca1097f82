"""Runs the class of moshi's client with a sound card that is not there: `moshi.sh` calls it.

It speaks a recording (24 kHz, mono, 16 bits), or is silent, in the client's own callback, and
counts what the client would play.
"""

import asyncio
import sys
import time
import types
import wave

import aiohttp
import numpy as np

FRAME, RATE = 1920, 24_000
SECONDS, SPEAKS_AT = 20.0, 5.0


class Silent:
    """Takes the place of a sound card's stream."""

    def __init__(self, callback, **_options) -> None:
        self.callback = callback

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_exc: object) -> None:
        pass


# Its package's other modules want torch; the client itself wants numpy, sphn and a sound card.
sys.modules["sounddevice"] = types.SimpleNamespace(InputStream=Silent, OutputStream=Silent)
package = types.ModuleType("moshi")
package.__path__ = [f"{path}/moshi" for path in sys.path if path.endswith("artifacts/moshi")]
sys.modules["moshi"] = package

from moshi.client import Connection  # noqa: E402 - after what it imports
from moshi.client_utils import RawPrinter  # noqa: E402


def read_speech(path: str) -> np.ndarray:
    """Float32 [T], with the silence before it."""
    with wave.open(path) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    return np.concatenate([np.zeros(int(SPEAKS_AT * RATE), np.float32), pcm])


async def talk(url: str, speech: np.ndarray) -> int:
    base, _, query = url.partition("?")
    address = f"{base.rstrip('/')}/api/chat" + (f"?{query}" if query else "")
    played, texts = [], []
    printer = RawPrinter()
    printer.print_token = texts.append
    async with aiohttp.ClientSession() as http, http.ws_connect(address) as ws:
        client = Connection(printer, ws, asyncio.get_running_loop())
        receiving = asyncio.create_task(client._recv_loop())
        started = time.monotonic()
        while time.monotonic() - started < SECONDS:
            spoken, speech = speech[:FRAME], speech[FRAME:]
            frame = np.pad(spoken, (0, FRAME - len(spoken)))[:, None]
            client._on_audio_input(frame, FRAME, None, None)
            out = np.zeros((FRAME, 1), np.float32)
            while not client._output_queue.empty():
                client._on_audio_output(out, FRAME, None, None)
                played.append(out[:, 0].copy())
            await asyncio.sleep(FRAME / RATE)
        receiving.cancel()
    pcm = np.concatenate(played) if played else np.zeros(1)
    loud = float(np.mean(np.abs(pcm) > 0.02)) * len(pcm) / RATE
    print(f"\nheard {len(pcm) / RATE:.2f} s, {loud:.2f} s of it loud; text: {''.join(texts)!r}")
    return 0 if loud > 0.3 and "".join(texts).strip() else 1


speech = read_speech(sys.argv[2]) if len(sys.argv) > 2 else np.zeros(0, np.float32)
sys.exit(asyncio.run(talk(sys.argv[1], speech)))
