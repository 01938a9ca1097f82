"""How fast the server is around its backend, and what a client that floods it does to the others.

Paced conversations over loopback sockets, as `capacity` plays and measures them. With --hostile
they are measured a second time beside a client, in a process of its own, that sends everything it
may as fast as it can. Server and clients share this machine, so a row holds the clients' share too.
"""

import argparse
import asyncio
import multiprocessing
import time
from typing import Any

from engine.bench.capacity import measure_row
from engine.bench.clients import PacedTalk, beside, hear
from engine.bench.process import Server
from engine.bench.report import duration, positive, save, table
from engine.errors import EngineError
from engine.wire.client import Client
from engine.wire.protocol import Kind

FLOOD_AFTER_SECONDS = 1.0  # the neighbours are there by then
BURST_SECONDS = 0.25  # of one kind of message, then comes the next
LONG_TEXT = ("a flood of words " * 118)[:2000]  # the longest that is taken


async def flood(url: str, seconds: float) -> None:
    """Send bursts of every kind that costs the server something; come back when hung up on."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        talk = PacedTalk()
        try:
            async with Client(url) as client, beside(hear(client, talk)):
                await talk.ready.wait()
                await send_bursts(client, talk, ends)
        except EngineError:
            await asyncio.sleep(BURST_SECONDS)  # there was no slot: try again


async def send_bursts(client: Client, talk: PacedTalk, ends: float) -> None:
    sends = [
        lambda: client.say(LONG_TEXT),
        lambda: client.send_metadata(type="set", text_temperature=0.5),
        lambda: client.send_metadata(type="cancel"),
        lambda: client.send(Kind.PING),
        lambda: client.send(Kind.CONTROL, bytes([3])),  # restart
    ]
    while True:
        for send in sends:
            burst_ends = time.monotonic() + BURST_SECONDS
            while time.monotonic() < burst_ends:
                if talk.over or time.monotonic() > ends:
                    return
                await send()
                await asyncio.sleep(0)  # the answers are read, too


def flood_later(url: str, seconds: float) -> None:
    """The hostile client's process."""
    time.sleep(FLOOD_AFTER_SECONDS)
    asyncio.run(flood(url, seconds))


def measure_beside_a_flood(args: argparse.Namespace, server: Server) -> dict[str, Any]:
    """The same conversations while one more client floods the server. Raises EngineError."""
    context = multiprocessing.get_context("spawn")
    hostile = context.Process(target=flood_later, args=(server.url, args.seconds), daemon=True)
    hostile.start()
    try:
        row = measure_row(server, args.conversations, args.seconds)
    finally:
        hostile.terminate()
        hostile.join()
    if hostile.exitcode > 0:  # neither ended by itself nor by us
        raise EngineError("the flooding client broke: its neighbours saw no flood")
    return row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--conversations", type=positive, default=16)
    parser.add_argument("--seconds", type=duration, default=30.0)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--transcribe", help="recogniser to run beside the model")
    parser.add_argument(
        "--hostile", action="store_true", help="once more beside a client that floods the server"
    )


def run(args: argparse.Namespace) -> int:
    options = ["--model", args.model, "--slots", str(args.conversations + args.hostile)]
    options += ["--transcribe", args.transcribe] if args.transcribe else []
    with Server(options) as server:
        rows = [measure_row(server, args.conversations, args.seconds)]
        if args.hostile:
            rows.append({**measure_beside_a_flood(args, server), "flood": True})
        ready_seconds = server.ready_seconds
    print(table(rows))
    result: dict[str, Any] = {"runs": rows, "serve_ready_s": ready_seconds}
    if args.hostile and all(row["answer_ms_p99"] for row in rows):
        for percentile in ("p50", "p99"):
            name = f"answer_ms_{percentile}"
            result[f"{percentile}_ratio"] = rows[1][name] / rows[0][name]
        print(
            f"beside a flood the answers take {result['p50_ratio']:.2f} times as long at p50, "
            f"{result['p99_ratio']:.2f} times at p99"
        )
    save("server", result, args.json)
    return 0
