"""Runs the class of moshi's client with a sound card that is not there: `moshi.sh` calls it.

It speaks a sentence into the client's own callback, and counts what the client would play.
"""

import asyncio
import sys
import time
import types

import aiohttp
import numpy as np

FRAME, RATE = 1920, 24_000
SECONDS = 8.0


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


async def talk(url: str) -> int:
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
            silence = np.zeros((FRAME, 1), np.float32)
            client._on_audio_input(silence, FRAME, None, None)
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


sys.exit(asyncio.run(talk(sys.argv[1])))
