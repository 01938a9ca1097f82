"""A stand-in for the text model's API: real HTTP on loopback, with every way to misbehave.

For benchmarks, tests and trying things out on a laptop: `python -m engine.evals.standin`, then
start the server with DEEPSEEK_API_KEY=x DEEPSEEK_BASE_URL=http://127.0.0.1:8996. It knows a few
answers by heart and understands nothing.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from aiohttp import web

TOKEN_SECONDS = 0.02  # between two words of an answer
FOREVER_SECONDS = 3600.0
KNOWN = {
    "premium": "Premium costs $14 a month, and that includes 20 hours of audio. "
    "Billed yearly, it is $10 a month.",
    "business": "Business costs $21 a month with 40 hours of audio, or $15 if you pay yearly.",
    "trial": "Yes, there is a free trial of 20 minutes, and it needs no credit card.",
    "language": "It transcribes more than 50 languages, Turkish and German among them.",
    "accura": "On clean audio it is right in 95–98% of the words.",
}
UNKNOWN = "I am not sure about that, but the support team will know more."


class Manner(Enum):
    """How an answer comes. What other APIs do as a matter of course stands in the second line."""

    WHOLE, CUT, SILENT, STALL, GARBAGE, ENDLESS, EMPTY, LONG_LINE, HOLLOW = (
        auto() for _ in range(9)
    )
    NO_DONE, PLAIN, AZURE, THINKING, REASONING, OUT_OF_TOKENS = (auto() for _ in range(6))


@dataclass(frozen=True, slots=True)
class Reply:
    """What the API does with one request."""

    text: str = UNKNOWN
    delay: float = 0.0  # seconds before the first word
    status: int = 200
    manner: Manner = Manner.WHOLE
    pace: float = TOKEN_SECONDS
    headers: dict[str, str] = field(default_factory=dict)


def by_heart(question: str) -> Reply:
    """Half a second, then what is known about the first keyword."""
    for word, text in KNOWN.items():
        if word in question.lower():
            return Reply(text, delay=0.5)
    return Reply(delay=0.5)


@dataclass
class StandIn:
    """`async with StandIn(replies) as api:` … `api.url`, `api.requests`."""

    replies: Callable[[str], Reply] = by_heart  # by the last message of the request
    port: int = 0
    prefix: str = ""  # of the path, as `/v1`
    requests: list[dict[str, Any]] = field(default_factory=list)  # bodies, in order
    peers: set[Any] = field(default_factory=set)  # connections that brought a request
    keys: list[str] = field(default_factory=list)  # Authorization headers, in order
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # a request has come
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)  # a client left an answer

    async def __aenter__(self) -> "StandIn":
        app = web.Application()
        app.router.add_post(f"{self.prefix}/chat/completions", self._answer)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.peers.add(request.transport.get_extra_info("peername"))
        self.keys.append(request.headers.get("Authorization", ""))
        self.asked.set()
        reply = self.replies(body["messages"][-1]["content"])
        if reply.status != 200:
            error = {"error": {"message": "no"}}
            return web.json_response(error, status=reply.status, headers=reply.headers)
        if reply.manner is Manner.PLAIN:
            message = {"role": "assistant", "content": reply.text}
            return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})
        try:
            if reply.manner is Manner.SILENT:
                await asyncio.sleep(FOREVER_SECONDS)
            return await self._stream(request, reply)
        except (ConnectionError, asyncio.CancelledError):
            self.hung_up.set()
            raise

    async def _stream(self, request: web.Request, reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": keep-alive\n\n")
        await asyncio.sleep(reply.delay)
        async for event in _events(reply):
            await response.write(b"data: " + event + b"\n\n")
            await asyncio.sleep(reply.pace)
        if reply.manner is Manner.CUT:
            request.transport.abort()
        elif reply.manner is Manner.STALL:
            await asyncio.sleep(FOREVER_SECONDS)
        return response


async def _events(reply: Reply) -> AsyncIterator[bytes]:
    """The payloads of the stream, one a word."""
    manner = reply.manner
    if manner is Manner.GARBAGE:
        yield b'{"choices": [{"delta": {"content": "Prem'
        return
    if manner is Manner.LONG_LINE:
        yield _delta("x" * 4_000_000)
        return
    if manner is Manner.AZURE:
        yield b'{"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}'
        yield b'{"choices": [{"index": 0, "delta": null, "finish_reason": null}]}'
    if manner is Manner.REASONING:
        for word in ("They ", "want ", "a ", "price."):
            yield _delta(None, reasoning_content=word)
    yield _delta("")
    if manner is Manner.THINKING:
        for part in ("<th", "ink>They want", " a price.</", "think>\n\n"):
            yield _delta(part)
    while True:
        for word in reply.text.split(" "):
            if manner is not Manner.EMPTY:
                yield _delta("" if manner is Manner.HOLLOW else f"{word} ")
        if manner not in (Manner.ENDLESS, Manner.HOLLOW):
            break
    if manner in (Manner.CUT, Manner.STALL):
        return
    yield _delta("", finish="length" if manner is Manner.OUT_OF_TOKENS else "stop")
    if manner is not Manner.NO_DONE:
        yield b"[DONE]"


def _delta(text: str | None, finish: str | None = None, **more: str) -> bytes:
    delta = {"role": "assistant", "content": text, **more}
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode()


async def _serve() -> None:
    async with StandIn(port=8996) as api:
        print(f"stand-in for the text model on {api.url}", flush=True)
        await asyncio.sleep(FOREVER_SECONDS * 24)


if __name__ == "__main__":
    asyncio.run(_serve())
