"""What hostile clients do to the conversations beside them: one table, a row for each scenario.

Every scenario has a server of its own, with paced conversations (the neighbours) and an attacker in
a process of its own: its Python must not hold up the clients that are timed, and it is niced,
because the machine is shared. First the neighbours talk alone.

A row is red for any of these:
  the gap between two frames (p95) is 1.5 times that of the neighbours alone;
  a twentieth of the neighbours' frames is late;
  a frame or a neighbour was lost;
  files or threads are left over when all have gone;
  the server logged more than its conversations explain;
  newcomers waited for more than two seconds after one slow moment.
The gaps are what clients see. What the server says stands beside them: where only the gaps grew,
the machine was busy, not the server.
"""

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import numpy as np
from aiohttp import web

from engine.bench.capacity import HANDLES, LAG_SECONDS, SPARE_SLOTS
from engine.bench.clients import (
    LAST_ANSWER_SECONDS,
    PacedTalk,
    beside,
    converse,
    hear,
    lag,
    speak,
    voice,
)
from engine.bench.process import SERVE, Server, find_free_port
from engine.bench.report import duration, positive, save, table
from engine.errors import EngineError
from engine.wire.client import Client, api_url

GAP_RATIO = 1.5  # of the neighbours alone, p95: more is red
ALL_IN_SECONDS = 2.0  # in which newcomers are in after one slow moment: more is red
WAITED_SECONDS = 10.0  # for them, at most
LATE_SHARE = 0.05  # of the neighbours' frames, beyond those alone: more is red
LOG_BYTES, CONVERSATION_LOG_BYTES = 64 << 10, 600  # of a scenario, and of each conversation
POOL_THREADS = 40  # that the page's framework keeps for its next requests
TRIES = 3  # of the neighbours alone, until the machine is quiet
JOIN_SECONDS = 0.035  # between two neighbours: their frames fall all over the 80 ms
CALM_SECONDS = 0.5  # that all neighbours talk before the attack
SETTLE_SECONDS = 3.0  # until files and threads are given back
FOREVER_SECONDS = 3600.0
START_SECONDS = 60.0  # of the attacker's process
NICE = 19
SERVE_PAGE = [sys.executable, "-m", "demo"]
SERVE_PLANTED = [sys.executable, "-m", "engine.bench.hostile"]
RED, PLAIN = "\033[31m", "\033[0m"

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--neighbours", type=positive, default=16)
    parser.add_argument("--seconds", type=duration, default=3.0, help="of each scenario")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))


def run(args: argparse.Namespace) -> int:
    """1 if a row is red."""
    for _ in range(TRIES):
        alone = run_scenario(args, ALONE)
        if alone.get("lag_p99", 0) <= LAG_SECONDS * 1e3:
            break
    rows = [alone, *(row for name in args.scenarios for row in run_rows(args, name))]
    for row in rows:
        row["red"] = "; ".join(find_reds(row, alone))
    print_rows(rows)
    save("hostile", {"model": args.model, "neighbours": args.neighbours, "rows": rows}, args.json)
    return int(any(row["red"] for row in rows))


def print_rows(rows: list[Row]) -> None:
    shown = [{"": "RED" if row["red"] else "", **row} for row in rows]
    for row in shown:
        for name in ("red", "fault", "late_share"):
            row.pop(name, None)
    head, *lines = table(shown).splitlines()
    red, plain = (RED, PLAIN) if sys.stdout.isatty() else ("", "")
    print(head)
    for line, row in zip(lines, rows, strict=True):
        print(f"{red}{line}{plain}" if row["red"] else line)
    for row in rows:
        if row["red"]:
            print(f"{red}{row['scenario']}: {row['red']}{plain}")
    print(
        "gap (ms), late and lost: frames as the neighbours see them; lag (ms): of these clients "
        "themselves; server: by its own clock, queue and answer of all, late of the neighbours'"
    )


def find_reds(row: Mapping[str, Any], alone: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row, in words."""
    wrong = [row["fault"]] if row.get("fault") else []
    lagged = row.get("lag_p99", 0) > LAG_SECONDS * 1e3
    if row["scenario"] == ALONE and lagged:
        wrong.append("the machine is not quiet, and nothing can be compared with this row")
    if row.get("slow_s", SLOW_SECONDS) < SLOW_SECONDS:
        wrong.append("there was no slow moment")
    if row.get("waiting"):
        wrong.append("newcomers still waiting")
    if row.get("all_in_s", 0) > ALL_IN_SECONDS:
        wrong.append(f"all in after more than {ALL_IN_SECONDS:g} s")
    if row.get("gap_p95", 0) > GAP_RATIO * alone.get("gap_p95", float("inf")):
        wrong.append(f"gap over {GAP_RATIO:g} x alone" + " (the clients lag, too)" * lagged)
    if row.get("late_share", 0) > alone.get("late_share", 0) + LATE_SHARE:
        wrong.append("frames late")
    if row.get("lost"):
        wrong.append("frames lost")
    if row.get("hung_up"):
        wrong.append("neighbours hung up on")
    pool = POOL_THREADS if row["scenario"] in OF_THE_PAGE else 0
    wrong += ["files left over"] * (row.get("files", 0) > HANDLES)
    wrong += ["threads left over"] * (row.get("threads", 0) > HANDLES + pool)
    if row.get("log_bytes", 0) > LOG_BYTES + CONVERSATION_LOG_BYTES * row.get("talks", 0):
        wrong.append("too long a log")
    if row["scenario"] in SCENARIOS and not row.get("attacks") and not row.get("fault"):
        wrong.append("nothing was attacked")
    return wrong


def run_rows(args: argparse.Namespace, name: str) -> list[Row]:
    return run_outliers(args) if name == OUTLIERS else [run_scenario(args, name)]


def start_server(args: argparse.Namespace, command: list[str], **settings: str) -> Server:
    slots = args.neighbours + SPARE_SLOTS
    return Server(["--model", args.model, "--slots", str(slots)], command, settings)


def run_scenario(args: argparse.Namespace, name: str) -> Row:
    """Neighbours beside an attack, on a server that has seen nothing else."""
    row: Row = {"scenario": name}
    print(f"{name} …", flush=True)
    port = find_free_port()  # of the text model
    settings = {"DEEPSEEK_API_KEY": "x", "DEEPSEEK_BASE_URL": f"http://127.0.0.1:{port}"}
    command = SERVE_PAGE if name in OF_THE_PAGE else list(SERVE)
    try:
        with start_server(args, command, **settings if name == ANSWERS else {}) as server:
            asyncio.run(converse(server.url, CALM_SECONDS, 0.0, voice()))  # all is made and read
            server.wait_until_empty()
            before, counts = server.sizes(), server.counts()
            with attack(name, server.url, port) as (begin, attacks):

                def has_begun() -> bool:
                    return bool(attacks.value) or name not in SCENARIOS

                row |= asyncio.run(watch_neighbours(server.url, args, begin, has_begun))
            row["attacks"] = attacks.value
            row |= ask_server(server, before, counts.ended)
    except (EngineError, OSError) as error:
        row["fault"] = str(error).splitlines()[0]
    return row


def ask_server(server: Server, before: Mapping[str, float], ended: int) -> Row:
    """What the server says of a scenario, and what it has left over, when all have gone.

    Raises EngineError or OSError where it does not answer.
    """
    server.check_alive()
    try:
        counts, left = server.counts(), server.wait_until_empty()
    except OSError:
        server.process.kill()  # it would not obey a polite signal either
        raise EngineError("the server does not answer any more") from None
    ends = time.monotonic() + SETTLE_SECONDS
    while True:
        grown = {name: value - before[name] for name, value in server.sizes().items()}
        if max(grown["files"], grown["threads"]) <= 0 or time.monotonic() > ends:
            break
        time.sleep(0.1)
    milliseconds = {key: seconds * 1e3 for key, seconds in counts.stages.items()}
    return {
        "server_queue_p99": milliseconds.get(("0.99", "queue"), 0.0),
        "server_answer_p99": milliseconds.get(("0.99", "answer"), 0.0),
        "mb": grown["own_mb"], "files": grown["files"], "threads": grown["threads"],
        "log_bytes": grown["log_bytes"], "talks": counts.ended - ended + counts.live,
        **({"fault": f"{left} conversations never ended"} if left else {}),
    }  # fmt: skip


# -- the neighbours --------------------------------------------------------------------------------


async def watch_neighbours(
    url: str,
    args: argparse.Namespace,
    begin: Callable[[], None],
    has_begun: Callable[[], bool],
) -> dict[str, Any]:
    """Let them talk, begin the attack, and say what they saw of it; milliseconds.

    A busy machine lets the attacker begin late: it is waited for. Raises EngineError where a
    neighbour is not let in.
    """
    talks, over = [PacedTalk() for _ in range(args.neighbours)], asyncio.Event()
    pcm, times = voice(), []

    async def lead(lags: list[float]) -> None:
        for talk in talks:
            await talk.ready.wait()
            if talk.over:
                raise EngineError(f"a neighbour was not let in: {talk.error}")
        await asyncio.sleep(CALM_SECONDS)
        begin()
        lags.clear()
        times.append(time.monotonic())
        ends = time.monotonic() + START_SECONDS
        while not has_begun() and time.monotonic() < ends:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
        await asyncio.sleep(args.seconds)
        times.append(time.monotonic())
        over.set()

    async with lag() as lags:
        joining = (
            keep_talking(url, talk, pcm, i * JOIN_SECONDS, over) for i, talk in enumerate(talks)
        )
        await asyncio.gather(lead(lags), *joining)
    began, ended = times
    gaps = [gap for talk in talks for gap in list_gaps(talk.heard_at, began, ended)]
    p50, p95, p99 = np.percentile(gaps, (50, 95, 99)).tolist()
    return {
        "gap_p50": p50, "gap_p95": p95, "gap_p99": p99,
        "late": (late := sum(talk.late for talk in talks)),
        "late_share": late / sum(len(talk.sent_at) for talk in talks),
        "lost": sum(len(talk.sent_at) - len(talk.latencies) for talk in talks),
        "hung_up": sum(talk.over for talk in talks),
        "lag_p99": float(np.percentile(lags, 99)) * 1e3,
        "server_late": sum(talk.late_by_server for talk in talks),
    }  # fmt: skip


async def keep_talking(
    url: str, talk: PacedTalk, pcm: np.ndarray, delay: float, over: asyncio.Event
) -> None:
    """Join after `delay`, talk at the pace of speech until it is over."""
    await asyncio.sleep(delay)
    async with Client(url) as client, beside(hear(client, talk)):
        await talk.ready.wait()
        async with beside(speak(client, talk, pcm, FOREVER_SECONDS)):
            await over.wait()
        await asyncio.sleep(LAST_ANSWER_SECONDS)


def list_gaps(heard_at: list[float], began: float, ended: float) -> list[float]:
    """Milliseconds between agent frames; silence at the end of the time is a gap, too."""
    inside = [began, *(at for at in heard_at if began <= at <= ended), ended]
    gaps = np.diff(inside) * 1e3
    return gaps[1:-1].tolist() + [gap for gap in (gaps[0], gaps[-1]) if gap > 80]


# -- one slow moment, then many newcomers at once --------------------------------------------------

OUTLIERS = "outliers"
PLANTED = ("open", "tick", "piece")
SLOW_SECONDS = 0.5


def run_outliers(args: argparse.Namespace) -> list[Row]:
    """How long newcomers wait for the handshake after one slow opening, tick and piece."""
    rows: list[Row] = [{"scenario": f"slow {what}"} for what in PLANTED]
    print(f"{OUTLIERS} …", flush=True)
    try:
        with start_server(args, SERVE_PLANTED) as server:
            for row in rows:
                row |= asyncio.run(join_at_once(server, args.neighbours))
                server.wait_until_empty()
    except (EngineError, OSError) as error:
        for row in rows:
            row |= {} if "all_in_s" in row else {"fault": str(error).splitlines()[0]}
    return rows


async def join_at_once(server: Server, count: int) -> Row:
    """Seconds until all newcomers are in, beside one who met the slow moment, and that moment's.

    At most WAITED_SECONDS. Raises EngineError where one is refused.
    """
    over, pcm, began = asyncio.Event(), voice(), time.monotonic()
    first, *others = (PacedTalk() for _ in range(1 + count))
    os.kill(server.process.pid, signal.SIGUSR1)
    talking = asyncio.create_task(keep_talking(server.url, first, pcm, 0.0, over))
    await first.ready.wait()
    await asyncio.sleep(CALM_SECONDS + SLOW_SECONDS)
    slow = first.heard_at[0] - began if first.heard_at else 0.0
    began = time.monotonic()
    joining = (keep_talking(server.url, talk, pcm, 0.0, over) for talk in others)
    everybody = asyncio.gather(talking, *joining)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAITED_SECONDS):
            for talk in others:
                await talk.ready.wait()
    taken = time.monotonic() - began
    waiting = sum(not talk.ready.is_set() for talk in others)
    refused = [talk.error for talk in others if talk.over and not talk.began]
    over.set()
    for talk in others:
        talk.ready.set()  # who still waits gives up
    await everybody
    if refused:
        raise EngineError(f"{len(refused)} newcomers were refused, the first: {refused[0]}")
    return {"slow_s": slow, "all_in_s": taken, "waiting": waiting}


def serve_planted() -> int:
    """`engine serve` with a slow moment of each kind, one after every SIGUSR1."""
    from engine.cli import main
    from engine.commands import serve

    kinds, planted, load = iter(PLANTED), [], serve.load_backend

    def stall(what: str) -> None:
        if planted == [what]:
            planted.clear()
            time.sleep(SLOW_SECONDS)

    def load_planted(*given: Any) -> Any:
        backend = load(*given)
        open_slot, listen = backend.open, backend.listen

        def open_slowly(*given: Any) -> Iterator[None]:
            stall("open")
            return take_pieces(open_slot(*given))

        def take_pieces(work: Iterator[None]) -> Iterator[None]:
            stall("piece")
            yield from work

        def listen_slowly(*given: Any) -> Any:
            stall("tick")
            return listen(*given)

        backend.open, backend.listen = open_slowly, listen_slowly
        return backend

    signal.signal(signal.SIGUSR1, lambda *_: planted.append(next(kinds)))
    serve.load_backend = load_planted
    return main(["serve", *sys.argv[1:]])


# -- the attacker's process ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """What is attacked, and what the attacker shares with the process that measures."""

    url: str
    port: int  # where the server looks for its text model
    count: Any  # messages and requests so far
    ready: Any
    go: Any

    async def begin(self) -> None:
        """All is prepared: wait until the neighbours talk."""
        self.ready.set()
        await asyncio.to_thread(self.go.wait)
        self.count.value = 0

    def note(self) -> None:
        self.count.value += 1


@contextlib.contextmanager
def attack(name: str, url: str, port: int) -> Iterator[tuple[Callable[[], None], Any]]:
    """A process that attacks from the call of what this gives on; and how often it has, so far.

    Raises EngineError if it broke.
    """
    context = multiprocessing.get_context("spawn")
    # without a lock: one process writes, and its end might leave a lock closed for ever
    ready, go, count = context.Event(), context.Event(), context.RawValue("q", 0)
    given = (name, Target(url, port, count, ready, go))
    process = context.Process(target=run_attack, args=given, daemon=True)
    process.start()
    try:
        if not ready.wait(START_SECONDS):
            raise EngineError(f"the attacker was not ready after {START_SECONDS:g} s")
        yield go.set, count
    finally:
        process.terminate()
        process.join()
    if process.exitcode is None or process.exitcode >= 0:  # it had ended before we ended it
        raise EngineError("the attacker broke: nothing was seen of the server")


def run_attack(name: str, target: Target) -> None:
    """The attacker's process."""
    os.nice(NICE)
    asyncio.run(ATTACKS[name](target))


def attack_in_turn(url: str, seconds: float, stop: threading.Event) -> dict[str, int]:
    """Attack in each way of FOR_A_SOAK for its share of the time, or until told to stop.

    Returns how often each attacked: 0 where the attacker broke. It blocks.
    """
    done = dict.fromkeys(FOR_A_SOAK, 0)
    for name in FOR_A_SOAK:
        if stop.is_set():
            break
        with contextlib.suppress(EngineError), attack(name, url, 0) as (begin, attacks):
            begin()
            stop.wait(seconds / len(FOR_A_SOAK))
            done[name] = attacks.value
    return done


async def leave_alone(target: Target) -> None:
    await target.begin()
    await asyncio.sleep(FOREVER_SECONDS)


# -- floods: one kind of message at full speed -----------------------------------------------------

HARD_TEXT = ("$1,234.56 at 12:45, 3/4 of No. 7 & 19.99% (see https://a.b/c?d=e) Żółć №8; " * 40)[
    :2000
]
NOISE = random.Random(0)


def metadata(**fields: Any) -> bytes:
    return b"\x04" + json.dumps(fields).encode()


FLOODS: dict[str, list[bytes]] = {  # messages that are sent again and again
    "restart": [b"\x03\x03"],
    "set": [
        metadata(type="set", text_temperature=0.5),
        *(metadata(type="set", routing=flag) for flag in (1, 0)),
    ],
    "cancel": [metadata(type="cancel")],
    "ignored": [b"", b"\xc8noise", b"\x03", b"\x03\x09"],  # empty, unknown, no control byte
    "ping": [b"\x06" + bytes(64)],
    "say": [b"\x07" + HARD_TEXT.encode()],
    "json": [
        b'\x04{"type":', b"\x04" + b"[" * 100_000, metadata(type="set", x=[0] * 80_000),
        metadata(type="x" * 200_000),
    ],
    "audio": [b"\x01" + bytes(192_000)],  # 4 s of pcm16
    "opus": [b"\x01OggS" + NOISE.randbytes(4000)],
}  # fmt: skip


async def flood(target: Target, kind: str) -> None:
    """Send as fast as the socket takes it; come back when hung up on."""
    fmt = "opus" if kind == "opus" else "pcm16"
    await target.begin()
    async with aiohttp.ClientSession() as http:
        while True:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                async with open_conversation(http, target, format=fmt) as ws:
                    for message in itertools.cycle(FLOODS[kind]):
                        if ws.closed:
                            break
                        await ws.send_bytes(message)
                        target.note()
                        await asyncio.sleep(0)  # what is answered is read, too
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def open_conversation(
    http: aiohttp.ClientSession, target: Target, **query: Any
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A socket after its handshake, or closed; whatever comes is read and thrown away."""
    url = api_url(target.url, **query)
    async with http.ws_connect(url, max_msg_size=0) as ws:
        async for message in ws:
            if message.data == b"\0":
                break

        async def read() -> None:
            async for _ in ws:
                pass

        async with beside(read()):
            yield ws


async def join_and_leave(target: Target) -> None:
    async def come_and_go(http: aiohttp.ClientSession) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                async with open_conversation(http, target, format="pcm16"):
                    target.note()

    await target.begin()
    async with aiohttp.ClientSession() as http:
        await asyncio.gather(*(come_and_go(http) for _ in range(SPARE_SLOTS)))


# -- slow sockets ----------------------------------------------------------------------------------

SLOW_SOCKETS = 50  # of each kind
UPGRADE = (
    b"GET /api?format=pcm16 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
PING_BYTES = 30_000
DEAF_PING = b"\x82\xfe" + (1 + PING_BYTES).to_bytes(2) + bytes(4) + b"\x06" + bytes(PING_BYTES)


async def hold_slow_sockets(target: Target) -> None:
    """Heads and bodies that never end, a byte at a time; clients that ask and never read."""
    address = urlsplit(target.url)

    async def send(opening: bytes, more: bytes, pause: float) -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                _reader, writer = await asyncio.open_connection(address.hostname, address.port)
                writer.write(opening)
                target.note()
                while not writer.is_closing():
                    await writer.drain()
                    await asyncio.sleep(pause)
                    writer.write(more)
            await asyncio.sleep(0.1)

    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "
    body = b"POST /api HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    slow = [(head, b"x", 0.2), (body, b"x", 0.2)] * SLOW_SOCKETS
    await target.begin()
    await asyncio.gather(*(send(*each) for each in slow + [(UPGRADE, DEAF_PING, 0)] * SPARE_SLOTS))


# -- plain HTTP, against the page ------------------------------------------------------------------

STREAMS, LOADING = 20, 30
LINK = re.compile(r'<(?:link|script|img)\b[^>]*?\s(?:src|href)="([^"]+)"')
IMPORT = re.compile(r'(?:from|import)\s*"(\.{0,2}/[^"]+)"')


async def request_badly(target: Target) -> None:
    """Large bodies to the routes that Gradio mounts, uploads, long addresses, open streams."""
    wide = json.dumps({f"k{i}": 0 for i in range(700_000)}).encode()  # 10 MB
    join = json.dumps({"data": ["x" * (50 << 20)], "fn_index": 0, "session_hash": "x"}).encode()
    kind = {"Content-Type": "application/json"}

    async def ask(http: aiohttp.ClientSession, method: str, path: str, make: Callable) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                async with http.request(method, target.url + path, **make()) as answer:
                    target.note()
                    async for _ in answer.content.iter_any():
                        pass
            await asyncio.sleep(0.01)

    def upload() -> dict[str, Any]:
        form = aiohttp.FormData()
        form.add_field("files", bytes(20 << 20), filename="x.bin")
        return {"data": form}

    works = [
        ("POST", "/gradio_api/cancel", lambda: {"data": wide, "headers": kind}),
        ("POST", "/gradio_api/queue/join", lambda: {"data": join, "headers": kind}),
        ("POST", "/gradio_api/upload", upload),
        ("GET", f"/?token={'x' * 6000}", dict),
        ("GET", f"/{'x' * 60_000}", dict),
        *[("GET", f"/gradio_api/heartbeat/{i}", dict) for i in range(STREAMS)],
    ]
    await target.begin()
    timeout, limit = aiohttp.ClientTimeout(total=FOREVER_SECONDS), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=limit) as http:
        await asyncio.gather(*(ask(http, *work) for work in works))


async def load_pages(target: Target) -> None:
    """Thirty browsers load the page at once, again and again, without a cache."""

    async def load(addresses: list[str]) -> None:
        connections = aiohttp.TCPConnector(limit=6)  # as a browser's
        async with aiohttp.ClientSession(connector=connections) as http:
            await asyncio.gather(*(fetch(http, address) for address in addresses))

    async def fetch(http: aiohttp.ClientSession, address: str) -> None:
        async with http.get(address) as answer:
            await answer.read()
            target.note()

    addresses = await find_parts(f"{target.url}/")
    await target.begin()
    while True:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            await asyncio.gather(*(load(addresses) for _ in range(LOADING)))


async def find_parts(page: str) -> list[str]:
    """What a browser asks for: the page, what it links, and what that imports at once."""
    found, waiting = [], [page]
    async with aiohttp.ClientSession() as http:
        while waiting:
            address = waiting.pop()
            if address in found:
                continue
            found.append(address)
            async with http.get(address) as answer:
                text = await answer.text(errors="replace")
            pattern = IMPORT if address.endswith(".js") else LINK
            links = (urljoin(address, link) for link in pattern.findall(text))
            waiting += [link for link in links if link.startswith(page)]
    return found


# -- odd answers of a text model -------------------------------------------------------------------

LONG_LINE_BYTES = 10 << 20
ODD_ANSWERS: dict[str, Iterable[str]] = {  # question -> the pieces of its answer
    "no blanks": ["abcdefghijklmnopqrstuvwxyzabcd"] * 2000,  # nearly 64 kB: more is refused
    "a row without end": ["| a "] * 3000,
    "open brackets": ["a, ["] * 3000,
    "nothing at all": itertools.repeat(""),
    "100 MB": ["word " * 20_000] * 1000,
    "a long line": ["x" * LONG_LINE_BYTES],
}


async def answer_oddly(target: Target) -> None:
    """The server's text model, and callers who ask it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        asked = (await request.json())["messages"][-1]["content"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        target.note()
        with contextlib.suppress(ConnectionError):  # the server has had enough of it
            for question, pieces in ODD_ANSWERS.items():
                for piece in pieces if question in asked else ():
                    choice = {"index": 0, "delta": {"content": piece}}
                    line = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n"
                    await response.write(line)
            await response.write(b"data: [DONE]\n")
        return response

    async def ask(http: aiohttp.ClientSession, first: int) -> None:
        questions = itertools.islice(itertools.cycle(ODD_ANSWERS), first, None)
        while True:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                async with open_conversation(http, target, format="pcm16", routing=1) as ws:
                    while not ws.closed:
                        await ws.send_bytes(metadata(type="ask", text=next(questions)))
                        await asyncio.sleep(1.0)
            await asyncio.sleep(0.1)

    app = web.Application()
    app.router.add_post("/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", target.port).start()
    await target.begin()
    async with aiohttp.ClientSession() as http:
        await asyncio.gather(*(ask(http, first) for first in range(SPARE_SLOTS)))


ALONE, ANSWERS = "alone", "answers"
ATTACKS: dict[str, Callable[[Target], Coroutine[Any, Any, None]]] = {
    ALONE: leave_alone,
    **{kind: functools.partial(flood, kind=kind) for kind in FLOODS},
    "joins": join_and_leave,
    "slow": hold_slow_sockets,
    ANSWERS: answer_oddly,
    "http": request_badly,
    "pages": load_pages,
}
OF_THE_PAGE = ("http", "pages")
FOR_A_SOAK = (*FLOODS, "joins", "slow")  # what needs neither a page nor a text model
SCENARIOS = (*[name for name in ATTACKS if name != ALONE], OUTLIERS)

if __name__ == "__main__":
    sys.exit(serve_planted())
