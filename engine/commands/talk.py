"""`python -m engine talk URL`: a conversation from the terminal.

A wav goes in at the pace of speech, or the microphone if the `sounddevice` package is installed.
A wav and the transcript come out.
"""

import argparse
import asyncio
import contextlib
import sys
from dataclasses import dataclass, field

import numpy as np

from engine.commands.outputs import SOUND_ENDINGS, check_output, write_output, write_sound
from engine.config import FRAME_SAMPLES, SAMPLE_RATE
from engine.errors import ConfigError
from engine.wire.client import Client, read_wav, send_wav
from engine.wire.protocol import Kind

LINGER_SECONDS = 3.0  # of silence after the wav, in which the agent answers


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
    check_output("--output", args.output, SOUND_ENDINGS)
    check_output("--transcript", args.transcript)
    wav = read_wav(args.input) if args.input else None
    answer = Answer()
    try:
        asyncio.run(talk(args, wav, answer))
    except KeyboardInterrupt:  # the usual end of a talk with a microphone
        pass
    finally:  # what was said is kept, however it ended
        print()
        if args.output and answer.pcm:
            write_sound("--output", args.output, np.concatenate(answer.pcm))
        if args.transcript:
            text = "".join(answer.texts).strip() + "\n"
            write_output(
                "--transcript", args.transcript, lambda file: file.write_text(text, "utf-8")
            )
    return 1 if answer.error and not answer.pcm else 0


async def talk(args: argparse.Namespace, wav: np.ndarray | None, answer: "Answer") -> None:
    """Hold the conversation; what comes is in `answer`, also if it breaks off."""
    query = {"voice_prompt": args.voice, "text_prompt": args.text_prompt, "token": args.token}
    async with Client(args.url, fmt=args.format, returns=True, **query) as client:
        receiving = asyncio.create_task(answer.receive(client))
        await answer.ready.wait()
        sending = asyncio.create_task(send_all(client, args.say, wav))
        await asyncio.wait({receiving, sending}, return_when=asyncio.FIRST_COMPLETED)
        sending.cancel()
        failed = sending.done() and sending.exception()  # no microphone, for example
        if failed and not receiving.done():
            raise failed
    receiving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await receiving


@dataclass
class Answer:
    """What the agent says: samples, transcript, the last error."""

    pcm: list[np.ndarray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # the agent listens, or it is over
    error: str = ""

    async def receive(self, client: Client) -> None:
        """Collect and print what comes until the server hangs up."""
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
    """Send the texts to be said, then the wav and some silence, or else the microphone."""
    for text in texts:
        await client.say(text)
    if wav is None:
        return await send_microphone(client)
    silence = np.zeros(int(LINGER_SECONDS * SAMPLE_RATE), np.float32)
    await send_wav(client, np.concatenate([wav, silence]))


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
            await client.send_audio(await chunks.get())
