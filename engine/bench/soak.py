"""Whether a server stays well for an hour: people come and go, and its memory is watched.

The real server over loopback. It fails when the server ends a conversation, when its own memory,
open files or threads grow beyond the bounds below, when a slot is not given back, or when nobody
was let in. Late frames are reported, and whether the clients lagged; `capacity` judges them.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.bench.capacity import LAG_SECONDS, LAGGED
from engine.bench.clients import Person, Tally, converse, lag, voice
from engine.bench.process import Server
from engine.bench.report import (
    add_source_arguments,
    duration,
    model_of,
    precisions,
    save,
    serve_options,
    table,
    zero_or_more,
)
from engine.hardware import has_cuda

MEMORY_MB = 100  # by which own memory may grow from the second quarter of the time to the last
DEVICE_MB = 200  # the same, of the whole device
HANDLES = 8  # open files, and threads, that may be left once everybody has gone
SAMPLES = 240  # of memory and handles, over the whole time
LONGEST_SAMPLE_SECONDS = 10.0
WARM_UP_SECONDS = 2.0
SMALL_OPTIONS = {"slots": 2, "minutes": 0.5}
WATCHED = {"own_mb": MEMORY_MB, "device_mb": DEVICE_MB}

Sample = dict[str, float]


def sample(server: Server) -> Sample:
    """Memory, open files and threads of the server now."""
    return {**server.memory(), **server.handles(), **device_memory()}


def device_memory() -> Sample:
    """Megabytes in use on the whole GPU, ours and others'; nothing without one."""
    if not has_cuda():
        return {}
    import torch

    free, total = torch.cuda.mem_get_info()
    return {"device_mb": (total - free) / 2**20}


def grown(values: Sequence[float]) -> float:
    """From the second quarter to the last, by their medians: warming up and peaks do not count."""
    quarter = max(1, len(values) // 4)
    return float(np.median(values[-quarter:]) - np.median(values[quarter : 2 * quarter] or values))


def slope(seconds: Sequence[float], values: Sequence[float]) -> float:
    """Growth per hour of a straight line through the last three quarters."""
    start = len(values) // 4
    if len(values) - start < 2:
        return 0.0
    return float(np.polyfit(seconds[start:], values[start:], 1)[0]) * 3600


def faults(result: Mapping[str, Any]) -> list[str]:
    """What is wrong, one sentence each."""
    wrong = []
    if not result["conversations"]:
        wrong.append(f"nobody was let in ({result['refused']} were refused): nothing was tried")
    if errors := result["errors"]:
        wrong.append(f"{len(errors)} conversations ended by error, the first: {errors[0]}")
    for name, bound in WATCHED.items():
        growth = result["grown"].get(name, 0.0)
        if growth > bound:
            wrong.append(f"{name} grew by {growth:.0f} while people came and went; at most {bound}")
    for name in ("files", "threads"):
        more = result["after"][name] - result["before"][name]
        if more > HANDLES:
            wrong.append(f"{more} {name} more than before, with nobody there; at most {HANDLES}")
    if result["slots_lost"]:
        wrong.append(f"{result['slots_lost']} of {result['slots']} slots were not given back")
    return wrong


async def _watch(server: Server, every: float, began: float, samples: list[Sample]) -> None:
    while True:
        await asyncio.sleep(every)
        server.check_alive()
        samples.append({"seconds": time.monotonic() - began, **sample(server)})


async def _crowd(
    server: Server, people: int, seconds: float, seed: int, fmt: str
) -> tuple[Tally, list[Sample], list[float]]:
    """Let them come and go; what they saw, what was watched, and this process's own lag."""
    began, tally, samples = time.monotonic(), Tally(), []
    every = min(LONGEST_SAMPLE_SECONDS, seconds / SAMPLES)
    watching = asyncio.create_task(_watch(server, every, began, samples))
    crowd = [Person(server.url, seed * 1000 + i, tally, fmt) for i in range(people)]
    async with lag() as lags:
        living = asyncio.gather(*(person.live(began + seconds) for person in crowd))
        await asyncio.wait({living, watching}, return_when=asyncio.FIRST_COMPLETED)
    if watching.done():  # the server is gone
        living.cancel()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    await living
    return tally, samples, lags


def soak(server: Server, people: int, seconds: float, seed: int, fmt: str) -> dict[str, Any]:
    """The whole of it on a running server. Raises EngineError if it goes away."""
    asyncio.run(converse(server.url, WARM_UP_SECONDS, 0.0, voice(), fmt))
    server.wait_until_empty()
    before, counts = sample(server), server.counts()
    tally, samples, lags = asyncio.run(_crowd(server, people, seconds, seed, fmt))
    lost = server.wait_until_empty()
    after, counts = sample(server), server.counts().since(counts)
    names = [name for name in before if name.endswith("_mb")]
    at = [each["seconds"] for each in samples]
    series = {name: [each[name] for each in samples] for name in names}
    return {
        "people": people, "seconds": seconds, "seed": seed, "slots": server.health()["slots"],
        "slots_lost": lost, "conversations": tally.conversations, "says": tally.says,
        "refused": tally.refused, "leaves": dict(tally.leaves), "errors": tally.errors,
        "frames": tally.frames, "late": counts.late, "dropped": counts.dropped,
        "tick_ms_p99": counts.tick_ms(99), "ended": dict(counts.ended),
        "client_lag_ms_p99": float(np.percentile(lags, 99)) * 1e3,
        "before": before, "after": after,
        "grown": {name: grown(values) for name, values in series.items()},
        "per_hour": {name: slope(at, values) for name, values in series.items()},
        "samples": samples,
    }  # fmt: skip


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Before, after, and how it went in between, for every thing watched."""
    return [
        {
            "watched": name,
            "before": float(result["before"][name]),
            "after": float(result["after"][name]),
            "most": float(max(each[name] for each in result["samples"])),
            "grown": result["grown"].get(name, ""),
            "per_hour": result["per_hour"].get(name, ""),
        }
        for name in result["before"]
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("--minutes", type=duration, default=60.0)
    parser.add_argument(
        "--people", type=zero_or_more, default=0, help="who come and go; 0: one a slot"
    )
    parser.add_argument("--seed", type=int, default=0, help="of when who does what")


def run(args: argparse.Namespace) -> int:
    """1 if something is wrong."""
    results, wrong = [], []
    with model_of(args) as model:
        for weights, kv in precisions(args):
            with Server(serve_options(args, model, weights, kv)) as server:
                people = args.people or server.health()["slots"]
                result = soak(server, people, args.minutes * 60, args.seed, args.format)
                weights, kv = server.precision() or (weights, kv)
            results.append({"weights": weights, "kv": kv, **result})
            wrong += [f"{weights}/{kv}: {fault}" for fault in faults(result)]
            print(summary(results[-1]))
    print("written:", save("soak", {"servers": results, "faults": wrong}, args.json))
    if wrong:
        print(f"error: {'; '.join(wrong)}", flush=True)
    return int(bool(wrong))


def summary(result: Mapping[str, Any]) -> str:
    """For people: the table and two lines."""
    who = f"{result['weights']}/{result['kv']}, {result['people']} people"
    leaves = ", ".join(f"{count} {how}" for how, count in result["leaves"].items())
    lags = result["client_lag_ms_p99"] > LAG_SECONDS * 1e3
    late = f"{result['late']} of {result['frames']} frames late"
    return "\n".join(
        (
            f"{who}, {result['seconds']:g} s",
            table(rows(result)),
            f"{result['conversations']} conversations ({leaves}), {result['says']} says, "
            f"{result['refused']} refused joins, {len(result['errors'])} errors, "
            f"{result['slots_lost']} of {result['slots']} slots lost",
            f"{late}{f' ({LAGGED})' if lags else ''}, {result['dropped']} dropped, "
            f"tick p99 {result['tick_ms_p99']:.1f} ms, client lag p99 "
            f"{result['client_lag_ms_p99']:.1f} ms",
        )
    )
