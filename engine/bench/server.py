"""How fast the server is around its backend: paced conversations over loopback sockets.

Server and clients are processes of their own on this machine. Measured from the moment a whole
user frame has been written to the socket until its agent frame has been read, so it holds the
client's own share as well; the server's own figure is read from its /metrics and `stats`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.bench.report import save, table
from engine.config import FRAME_SAMPLES, FRAME_SECONDS, LATE_SECONDS, SAMPLE_RATE
from engine.wire.client import Client
from engine.wire.protocol import Kind

CHUNKS = 4  # a user frame is sent in pieces of 20 ms, as browsers send
CHUNK_SAMPLES = FRAME_SAMPLES // CHUNKS
READY_SECONDS = 120
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A server process of our own."""

    options: list[str]
    port: int = 8997
    command: list[str] = field(default_factory=lambda: [sys.executable, "-m", "engine", "serve"])
    ready_seconds: float = 0.0

    def __enter__(self) -> "Server":
        started = time.monotonic()
        arguments = ["--port", str(self.port), "--host", "127.0.0.1", *self.options]
        self.process = subprocess.Popen(
            [*self.command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not self._is_ready():
            assert self.process.poll() is None, f"the server ended: {self.process.returncode}"
            assert time.monotonic() - started < READY_SECONDS, "the server does not get ready"
            time.sleep(0.02)
        self.ready_seconds = time.monotonic() - started
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def cpu_seconds(self) -> float:
        """Processor time the process has used, user and system."""
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as file:
            entries = file.read().rsplit(")", 1)[1].split()
        return (int(entries[11]) + int(entries[12])) / TICKS_PER_SECOND


@dataclass
class Talk:
    """What one paced conversation measured."""

    latencies: list[float] = field(default_factory=list)  # seconds, per frame
    stats: dict[str, Any] = field(default_factory=dict)
    sent_at: list[float] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)


async def converse(url: str, seconds: float, delay: float, pcm: np.ndarray, fmt: str) -> Talk:
    """Talk at the pace of speech for `seconds`, starting after `delay`."""
    talk = Talk()
    await asyncio.sleep(delay)
    async with Client(url, fmt=fmt) as client:
        hearing = asyncio.create_task(_hear(client, talk))
        await talk.ready.wait()
        start = time.monotonic()
        for n in range(int(seconds / FRAME_SECONDS) * CHUNKS):
            await asyncio.sleep(
                max(0.0, start + (n + 1) * FRAME_SECONDS / CHUNKS - time.monotonic())
            )
            at = n * CHUNK_SAMPLES % (len(pcm) - CHUNK_SAMPLES)
            await client.hear(pcm[at : at + CHUNK_SAMPLES])
            if n % CHUNKS == CHUNKS - 1:
                talk.sent_at.append(time.monotonic())
        await asyncio.sleep(0.5)
        hearing.cancel()
    return talk


async def _hear(client: Client, talk: Talk) -> None:
    """Match the n-th agent frame with the n-th user frame."""
    samples = 0.0
    async for message in client.messages():
        if message.kind is Kind.HANDSHAKE:
            talk.ready.set()
        elif message.kind is Kind.METADATA and message.data["type"] == "stats":
            talk.stats.update(message.data)
        elif message.pcm is not None:
            samples += len(message.pcm)
            frame = int(samples / FRAME_SAMPLES + 0.5) - 1
            if len(talk.latencies) <= frame < len(talk.sent_at):
                talk.latencies.append(message.at - talk.sent_at[frame])


def voice(seconds: float = 20.0) -> np.ndarray:
    """Something like speech: noise in syllables of a quarter second, float32 [n]."""
    rng = np.random.default_rng(0)
    n = int(seconds * SAMPLE_RATE)
    envelope = np.clip(np.sin(np.arange(n) * 2 * np.pi * 2 / SAMPLE_RATE), 0, 1)
    pauses = np.sin(np.arange(n) * 2 * np.pi * 0.15 / SAMPLE_RATE) > -0.3
    return (rng.standard_normal(n) * 0.1 * envelope * pauses).astype(np.float32)


async def _all(args: argparse.Namespace, url: str) -> list[Talk]:
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
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0)
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
    with Server(["--model", args.model], port=8996, command=demo) as server:
        page_seconds = server.ready_seconds
    print(table([row]))
    print(f"start-up: serve ready in {serve_seconds:.1f} s, demo in {page_seconds:.1f} s")
    result = {"runs": [row], "serve_ready_s": serve_seconds, "demo_ready_s": page_seconds}
    print("written:", save("server", json.loads(json.dumps(result)), args.json))
    return 0
