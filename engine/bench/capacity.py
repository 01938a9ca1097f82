"""Conversations on a real server over loopback: how many it holds in time, and for how long.

`capacity`: the number is doubled until it does not hold, then halved in between, and the best is
held for minutes; `--conversations 64 80` holds these numbers and searches for none. A number holds
while fewer than one frame in a thousand is late (sent or received more than 120 ms after its user
frame was complete) and 99 of 100 ticks take at most 80 ms. Where the clients themselves lagged,
nothing is known of the server: the measurement is void, not a small number.

`server`: so many conversations, one row: what the server adds around its backend.

`soak`: people come and go for an hour, and the server's memory is watched. It fails when the server
ends a conversation, when its memory, open files or threads grow beyond the bounds below, when a
slot is not given back, when a handshake took longer than a second although a slot was free, or when
nobody was let in. Late frames are reported; `capacity` judges them. With `--hostile` the floods,
newcomers and slow sockets of `bench hostile` attack beside the people, one kind after the other.
"""

import argparse
import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from engine.bench.clients import LEAVES, PacedTalk, Person, Tally, beside, converse, lag, voice
from engine.bench.process import Server
from engine.bench.report import (
    Subject,
    add_source_arguments,
    choose_model,
    duration,
    positive,
    save,
    serve_options,
    table,
)
from engine.errors import ConfigError, EngineError
from engine.runtime.choose import has_cuda
from engine.runtime.load import TICK_LIMIT_SECONDS, WINDOW_SECONDS

LATE_SHARE = 0.001  # of the frames: with this share or more a number does not hold
TICK_SECONDS, TICK_SHARE = 0.080, 0.99  # this share of ticks takes no longer; a histogram's bound
JOIN_SECONDS = 0.205  # between two joins: sixteen phases all over the 80 ms of a frame
LAG_SECONDS = 0.020  # p99 of this process's own lag; above it a row says nothing of the server
WARM_UP_SECONDS = 2.0  # of one conversation before anything counts
SMALL_OPTIONS = {"slots": 2, "step_seconds": 2.0, "seconds": 5.0}
HELD, LAGGED, SILENT = "held", "not valid: clients lag", "not valid: no frames"


class VoidError(EngineError):
    """This machine was too busy to play the clients: what it saw says nothing of the server."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    longest = 600.0 if has_cuda() else 30.0  # ten minutes: well past the wrap of the rings
    parser.add_argument(
        "--seconds", type=duration, default=longest, help="for which the best is held"
    )
    parser.add_argument("--step-seconds", type=duration, default=10.0, help="of each step before")
    parser.add_argument(
        "--holds", type=positive, default=3, help="numbers to hold, each smaller than the last"
    )
    parser.add_argument(
        "--conversations", type=positive, nargs="+", help="numbers to hold, without any search"
    )


def run(args: argparse.Namespace) -> int:
    """1 where the measurement is void."""
    with choose_model(args) as model, Server(serve_options(args, model)) as server:
        result = measure_capacity(args, server)
    print(table(result["rows"]))
    print(describe_capacity(result))
    source = args.model or ("small" if args.small else "full")
    save("capacity", {"model": source, "servers": [result]}, args.json)
    return int(bool(result["void"]))


def measure_capacity(args: argparse.Namespace, server: Server) -> dict[str, Any]:
    """A row per step, and the number held at the end.

    Where that number is not known `held` is None and `void` says why. Raises ConfigError where
    more is to be held than there are slots.
    """
    slots, search = server.health()["slots"], Search(server, args)
    weights, kv = server.precision() or (args.weights, args.kv)  # the built-in voice has none
    print(f"{weights}/{kv}: {slots} slots, ready in {server.ready_seconds:.1f} s", flush=True)
    if args.conversations and max(args.conversations) > slots:
        raise ConfigError(
            f"--conversations is {max(args.conversations)}, and the server has {slots} slots; "
            "use no more than that, or give it more with --slots"
        )
    measure_row(server, 1, WARM_UP_SECONDS)
    best, void = None, None
    try:
        if args.conversations:
            best = max((n for n in args.conversations if search.hold(n)), default=0)
        else:
            best = hold_best(search.hold, find_largest(search.step, slots), args.holds)
    except VoidError as error:
        void = str(error)
    head = {"weights": weights, "kv": kv, "slots": slots, "ready_s": server.ready_seconds}
    return {**head, "held": best, "void": void, "seconds": args.seconds, "rows": search.rows}


def describe_capacity(server: dict[str, Any]) -> str:
    mode, seconds = f"{server['weights']}/{server['kv']}", f"for {server['seconds']:g} s"
    if server["void"]:
        return f"{mode}: void, nothing is known of the server: {server['void']}"
    if not server["held"]:
        tried = sorted({row["n"] for row in server["rows"]})
        return f"{mode}: none held {seconds}; tried: {', '.join(map(str, tried))}"
    return f"{mode}: {server['held']} of {server['slots']} conversations held {seconds}"


def find_largest(holds: Callable[[int], bool], slots: int) -> int:
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


def hold_best(holds: Callable[[int], bool], best: int, times: int) -> int:
    """The best number if it holds for minutes, else three quarters of it; 0: none held."""
    for _ in range(times):
        if best == 0 or holds(best):
            return best
        best = best * 3 // 4
    return 0


class Search:
    def __init__(self, server: Server, args: argparse.Namespace) -> None:
        self.rows: list[dict[str, Any]] = []
        self._server, self._args = server, args
        self._open_at = 0.0  # when a server that was in overload admits again

    def step(self, conversations: int) -> bool:
        """Whether that many hold for a moment; one hiccup of the machine is forgiven."""
        seconds = self._args.step_seconds
        if self._add_row(conversations, seconds)["verdict"] == HELD:
            return True
        return self._decide(self._add_row(conversations, seconds))

    def hold(self, conversations: int) -> bool:
        """Whether that many hold for minutes."""
        return self._decide(self._add_row(conversations, self._args.seconds))

    def _decide(self, row: dict[str, Any]) -> bool:
        """Whether a row held. Raises VoidError where that is not known."""
        if row["verdict"] == LAGGED:
            raise VoidError(
                f"the clients lagged {row['client_lag_ms_p99']:.0f} ms with {row['n']} at once "
                f"(p99, {LAG_SECONDS * 1e3:.0f} at most); run it where nothing else does"
            )
        if row["verdict"] == SILENT:
            raise VoidError(f"{row['n']} sent not one frame in the time given; give more seconds")
        return row["verdict"] == HELD

    def _add_row(self, conversations: int, seconds: float) -> dict[str, Any]:
        time.sleep(max(0.0, self._open_at - time.monotonic()))
        row = measure_row(self._server, conversations, seconds)
        if row["refused"] or row["tick_ms_p99"] > TICK_LIMIT_SECONDS * 1e3:
            self._open_at = time.monotonic() + WINDOW_SECONDS
        self.rows.append({"seconds": seconds, **row})
        print(f"{conversations} for {seconds:g} s: {row['verdict']}", flush=True)
        return row


def measure_row(server: Server, conversations: int, seconds: float) -> dict[str, Any]:
    """Talk to the server in that many conversations; the row of the table. Raises EngineError."""
    if taken := server.wait_until_empty():
        raise EngineError(f"{taken} slots of the server were not given back; see its log")
    before = server.counts()
    talks, lags = asyncio.run(_talk_all(server.url, conversations, seconds))
    server.check_alive()
    counts = server.counts().since(before)
    answers = np.array([value for talk in talks for value in talk.latencies]) * 1e3
    p50, p99 = np.percentile(answers, (50, 99)).tolist() if len(answers) else (None, None)
    row = {
        "n": conversations, "frames": sum(len(talk.sent_at) for talk in talks),
        "late_server": counts.late, "late_client": sum(talk.late for talk in talks),
        "answer_ms_p50": p50, "answer_ms_p99": p99,
        "tick_ms_p50": counts.tick_ms(50), "tick_ms_p99": counts.tick_ms(99),
        "host_ms_p50": counts.stage_ms("host", 0.5), "host_ms_p99": counts.stage_ms("host", 0.99),
        "ticks_in_time": counts.share_within(TICK_SECONDS), "dropped": counts.dropped,
        "refused": sum(talk.over and not talk.began for talk in talks),
        "hung_up": sum(talk.over and talk.began for talk in talks),
        "renewals": counts.renewals, "late_at": describe_late(talks),
        "client_lag_ms_p99": float(np.percentile(lags, 99)) * 1e3,
    }  # fmt: skip
    return {**row, "verdict": judge_row(row)}


def describe_late(talks: Sequence[PacedTalk]) -> str:
    """When late answers were asked for: "130 s: 14, 140 s: 3", ten seconds each; "" for none."""
    began = min((talk.sent_at[0] for talk in talks if talk.sent_at), default=0.0)
    tens = Counter(int((at - began) // 10) * 10 for talk in talks for at in talk.late_at)
    return ", ".join(f"{second} s: {count}" for second, count in sorted(tens.items()))


def judge_row(row: dict[str, Any]) -> str:
    """`held`, or why a row does not count."""
    if row["client_lag_ms_p99"] > LAG_SECONDS * 1e3:
        return LAGGED
    if row["refused"] or row["hung_up"]:
        return "refused" if row["refused"] else "hung up"
    if not row["frames"]:
        return SILENT
    if max(row["late_server"], row["late_client"]) >= LATE_SHARE * row["frames"]:
        return "late"
    return HELD if row["ticks_in_time"] >= TICK_SHARE else "slow ticks"


async def _talk_all(
    url: str, conversations: int, seconds: float
) -> tuple[list[PacedTalk], list[float]]:
    pcm = voice()
    async with lag() as lags:
        talks = await asyncio.gather(
            *(converse(url, seconds, i * JOIN_SECONDS, pcm) for i in range(conversations))
        )
    return talks, lags


# -- soak ------------------------------------------------------------------------------------------

# Megabytes that may be grown by from the second quarter of the time to the last: its own, and what
# is taken of the whole device.
WATCHED = {"own_mb": 100, "device_mb": 200}
HANDSHAKE_SECONDS = 1.0  # from a person's wish to talk to 0x00, while a slot is free
HANDLES = 8  # open files, and threads, that may be left when all have gone
SPARE_SLOTS = 4  # that the people leave to attackers
SAMPLES = 240  # of memory and handles, over the whole time
LONGEST_SAMPLE_SECONDS = 10.0

Sample = dict[str, float]


def add_soak_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("--minutes", type=duration, default=60.0)
    parser.add_argument(
        "--hostile", action="store_true", help="with the attacks of `bench hostile` beside it"
    )


def run_soak(args: argparse.Namespace) -> int:
    """1 if something is wrong."""
    # A conversation whose line dropped keeps its slot for a while: here such a slot is to be free.
    with (
        choose_model(args) as model,
        Server([*serve_options(args, model), "--resume-s", "0"]) as server,
    ):
        slots = server.health()["slots"]
        people = max(1, slots - SPARE_SLOTS) if args.hostile else slots
        result = soak(server, people, args.minutes * 60, args.hostile)
    faults = find_faults(result)
    print(describe_soak(result))
    save("soak", {**result, "faults": faults}, args.json)
    if faults:
        print(f"error: {'; '.join(faults)}", flush=True)
    return int(bool(faults))


def soak(server: Server, people: int, seconds: float, hostile: bool = False) -> dict[str, Any]:
    """Let people come and go on a running server, beside attackers if it is `hostile`.

    Raises EngineError if the server goes away.
    """
    from engine.bench.hostile import attack_in_turn  # here, because it imports from this file

    asyncio.run(converse(server.url, WARM_UP_SECONDS, 0.0, voice()))
    server.wait_until_empty()
    before, counts = take_sample(server), server.counts()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        attacks = pool.submit(attack_in_turn, server.url, seconds, stop) if hostile else None
        try:
            tally, samples, lags = asyncio.run(_crowd(server, people, seconds))
        except BaseException:  # nobody is left whom the attackers could disturb
            stop.set()
            raise
    lost = server.wait_until_empty()
    after, counts = take_sample(server), server.counts().since(counts)
    waits = np.array(tally.waits or [0.0])
    wait_p50, wait_p95 = (np.percentile(waits, (50, 95)) * 1e3).tolist()
    return {
        "people": people, "seconds": seconds, "slots": server.health()["slots"],
        "slots_lost": lost,
        "attacks": attacks.result() if attacks else {},
        **{name: tally.counts[name] for name in ("conversations", "refused", "frames", "says")},
        **{name: tally.counts[name] for name in LEAVES}, "errors": tally.errors,
        "late": counts.late, "dropped": counts.dropped,
        "wait_ms_p50": wait_p50, "wait_ms_p95": wait_p95, "wait_ms_worst": float(waits.max()) * 1e3,
        "long_waits": int((waits > HANDSHAKE_SECONDS).sum()),
        "tick_ms_p99": counts.tick_ms(99), "renewals": counts.renewals,
        "client_lag_ms_p99": float(np.percentile(lags, 99)) * 1e3,
        "before": before, "after": after,
        "grown": {
            name: measure_growth([sample[name] for sample in samples])
            for name in before if name.endswith("_mb")
        },
        "samples": samples,
    }  # fmt: skip


async def _crowd(
    server: Server, people: int, seconds: float
) -> tuple[Tally, list[Sample], list[float]]:
    """Let them come and go; what they saw, what was watched, and this process's own lag."""
    began, tally, samples = time.monotonic(), Tally(), []
    every = min(LONGEST_SAMPLE_SECONDS, seconds / SAMPLES)
    crowd = [Person(server.url, i, tally) for i in range(people)]
    async with beside(_watch(server, every, began, samples)) as watching, lag() as lags:
        living = asyncio.gather(*(person.live(began + seconds) for person in crowd))
        await asyncio.wait({living, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():  # the server is gone
            living.cancel()
    await living
    return tally, samples, lags


async def _watch(server: Server, every: float, began: float, samples: list[Sample]) -> None:
    while True:
        await asyncio.sleep(every)
        server.check_alive()
        samples.append({"seconds": time.monotonic() - began, **take_sample(server)})


def take_sample(server: Server) -> Sample:
    """Memory, open files and threads of the server now, and what is taken of a GPU by all."""
    device = {}
    if has_cuda():
        import torch

        free, total = torch.cuda.mem_get_info()
        device = {"device_mb": (total - free) / 2**20}
    return {**server.sizes(), **device}


def measure_growth(values: Sequence[float]) -> float:
    """From the second quarter to the last, by their medians: warming up and peaks do not count."""
    quarter = max(1, len(values) // 4)
    return float(np.median(values[-quarter:]) - np.median(values[quarter : 2 * quarter] or values))


def find_faults(result: Mapping[str, Any]) -> list[str]:
    wrong = []
    if not result["conversations"]:
        wrong.append(f"nobody was let in ({result['refused']} were refused): nothing was tried")
    if errors := result["errors"]:
        wrong.append(f"{len(errors)} conversations ended by error, the first: {errors[0]}")
    if waits := result["long_waits"]:
        longest = f"the longest {result['wait_ms_worst'] / 1e3:.1f} s"
        bound = f"more than {HANDSHAKE_SECONDS:g} s while a slot was free"
        wrong.append(f"{waits} handshakes took {bound}, {longest}")
    for name, bound in WATCHED.items():
        growth = result["grown"].get(name, 0.0)
        if growth > bound:
            wrong.append(f"{name} grew by {growth:.0f} while people came and went; at most {bound}")
    for name in ("files", "threads"):
        more = result["after"][name] - result["before"][name]
        if more > HANDLES:
            wrong.append(f"{more} {name} more than before, with nobody there; at most {HANDLES}")
    if idle := [name for name, count in result["attacks"].items() if not count]:
        wrong.append(f"these attackers did not attack once, or broke: {', '.join(idle)}")
    if result["slots_lost"]:
        wrong.append(f"{result['slots_lost']} of {result['slots']} slots were not given back")
    return wrong


def describe_soak(result: Mapping[str, Any]) -> str:
    """Its single numbers; how memory and handles went stands in the json."""
    numbers = {name: value for name, value in result.items() if isinstance(value, (int, float))}
    grown = {f"{name} grown": value for name, value in result["grown"].items()}
    lagged = result["client_lag_ms_p99"] > LAG_SECONDS * 1e3
    void = f"\nlate frames: {LAGGED}" if lagged else ""
    return f"{table([numbers | grown])}{void}"


SOAK = Subject(add_soak_arguments, run_soak, {"slots": 2, "minutes": 0.5})


# -- server: what it adds around its backend ------------------------------------------------------


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--conversations", type=positive, default=16)
    parser.add_argument("--seconds", type=duration, default=30.0)
    parser.add_argument("--model", default="embedded")


def run_server(args: argparse.Namespace) -> int:
    """Server and clients share this machine, so the row holds the clients' share too."""
    with Server(["--model", args.model, "--slots", str(args.conversations)]) as server:
        rows = [measure_row(server, args.conversations, args.seconds)]
    print(table(rows))
    save("server", {"rows": rows}, args.json)
    return 0


SERVER = Subject(add_server_arguments, run_server)
