"""`python -m engine talk URL`: a conversation from the terminal.

A wav (or the microphone, if the `sounddevice` package is installed) goes in at the pace of speech;
a wav and the transcript come out. `Client` is also what the checks and benchmarks talk through.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import aiohttp
import numpy as np

from engine.config import FRAME_SAMPLES, SAMPLE_RATE
from engine.errors import ConfigError, EngineError
from engine.wire.audio import make_codec
from engine.wire.protocol import MAX_MESSAGE_BYTES, Kind, decode, encode

CHUNK_SAMPLES = SAMPLE_RATE // 50  # 20 ms, as browsers send
CONNECT_SECONDS = 30.0
LINGER_SECONDS = 3.0  # heard after the last word sent


def api_url(url: str, **query: Any) -> str:
    """The WebSocket address of a server's URL in any common form, with query parameters."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path if parts.path.startswith("/api") else "/api"
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    joined = "&".join(part for part in (parts.query, asked) if part)
    return urlunsplit((scheme, parts.netloc, path, joined, ""))


@dataclass
class Message:
    """One message from the server, decoded."""

    kind: Kind
    at: float  # time.monotonic() of arrival
    pcm: np.ndarray | None = None  # [n] float32, of AUDIO
    text: str = ""  # of TEXT and ERROR
    data: dict[str, Any] = field(default_factory=dict)  # of METADATA


class Client:
    """One conversation with a server. `async with Client(url) as client`."""

    def __init__(self, url: str, fmt: str = "pcm16", events: bool = True, **query: Any) -> None:
        self.url = api_url(url, format=fmt, events=int(events), **query)
        self._codec = make_codec(fmt)
        self.close_code: int | None = None

    async def __aenter__(self) -> "Client":
        self._http = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._ws = await self._http.ws_connect(
                    self.url, max_msg_size=16 * MAX_MESSAGE_BYTES
                )
        except (aiohttp.ClientError, TimeoutError) as error:
            await self._http.close()
            raise EngineError(f"no conversation at {_public(self.url)}: {error}") from error
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._ws.close()
        await self._http.close()

    async def vanish(self) -> None:
        """Cut the line without a goodbye, as a lost network does."""
        await self._http.close()

    async def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send one message; nothing once the server hung up (`messages` has its reason)."""
        with contextlib.suppress(aiohttp.ClientConnectionResetError):
            await self._ws.send_bytes(encode(kind, payload))

    async def hear(self, pcm: np.ndarray) -> None:
        """Send user samples [n] float32."""
        if data := self._codec.encode(pcm):
            await self.send(Kind.AUDIO, data)

    async def say(self, text: str) -> None:
        await self.send(Kind.SAY, text.encode())

    async def tell(self, **fields: Any) -> None:
        """Send one 0x04 object."""
        await self.send(Kind.METADATA, json.dumps(fields).encode())

    async def messages(self) -> AsyncIterator[Message]:
        """Everything from the server until the socket closes."""
        async for raw in self._ws:
            if raw.type is aiohttp.WSMsgType.BINARY:
                yield self._message(raw.data)
        self.close_code = self._ws.close_code

    def _message(self, raw: bytes) -> Message:
        kind, payload = decode(raw)
        message = Message(kind, time.monotonic())
        if kind is Kind.AUDIO:
            parts = list(self._codec.decode(payload))
            message.pcm = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        elif kind is Kind.METADATA:
            message.data = json.loads(payload)
        elif kind in (Kind.TEXT, Kind.ERROR):
            message.text = payload.decode()
        return message


def _public(url: str) -> str:
    """A URL without its query: tokens and personas are nobody's business."""
    return url.split("?")[0]


def read_wav(path: str | Path) -> np.ndarray:
    """A sound file as mono float32 [n] at 24 kHz, first channel. Raises ConfigError."""
    import soundfile  # here: a client without files needs neither
    import soxr

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ConfigError(f"{path}: {error}; give a wav, flac or ogg file") from error
    mono = samples[:, 0]
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


async def send_wav(client: Client, pcm: np.ndarray) -> None:
    """Send samples at the pace of speech, 20 ms at a time."""
    start = time.monotonic()
    for i in range(0, len(pcm), CHUNK_SAMPLES):
        await client.hear(pcm[i : i + CHUNK_SAMPLES])
        ahead = start + (i + CHUNK_SAMPLES) / SAMPLE_RATE - time.monotonic()
        await asyncio.sleep(max(0.0, ahead))


async def send_microphone(client: Client) -> None:
    """Send the default microphone until cancelled. Raises ConfigError without `sounddevice`."""
    try:
        import sounddevice
    except ImportError:
        raise ConfigError(
            "no --input, and the microphone needs the sounddevice package; "
            "pip install sounddevice, or give --input FILE.wav"
        ) from None
    chunks: asyncio.Queue[np.ndarray] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def take(data: np.ndarray, *_rest: object) -> None:
        loop.call_soon_threadsafe(chunks.put_nowait, data[:, 0].copy())

    with sounddevice.InputStream(SAMPLE_RATE, FRAME_SAMPLES // 4, channels=1, callback=take):
        while True:
            await client.hear(await chunks.get())


@dataclass
class Listener:
    """Collects what the agent says: samples, transcript, and when it began."""

    pcm: list[np.ndarray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    error: str = ""

    async def listen(self, client: Client) -> None:
        async for message in client.messages():
            if message.kind is Kind.HANDSHAKE:
                self.ready.set()
            elif message.pcm is not None:
                self.pcm.append(message.pcm)
            elif message.kind is Kind.TEXT:
                self.texts.append(message.text)
                print(message.text, end="", flush=True)
            elif message.kind is Kind.ERROR:
                self.error = message.text
                print(f"\nserver: {message.text}", file=sys.stderr)
        self.ready.set()


async def send_all(client: Client, texts: list[str], wav: np.ndarray | None) -> None:
    """The texts to be said, then the wav (and time to hear the answer) or the microphone."""
    for text in texts:
        await client.say(text)
    if wav is None:
        return await send_microphone(client)
    await send_wav(client, wav)
    await send_wav(client, np.zeros(int(LINGER_SECONDS * SAMPLE_RATE), np.float32))


async def talk(args: argparse.Namespace) -> int:
    """One conversation; the exit code."""
    wav = read_wav(args.input) if args.input else None
    listener = Listener()
    query = {"voice_prompt": args.voice, "text_prompt": args.text_prompt, "token": args.token}
    async with Client(args.url, fmt=args.format, **query) as client:
        hearing = asyncio.create_task(listener.listen(client))
        await listener.ready.wait()
        sending = asyncio.create_task(send_all(client, args.say, wav))
        await asyncio.wait({hearing, sending}, return_when=asyncio.FIRST_COMPLETED)
        sending.cancel()
        failed = sending.done() and sending.exception()  # no microphone, for example
        if failed and not hearing.done():
            raise failed
    hearing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await hearing
    _save(listener, args)
    return 1 if listener.error and not listener.pcm else 0


def _save(listener: Listener, args: argparse.Namespace) -> None:
    print()
    if args.output and listener.pcm:
        import soundfile

        soundfile.write(args.output, np.concatenate(listener.pcm), SAMPLE_RATE)
    if args.transcript:
        Path(args.transcript).write_text("".join(listener.texts).strip() + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="for example http://localhost:8998 or wss://HOST/api")
    parser.add_argument("--input", metavar="WAV", help="speak this file instead of the microphone")
    parser.add_argument("--output", metavar="WAV", help="write what the agent says")
    parser.add_argument("--transcript", metavar="TXT", help="write the words of the agent")
    parser.add_argument("--say", metavar="TEXT", action="append", default=[], help="have it said")
    parser.add_argument("--voice", help="a name from /voices")
    parser.add_argument("--text-prompt", help="the persona")
    parser.add_argument("--format", choices=("pcm16", "opus"), default="pcm16")
    parser.add_argument("--token", help="shared secret of the server")


def run(args: argparse.Namespace) -> int:
    return asyncio.run(talk(args))
