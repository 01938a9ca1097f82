"""Random bytes at every layer of a socket, drawn from a seed.

The suite plays a slice of it (test_fuzz.py). The long run, beside a client that talks at the pace
of speech, prints what it cost: `python -m tests.wire.fuzz --messages 100000 --connections 5000`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import struct
import sys
import time
from collections import Counter
from typing import Any

from engine.bench.capacity import HANDLES, measure_growth
from engine.bench.clients import converse, voice
from engine.bench.process import Server
from engine.wire.protocol import Kind
from engine.wire.realtime import HANDLERS
from tests.wire.raw import CLOSE, PING, PONG, TEXT, UPGRADE, Raw, frame, raw, request

PARALLEL = 8
SETTLE_SECONDS = 3.0
LETTERS = "aé漢😀\u202e\u0000\u2028 !.,0123456789$%€\n\ud7ff"
PCM = "format=pcm16"
QUERIES = (
    *("", "events=1&format=pcm16", "format=mp3", "seed=-1&routing=1", "%ff=%00&&="),
    *("voice_prompt=../../x", "text_prompt=" + "x" * 900, "text_topk=1e99", "events=1"),
)


def draw_text(rng: random.Random) -> str:
    return "".join(rng.choices(LETTERS, k=rng.choice((0, 1, 5, 80, 500, 2000, 2001))))


def draw_value(rng: random.Random, depth: int = 0) -> object:
    """Something that JSON can hold, not too deep."""
    simple = (None, True, 0, -1, 1e308, 10**30, "queue", "replace", draw_text(rng)[:50])
    if depth > 3 or rng.random() < 0.7:
        return rng.choice(simple)
    if rng.random() < 0.5:
        return [draw_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {draw_text(rng)[:5]: draw_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def draw_json(rng: random.Random) -> bytes:
    names = ("type", "text", "mode", "routing", "text_topk", "text_temperature", "id")
    data = {name: draw_value(rng) for name in rng.sample(names, rng.randrange(len(names)))}
    if rng.random() < 0.8:
        data["type"] = rng.choice(("say", "ask", "cancel", "set", "dance"))
    if rng.random() < 0.5:
        data["text"] = draw_text(rng)
    return json.dumps(data, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")


def draw_payload(rng: random.Random, pcm: bool) -> bytes:
    """One message of `/api`: right, nearly right, or noise. Where no pcm goes, audio is rare."""
    kind = rng.choice((*range(8), 8, 99, 255))
    match rng.randrange(8):
        case 0:
            return b""
        case 1:
            return bytes([Kind.METADATA]) + draw_json(rng)
        case 2:
            return bytes([Kind.SAY]) + draw_text(rng).encode(errors="surrogatepass")
        case 3:
            return bytes([Kind.CONTROL, rng.randrange(6)])
        case 4 | 5 if not pcm and rng.random() < 0.9:  # it ends the conversation
            return bytes([Kind.PING]) + rng.randbytes(20)
        case 4:
            return bytes([Kind.AUDIO]) + rng.randbytes(2 * rng.choice((0, 1, 24, 480, 1920)))
        case 5 if not pcm:
            return bytes([Kind.AUDIO]) + b"OggS" + rng.randbytes(rng.randrange(200))
        case 6:
            return bytes([kind]) + rng.randbytes(rng.choice((0, 1, 60, 130, 9000, 70_000)))
    data = bytearray(bytes([Kind.METADATA]) + draw_json(rng))
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


REALTIME = {  # fields of `/v1/realtime`'s events -> what is nearly right; (): an object
    **dict.fromkeys(("session", "item", "response", "input", "output"), ()),
    **dict.fromkeys(("turn_detection", "transcription", "metadata", "format", "tracing"), ()),
    **dict.fromkeys(("instructions", "text", "transcript"), ("You are Ann.", "*")),
    **dict.fromkeys(("id", "item_id", "event_id", "response_id"), ("one", "two", "")),
    "type": ("message", "realtime", "input_text", "output_audio", "input_audio", "audio/pcmu"),
    "role": ("user", "assistant", "system"),
    "audio": ((), "AAAA", "YWJj", "%"),
    "voice": ("ash", "NATM1", "Bob", {"id": "sage"}),
    "output_modalities": (["audio"], ["text"]),
    "create_response": (True, False),
    "temperature": (0.5, 3),
    "audio_end_ms": (0, 400, -1),
    "tools": ([], [{}]),
}


def draw_fields(rng: random.Random, depth: int = 0) -> dict[str, object]:
    """An object of an event: known names, with what is nearly right, anything, or objects."""
    drawn: dict[str, object] = {}
    for name in rng.sample(list(REALTIME), rng.randrange(8)):
        value = rng.choice(REALTIME[name] or ((),)) if rng.random() < 0.9 else draw_value(rng)
        drawn[name] = draw_fields(rng, depth + 1) if value == () and depth < 4 else value
    if rng.random() < 0.3:
        drawn["content"] = [draw_fields(rng, 4) for _ in range(rng.randrange(3))]
    return drawn


def draw_event(rng: random.Random) -> bytes:
    """One message of `/v1/realtime` as a frame: right, nearly right, or noise."""
    if rng.random() < 0.02:
        return draw_frames(rng, pcm=False)
    kind = rng.choice((*HANDLERS, "input_audio_buffer.append", "dance"))
    data = json.dumps({**draw_fields(rng), "type": kind}).encode()
    return frame(data if rng.random() < 0.97 else data[: rng.randrange(len(data))], TEXT)


def draw_frames(rng: random.Random, pcm: bool) -> bytes:
    """One message as frames: nearly always legal ones, or a connection would end with its first."""
    payload, chance = draw_payload(rng, pcm), rng.random()
    if chance < 0.87:
        return frame(payload)
    if chance < 0.96:  # in pieces, with a ping between them
        at = rng.randrange(len(payload) + 1)
        begun, rest = frame(payload[:at], fin=False), frame(payload[at:], 0)
        return begun + frame(rng.randbytes(rng.randrange(126)), rng.choice((PING, PONG))) + rest
    match rng.randrange(7):
        case 0:
            return frame(payload, masked=False)
        case 1:
            return frame(payload, opcode=rng.choice((3, 7, 11, 15)))
        case 2:
            return frame(payload, opcode=0)  # goes on with what never began
        case 3:
            return frame(draw_text(rng).encode(errors="surrogatepass"), TEXT)
        case 4:
            return frame(struct.pack(">H", rng.randrange(65_536)) + rng.randbytes(3), CLOSE)
        case 5:
            return b"\x82\xff" + rng.randbytes(8) + bytes(4)  # a length that cannot be
    return rng.randbytes(rng.randrange(1, 200))


async def listen(line: Raw, faults: list[str]) -> None:
    """Read until the end; note what the server calls its own fault."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        while True:
            opcode, payload = await line.next()
            if payload.startswith(b"\x05internal error") or b'"internal_error"' in payload:
                faults.append(payload.decode())
            if opcode == CLOSE:
                return


async def fuzz_once(url: str, rng: random.Random, messages: int, faults: list[str]) -> int:
    """One connection; the messages that were sent before it ended."""
    sent = 0
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        async with raw(url) as line:
            if rng.random() < 0.03:  # not even HTTP
                await line.send(rng.randbytes(200) + b"\r\n\r\n")
                return 1
            query = rng.choice(QUERIES) if rng.random() < 0.3 else PCM
            realtime = rng.random() < 0.3
            ours = "/v1/realtime" if realtime else rng.choice(("/api", "/api/chat"))
            path = f"{ours}?{query}"
            address = f"10.{rng.randrange(256)}.{rng.randrange(256)}.1"  # as a proxy would tell it
            head = {**UPGRADE, "X-Forwarded-For": address}
            await line.send(request(path, rng.choice(("GET",) * 19 + ("HEAD",)), **head))
            if b" 101 " not in await line.read_head():
                return 1
            listening = asyncio.create_task(listen(line, faults))
            try:
                while sent < messages and not listening.done():
                    await line.send(draw_event(rng) if realtime else draw_frames(rng, PCM in query))
                    sent += 1
                    if rng.random() < 0.3:
                        await asyncio.sleep(0)
                if rng.random() < 0.5:
                    await line.send(frame(b"\x03\xe8", CLOSE))
                    await asyncio.wait([listening], timeout=2)
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
    return max(1, sent)


async def fuzz(
    url: str, seed: int, messages: int, connections: int, counts: Counter[str] | None = None
) -> tuple[Counter[str], list[str]]:
    """(what was sent, faults), in at least so many connections and messages."""
    counts = Counter() if counts is None else counts
    faults: list[str] = []
    each = max(1, messages // connections)

    async def work(n: int) -> None:
        rng = random.Random(f"{seed} {n}")
        while counts["connections"] < connections or counts["messages"] < messages:
            counts["connections"] += 1
            longest = rng.choice((each // 4 + 1, each, 4 * each))
            sent = await fuzz_once(url, rng, longest, faults)
            counts["messages"] += sent  # not in one: others count while it waits

    await asyncio.gather(*(work(n) for n in range(PARALLEL)))
    return counts, faults


async def fuzz_and_tell(url: str, seed: int, messages: int, connections: int) -> None:
    """The attacker's process: prints what it has sent, every second, and last the faults."""
    counts: Counter[str] = Counter()
    fuzzing = asyncio.create_task(fuzz(url, seed, messages, connections, counts))
    while not (await asyncio.wait([fuzzing], timeout=1.0))[0]:
        print(json.dumps(counts), flush=True)
    print(json.dumps({**counts, "faults": fuzzing.result()[1]}), flush=True)


async def measure(server: Server, seed: int, messages: int, connections: int) -> bool:
    """Fuzz beside one paced talk, from a process of its own, which gives way to that talk.

    Whether everything held. Late frames only a quiet machine has none of.
    """
    await converse(server.url, 2.0, 0.0, voice())
    server.wait_until_empty()
    before, sizes, began = server.sizes(), [], time.monotonic()
    counts: dict[str, Any] = {}
    given = ["--url", server.url, *("--seed", f"{seed}", "--messages", f"{messages}")]
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.wire.fuzz", *given, "--connections", f"{connections}"),
        stdout=asyncio.subprocess.PIPE,
    )

    async def follow() -> None:
        async for line in attacker.stdout:
            counts.update(json.loads(line))

    fuzzing = asyncio.create_task(follow())
    talks = []
    while not fuzzing.done():
        talks.append(await converse(server.url, 10.0, 0.0, voice()))
        sizes.append(server.sizes())
        shown = ", ".join(
            f"{sizes[-1][name]:.0f} {name}" for name in ("own_mb", "files", "threads")
        )
        print(f"{time.monotonic() - began:.0f} s: {shown}, {talks[-1].late} late", end="")
        print(f" ({talks[-1].late_by_server} by the server), {counts}", flush=True)
    await fuzzing
    faults = counts.get("faults", ["the attacker broke"])
    left = server.wait_until_empty()
    await asyncio.sleep(SETTLE_SECONDS)
    after, grown = server.sizes(), measure_growth([size["own_mb"] for size in sizes])
    log = os.pread(server.log.fileno(), 1 << 30, 0).decode(errors="replace")
    errors = [line for line in log.splitlines() if "Traceback" in line or " ERROR " in line]
    latencies = sorted(1e3 * latency for talk in talks for latency in talk.latencies)
    more = {name: after[name] - before[name] for name in ("files", "threads")}
    ended = [talk.error for talk in talks if talk.over]
    print(f"{counts['messages']} messages, {counts['connections']} connections, seed {seed}")
    print(f"neighbour: {sum(len(talk.sent_at) for talk in talks)} frames, ", end="")
    print(f"{sum(talk.late for talk in talks)} late, ", end="")
    print(f"{sum(talk.late_by_server for talk in talks)} by the server's clock, ended: {ended}")
    print("  ".join(f"p{p} {latencies[len(latencies) * p // 100]:.1f} ms" for p in (50, 95, 99)))
    print(f"told the client {faults[:3]}; in the log {len(log)} bytes, {len(errors)} tracebacks")
    print("\n".join(errors[:5]))
    print(f"own_mb grew by {grown:.1f}, second quarter to last; left over: {left} slots, {more}")
    return not (faults or errors or left or ended or grown > 50 or max(more.values()) > HANDLES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--url", help="only fuzz this server, and print what was sent")
    args = parser.parse_args()
    if args.url:
        os.nice(19)
        asyncio.run(fuzz_and_tell(args.url, args.seed, args.messages, args.connections))
        return 0
    options = ["--model", args.model, "--slots", str(PARALLEL + 8)]
    with Server(options) as server:
        held = asyncio.run(measure(server, args.seed, args.messages, args.connections))
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
