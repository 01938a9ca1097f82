"""How many conversations a server holds in time: the real server, paced clients over loopback.

The number is doubled until it does not hold, then halved in between, and the best is held for
minutes. It holds while fewer than one frame in a thousand is late (sent or heard more than 120 ms
after its user frame was complete) and 99 of 100 ticks take at most 80 ms. Where the clients
themselves lagged nothing is known of the server: the measurement is void, not a small number.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.bench.clients import PacedTalk, converse, lag, voice
from engine.bench.process import Server
from engine.bench.report import (
    add_source_arguments,
    duration,
    model_of,
    positive,
    precisions,
    save,
    serve_options,
    table,
)
from engine.errors import EngineError
from engine.hardware import has_cuda
from engine.runtime.load import TICK_LIMIT_SECONDS, WINDOW_SECONDS

LATE_SHARE = 0.001  # of the frames; at so many it does not hold any more
TICK_SECONDS, TICK_SHARE = 0.080, 0.99  # so many ticks take no longer; a bound of the histogram
JOIN_SECONDS = 0.205  # between two joins: sixteen phases all over the 80 ms of a frame
LAG_SECONDS = 0.020  # p99 of this process's own lag; above it a row says nothing of the server
WARM_UP_SECONDS = 2.0  # of one conversation before anything counts
SMALL_OPTIONS = {"slots": 2, "step_seconds": 2.0, "seconds": 5.0}
HOLDS = 3  # numbers that are tried for minutes, at most
HELD, LAGGED, SILENT = "held", "not valid: clients lag", "not valid: no frames"


class VoidError(EngineError):
    """This machine was too busy to play the clients: what it saw says nothing of the server."""


def largest(holds: Callable[[int], bool], slots: int) -> int:
    """The largest number that holds, doubled first, then halved in between; 0: not even one."""
    good, tried = 0, 1
    while holds(tried):
        good = tried
        if good == slots:
            return good
        tried = min(2 * tried, slots)
    bad = tried
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def held(holds: Callable[[int], bool], best: int, times: int = HOLDS) -> int:
    """The best number for minutes; where that fails, three quarters of it; 0: none held."""
    for _ in range(times):
        if best == 0 or holds(best):
            return best
        best = best * 3 // 4
    return 0


def verdict(row: dict[str, Any]) -> str:
    """`held`, or why a row does not count."""
    if row["client_lag_ms_p99"] > LAG_SECONDS * 1e3:
        return LAGGED
    if row["refused"] or row["broken"]:
        return "refused" if row["refused"] else "hung up"
    if not row["frames"]:
        return SILENT
    if max(row["late_server"], row["late_client"]) >= LATE_SHARE * row["frames"]:
        return "late"
    return HELD if row["ticks_in_time"] >= TICK_SHARE else "slow ticks"


async def _talk_all(
    url: str, conversations: int, seconds: float, fmt: str
) -> tuple[list[PacedTalk], list[float]]:
    """All conversations, one joining after the other, and this process's own lag."""
    pcm = voice()
    async with lag() as lags:
        talks = await asyncio.gather(
            *(converse(url, seconds, i * JOIN_SECONDS, pcm, fmt) for i in range(conversations))
        )
    return talks, lags


def measure(server: Server, conversations: int, seconds: float, fmt: str) -> dict[str, Any]:
    """So many conversations for so long; the row of the table. Raises EngineError."""
    if taken := server.wait_until_empty():
        raise EngineError(f"{taken} slots of the server were not given back; see its log")
    before, cpu, started = server.counts(), server.cpu_seconds(), time.monotonic()
    talks, lags = asyncio.run(_talk_all(server.url, conversations, seconds, fmt))
    wall, cpu = time.monotonic() - started, server.cpu_seconds() - cpu
    server.check_alive()
    counts = server.counts().since(before)
    answers = np.array([value for talk in talks for value in talk.latencies]) * 1e3
    p50, p99 = np.percentile(answers, (50, 99)).tolist() if len(answers) else (None, None)
    row = {
        "n": conversations,
        "frames": sum(len(talk.sent_at) for talk in talks),
        "late_server": counts.late,
        "late_client": sum(talk.late for talk in talks),
        "answer_ms_p50": p50,
        "answer_ms_p99": p99,
        "tick_ms_p50": counts.tick_ms(50),
        "tick_ms_p99": counts.tick_ms(99),
        "ticks_in_time": counts.share_within(TICK_SECONDS),
        "dropped": counts.dropped,
        "refused": sum(talk.refused for talk in talks),
        "broken": sum(talk.broken for talk in talks),
        "backend_share": counts.backend_seconds / wall,
        "server_cores": cpu / wall,
        "client_lag_ms_p99": float(np.percentile(lags, 99)) * 1e3,
    }
    return {**row, "verdict": verdict(row)}


class Search:
    """The rows of one server, and what they say."""

    def __init__(self, server: Server, args: argparse.Namespace, head: dict[str, Any]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._server, self._args, self._head = server, args, head
        self._open_at = 0.0  # when a server that was in overload admits again

    def steps(self, conversations: int) -> bool:
        """Whether so many hold for a moment; one hiccup of the machine is forgiven."""
        seconds = self._args.step_seconds
        if self._row(conversations, seconds)["verdict"] == HELD:
            return True
        return self._decided(self._row(conversations, seconds))

    def holds(self, conversations: int) -> bool:
        return self._decided(self._row(conversations, self._args.seconds))

    def _decided(self, row: dict[str, Any]) -> bool:
        """Whether a row held. Raises VoidError where that is not known."""
        if row["verdict"] == LAGGED:
            raise VoidError(
                f"the clients lagged {row['client_lag_ms_p99']:.0f} ms with {row['n']} at once "
                f"(p99, {LAG_SECONDS * 1e3:.0f} at most); run it where nothing else does"
            )
        if row["verdict"] == SILENT:
            raise VoidError(f"{row['n']} sent not one frame in the time given; give more seconds")
        return row["verdict"] == HELD

    def _row(self, conversations: int, seconds: float) -> dict[str, Any]:
        time.sleep(max(0.0, self._open_at - time.monotonic()))
        row = measure(self._server, conversations, seconds, self._args.format)
        if row["refused"] or row["tick_ms_p99"] > TICK_LIMIT_SECONDS * 1e3:
            self._open_at = time.monotonic() + WINDOW_SECONDS
        self.rows.append({**self._head, "seconds": seconds, **row})
        print(f"{conversations} for {seconds:g} s: {row['verdict']}", flush=True)
        return row


def capacity(args: argparse.Namespace, model: str, weights: str, kv: str) -> dict[str, Any]:
    """One server's capacity: a row per step, and the number held at the end.

    Where that is not known `held` is None and `void` says why.
    """
    with Server(serve_options(args, model, weights, kv)) as server:
        slots = server.health()["slots"]
        weights, kv = server.precision() or (weights, kv)  # the built-in voice has none
        print(f"{weights}/{kv}: {slots} slots, ready in {server.ready_seconds:.1f} s", flush=True)
        search = Search(server, args, {"weights": weights, "kv": kv})
        measure(server, 1, WARM_UP_SECONDS, args.format)
        best, void = None, None
        try:
            best = held(search.holds, largest(search.steps, slots), args.holds)
        except VoidError as error:
            void = str(error)
        ready = server.ready_seconds
    head = {"weights": weights, "kv": kv, "slots": slots, "ready_s": ready}
    return {**head, "held": best, "void": void, "seconds": args.seconds, "rows": search.rows}


def outcome(server: dict[str, Any]) -> str:
    """The line that says what was found of one server."""
    mode = f"{server['weights']}/{server['kv']}"
    if server["void"]:
        return f"{mode}: void, nothing is known of the server: {server['void']}"
    seconds = f"for {server['seconds']:g} s"
    if not server["held"]:
        tried = sorted({row["n"] for row in server["rows"]})
        return f"{mode}: none held {seconds}; tried: {', '.join(map(str, tried))}"
    return f"{mode}: {server['held']} of {server['slots']} conversations held {seconds}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    longest = 600.0 if has_cuda() else 30.0  # ten minutes: well past the wrap of the rings
    parser.add_argument(
        "--seconds", type=duration, default=longest, help="for which the best is held"
    )
    parser.add_argument("--step-seconds", type=duration, default=10.0, help="of each step before")
    parser.add_argument(
        "--holds", type=positive, default=HOLDS, help="numbers tried for so long, each smaller"
    )


def run(args: argparse.Namespace) -> int:
    """1 where a measurement is void."""
    with model_of(args) as model:
        servers = [capacity(args, model, *precision) for precision in precisions(args)]
    print(table([row for server in servers for row in server["rows"]]))
    print("\n".join(outcome(server) for server in servers))
    result = {"model": args.model or ("small" if args.small else "full"), "servers": servers}
    print("written:", save("capacity", result, args.json))
    return int(any(server["void"] for server in servers))
