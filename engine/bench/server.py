"""How fast the server is around its backend: paced conversations over loopback sockets.

Server and clients are processes of their own on this machine. Measured from the moment a whole
user frame has been written to the socket until its agent frame has been read, so it holds the
client's own share as well; the server's own figure is read from its /metrics and `stats`.
"""

import argparse
import asyncio
import json
import sys
import time
from typing import Any

import numpy as np

from engine.bench.clients import PacedTalk, converse, voice
from engine.bench.process import Server
from engine.bench.report import duration, positive, save, table
from engine.config import FRAME_SECONDS, LATE_SECONDS


async def _all(args: argparse.Namespace, url: str) -> list[PacedTalk]:
    pcm = voice()
    spread = FRAME_SECONDS * 5 / args.conversations  # phases all over the frame, as people have
    return await asyncio.gather(
        *(
            converse(url, args.seconds, i * spread, pcm, args.format)
            for i in range(args.conversations)
        )
    )


def measure(args: argparse.Namespace, server: Server) -> dict[str, Any]:
    """One run; the row of the table."""
    before, started = server.cpu_seconds(), time.monotonic()
    talks = asyncio.run(_all(args, server.url))
    cpu = (server.cpu_seconds() - before) / (time.monotonic() - started)
    latencies = np.array([value for talk in talks for value in talk.latencies])
    step = np.array([[t.stats["step_ms_p50"], t.stats["step_ms_p99"]] for t in talks]).mean(axis=0)
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e3
    return {
        "conversations": args.conversations,
        "format": args.format,
        "frames": len(latencies),
        "answer_ms_p50": float(p50),
        "answer_ms_p99": float(p99),
        "step_ms_p50": float(step[0]),
        "step_ms_p99": float(step[1]),
        "late_frames": sum(talk.stats["late_frames"] for talk in talks),
        "late_at_client": int((latencies > LATE_SECONDS).sum()),
        "server_cores": cpu,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--conversations", type=positive, default=16)
    parser.add_argument("--seconds", type=duration, default=30.0)
    parser.add_argument("--format", choices=("pcm16", "opus"), default="pcm16")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--transcribe", help="recogniser to run beside the model")
    parser.add_argument("--json", help="where to write the result")


def run(args: argparse.Namespace) -> int:
    options = ["--model", args.model, "--slots", str(args.conversations)]
    options += ["--transcribe", args.transcribe] if args.transcribe else []
    with Server(options) as server:
        row = measure(args, server)
        serve_seconds = server.ready_seconds
    demo = [sys.executable, "-m", "demo"]
    with Server(["--model", args.model], command=demo) as server:
        page_seconds = server.ready_seconds
    print(table([row]))
    print(f"start-up: serve ready in {serve_seconds:.1f} s, demo in {page_seconds:.1f} s")
    result = {"runs": [row], "serve_ready_s": serve_seconds, "demo_ready_s": page_seconds}
    print("written:", save("server", json.loads(json.dumps(result)), args.json))
    return 0
