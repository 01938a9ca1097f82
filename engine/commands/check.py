"""`python -m engine check URL`: does a running server do what clients depend on? Within 60 s.

It prints a pass or fail line for each thing, then times. The exit code is 0 only if all pass. It
talks to the server as any client would, and needs nothing of the server's machine.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import aiohttp
import numpy as np

from engine.config import FRAME_SAMPLES
from engine.errors import EngineError
from engine.wire.client import Client, Message, api_url, base_url, read_wav, send_wav, trust_own
from engine.wire.protocol import Kind

SENTENCE = "This is a test of speech on demand, and it should be heard clearly."
QUESTION = "How much is the premium plan?"
MOST_SECONDS = 86_400
WAKE_SECONDS = 30.0
STEP_SECONDS = 20.0
SPEECH_LEVEL = 0.02  # peak of agent audio that counts as heard
TONE_FRAMES = 25
NO_KEY = "no key"  # nothing is looked up there, by its owner's choice


class CheckError(EngineError):
    """A check did not pass; the text says what was seen and expected."""


class ServerCheck:
    """The checks, in order, against one server; what they count and measure."""

    def __init__(
        self, url: str, token: str | None, wav: str | None, wait: float = WAKE_SECONDS
    ) -> None:
        self.socket = api_url(url)
        self.base = base_url(url)
        self.token = token
        self.wav = wav
        self.wait = wait
        self.passed, self.failed = 0, 0
        self.times: dict[str, float] = {}

    async def run(self) -> None:
        checks: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("/healthz answers 200", self._health),
            ("the page is served, or there is none", self._page),
            ("/voices lists names", self._voices),
            ("handshake, and 0x07 is heard at a natural pace", self._say),
            ("audio goes both ways, a frame for a frame", self._audio),
            ("a ping comes back", self._ping),
            ("a wrong parameter is explained and closed", self._error),
            ("ask is answered, or refused where routing is off", self._ask),
        ]
        for name, check in checks:
            try:
                async with asyncio.timeout(max(self.wait, WAKE_SECONDS) + STEP_SECONDS):
                    await check()
                self.passed += 1
                print(f"pass  {name}", flush=True)
            except (EngineError, aiohttp.ClientError, OSError) as error:
                self.failed += 1
                print(f"FAIL  {name}: {str(error) or 'no answer in time'}", flush=True)

    def _client(self, **query: object) -> Client:
        return Client(self.socket, token=self.token, **query)

    async def _get(self, path: str) -> tuple[int, str]:
        cookies = {"personaplex_token": self.token} if self.token else None
        async with (
            aiohttp.ClientSession(cookies=cookies) as http,
            http.get(self.base + path, ssl=trust_own(self.base)) as answer,
        ):
            return answer.status, await answer.text()

    async def _get_ready(self, path: str) -> tuple[int, str]:
        """The answer, once it says neither "no server yet" nor "not yet"; the last one in time."""
        deadline = time.monotonic() + self.wait
        while True:
            try:
                status, body = await self._get(path)
                over = status != 503 or '"failed"' in body
            except aiohttp.ClientConnectionError:
                if time.monotonic() > deadline:
                    raise
                over = False
            if over or time.monotonic() > deadline:
                return status, body
            await asyncio.sleep(1)

    async def _health(self) -> None:
        status, body = await self._get_ready("/healthz")
        _expect(status == 200, f"got {status} {body[:200]}, expected 200 within {self.wait:g} s")

    async def _page(self) -> None:
        status, body = await self._get_ready("/")
        if status == 404:
            print("      no page here, as with engine serve")
            return
        _expect(status == 200 and "<html" in body.lower(), f"got {status} and no html")

    async def _voices(self) -> None:
        status, body = await self._get("/voices")
        _expect(status == 200 and body.startswith('["'), f"got {status} {body[:80]}")

    async def _say(self) -> None:
        started = time.monotonic()
        async with self._client() as client:
            await client.say(SENTENCE)
            over = ("done", "cancelled")
            seen = await _read_until(client, lambda m: _has_state(m, "say", over))
        ready = next((m for m in seen if m.kind is Kind.HANDSHAKE), None)
        _expect(ready, "no 0x00")
        word = next((m for m in seen if m.kind is Kind.TEXT), None)
        _expect(word, "no text")
        loud = (m for m in seen if m.pcm is not None and np.abs(m.pcm).max() > SPEECH_LEVEL)
        heard = next((m for m in loud if m.at >= word.at), None)
        _expect(heard, "the text was sent but no sound")
        said = "".join(m.text for m in seen if m.kind is Kind.TEXT and m.at >= word.at)
        _expect(SENTENCE.split()[-1] in said, f"heard {said!r}, expected the whole sentence")
        words = len(SENTENCE.split())
        minutes = (seen[-1].at - word.at) / 60
        self.times |= {
            "connect_s": ready.at - started,
            "first_word_s": word.at - ready.at,
            "first_sound_s": heard.at - ready.at,
            "words_per_minute": words / minutes,
        }
        _expect(60 < words / minutes < 260, f"{words / minutes:.0f} words per minute")

    async def _audio(self) -> None:
        samples: list[int] = []

        def enough(message: Message) -> bool:
            samples.append(0 if message.pcm is None else len(message.pcm))
            return sum(samples) >= TONE_FRAMES * FRAME_SAMPLES

        hum = 0.1 * np.sin(np.arange((TONE_FRAMES + 12) * FRAME_SAMPLES) * 0.05)
        async with self._client() as client:
            listening = asyncio.create_task(_read_until(client, enough))
            await asyncio.sleep(0)
            await send_wav(client, read_wav(self.wav) if self.wav else hum.astype(np.float32))
            async with asyncio.timeout(STEP_SECONDS):
                await listening

    async def _ping(self) -> None:
        async with self._client() as client:
            started = time.monotonic()
            await client.send(Kind.PING, b"check")
            await _read_until(client, lambda m: m.kind is Kind.PING)
            self.times["ping_s"] = time.monotonic() - started

    async def _error(self) -> None:
        async with self._client(seed="x") as client:
            seen = await _read_until(client, lambda m: m.kind is Kind.ERROR)
        _expect("seed" in seen[-1].text, f"got {seen[-1].text!r}, expected the parameter's name")

    async def _ask(self) -> None:
        async with self._client(routing=1) as client:
            await _read_until(client, lambda m: m.kind is Kind.HANDSHAKE)
            await client.send_metadata(type="ask", text=QUESTION)
            over = ("done", "failed", "stale")
            seen = await _read_until(
                client, lambda m: m.kind is Kind.ERROR or _has_state(m, "route", over)
            )
        last = seen[-1]
        if last.kind is Kind.ERROR:
            _expect(last.text.startswith("ask:"), f"got {last.text!r}")
            return
        state, reason = last.data["state"], last.data.get("reason") or ""
        print(f"      route: {state} {reason}".rstrip())
        _expect(state == "done" or reason == NO_KEY, f"the route {state}: {reason}")


def _expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise CheckError(otherwise)


def _has_state(message: Message, kind: str, states: tuple[str, ...]) -> bool:
    return message.data.get("type") == kind and message.data.get("state") in states


async def _read_until(client: Client, over: Callable[[Message], bool]) -> list[Message]:
    """Messages up to the wanted one. Raises CheckError if the socket closes or time runs out."""
    seen: list[Message] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAKE_SECONDS):
            async for message in client.messages():
                seen.append(message)
                if over(message):
                    return seen
    errors = [message.text for message in seen if message.kind is Kind.ERROR]
    raise CheckError(errors[-1] if errors else f"no answer after {len(seen)} messages")


def seconds(text: str) -> float:
    """The type of an option: up to a day, and none for a server that must be there."""
    value = float(text)
    if not 0 <= value <= MOST_SECONDS:  # NaN fails too, and would wait for ever
        raise argparse.ArgumentTypeError(f"it is {text}; use 0 to {MOST_SECONDS}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="for example http://localhost:8998")
    parser.add_argument("--token", help="shared secret of the server")
    parser.add_argument("--input", metavar="WAV", help="speak this instead of a hum")
    parser.add_argument(
        "--wait", metavar="SECONDS", type=seconds, default=WAKE_SECONDS,
        help="for a server that starts or wakes up (default %(default)g)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    check = ServerCheck(args.url, args.token, args.input, args.wait)
    asyncio.run(check.run())
    for name, value in check.times.items():
        print(f"      {name} {value:.2f}")
    seconds = time.monotonic() - started
    print(f"{check.passed} passed, {check.failed} failed in {seconds:.0f} s")
    return 1 if check.failed else 0
