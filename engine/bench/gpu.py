"""The whole GPU suite in one command: correctness and loading, then times; all into one json.

What is checked or loaded first runs side by side, as it waits for compilers and disks; what is
timed runs alone. `soak` takes an hour of its own and is not part of it.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from engine.bench.peers.process import HOW, package_at
from engine.bench.report import duration, parsed, save
from engine.errors import ConfigError

PARTS = {  # subject -> its options, chosen so that all of it takes less than 9 minutes on an H200
    "verify": ["--small"],
    "load": [],
    "tick": ["--context", "100", "750", "2999", "--ticks", "50", "--warm-up", "5"],
    "stages": ["--slots", "1", "16"],
    "connect": [],
    "memory": ["--kv", "int8"],
    "peer": ["--slots", "1", "8", "16", "--context", "2999", "--ticks", "50"],
    "capacity": ["--step-seconds", "4", "--seconds", "180", "--holds", "1"],
}
READING = ("load", "peer", "capacity")  # they share one generated checkpoint on disk
BESIDE = "verify"  # runs in a process of its own while the next part runs
LAST = "capacity"  # what its calls are held for gives way, so that all ends in time
# It takes before and after that: 54 s on an H200 (2026-11-25, the whole suite 479 s with 128 s of
# calls), its kernels compiled by the parts before.
CLIMB_SECONDS = 70.0
LEAST_SECONDS = 30.0  # of calls, however late it is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--random", action="store_true", help="generated weights (the only source)")
    parser.add_argument("--small", action="store_true", help="a reduced size, for a CPU")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="all, unless given")
    parser.add_argument("--moshi", metavar="PATH", help="where moshi is installed: part `peer`")
    parser.add_argument(
        "--minutes", type=duration, default=9.0, help="for all of it (capacity gives)"
    )
    parser.add_argument("--folder", help="where the generated checkpoint is, or is put and kept")
    parser.add_argument("--json", help="where to write the result")
    parser.set_defaults(device="auto")


def run(args: argparse.Namespace) -> int:
    """1 if a part found something wrong or could not be run; the others run all the same."""
    if args.small:  # models so small only wait for each other's threads; the servers are told too
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    parts = parts_of(args)
    target, end = Path(args.json or "bench-gpu.json"), time.monotonic() + 60 * args.minutes
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as passing:
        folder, waiting = args.folder or passing, None
        for part in parts:
            options = options_of(part, args, folder, target)
            if part == LAST and not args.small:
                options = held_until(end, options)
            if part == BESIDE:
                waiting = started(part, options)
                continue
            results[part] = told(part, lambda part=part, options=options: called(part, options))
            if waiting:
                results[BESIDE], waiting = told(BESIDE, waiting), None
            save("gpu", results, str(target))  # at once: what is measured is kept
        if waiting:
            results[BESIDE] = told(BESIDE, waiting)
    save("gpu", results, str(target))
    print("written:", target)
    return max(result["code"] for result in results.values())


def parts_of(args: argparse.Namespace) -> list[str]:
    """What is asked for and can be run here. Raises ConfigError."""
    from engine.bench.device import config_of  # torch: not for the help

    config_of(args)
    if args.moshi:
        package_at("--moshi", args.moshi)
    elif "peer" in (args.parts or ()):
        raise ConfigError(f"--parts peer needs a peer: {HOW}")
    return args.parts or [part for part in PARTS if part != "peer" or args.moshi]


def options_of(part: str, args: argparse.Namespace, folder: str, target: Path) -> list[str]:
    """The command line of one subject."""
    options = ["--small"] if args.small else [*PARTS[part]]  # a CPU has each subject's own
    options += ["--json", str(target.with_suffix(f".{part}.json"))]
    options += ["--folder", folder] if part in READING else []
    return options + (["--moshi", args.moshi] if part == "peer" else [])


def held_until(end: float, options: list[str]) -> list[str]:
    """The last part's command line, with as long a hold as the time until `end` leaves."""
    at = options.index("--seconds") + 1
    left = max(LEAST_SECONDS, end - time.monotonic() - CLIMB_SECONDS)
    if left >= float(options[at]):
        return options
    print(f"{LAST} holds for {left:.0f} s, not {options[at]}: --minutes are over then", flush=True)
    return [*options[:at], f"{left:.0f}", *options[at + 1 :]]


class Screen(io.TextIOBase):
    """The screen, but for a part's word of where its file is: the file is gone at once."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._line = out, ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if not line.startswith("written:"):
                print(line, file=self._out, flush=True)
        return len(text)

    def flush(self) -> None:
        """What has no end of line yet."""
        print(self._line, end="", file=self._out, flush=True)
        self._line = ""


Work = Callable[[], dict[str, Any]]


def told(part: str, work: Work) -> dict[str, Any]:
    """A part's result, its beginning and its seconds on the screen."""
    begun = time.perf_counter()
    print(f"== {part}", flush=True)
    result = work()
    print(f"== {part}: {time.perf_counter() - begun:.0f} s", flush=True)
    return {"seconds": time.perf_counter() - begun} | result


def started(part: str, options: list[str]) -> Work:
    """Start a subject in a process of its own; what waits for its end and gives its result."""
    command = [sys.executable, "-m", "engine", "bench", part, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def end() -> dict[str, Any]:
        output, _ = process.communicate()
        print(output, end="", file=Screen(sys.stdout), flush=True)
        return result_of(options, process.returncode)

    return end


def called(part: str, options: list[str]) -> dict[str, Any]:
    """Run a subject in this process; whatever it raises is printed and kept beside its rows."""
    try:
        return result_of(options, run_part(part, options))
    except Exception as error:
        # The boundary between parts: memory that runs out, a kernel that does not compile or a
        # broken assumption ends one of them, not the others, nor the one that runs beside.
        print(traceback.format_exc(), flush=True)
        reason = traceback.format_exception_only(error)[-1].strip()
    return result_of(options, 1) | {"error": reason}


def run_part(part: str, options: list[str]) -> int:
    from engine.bench.device import release

    release()  # a server beside us needs what the part before has left
    module = importlib.import_module(f"engine.bench.{part}")
    with contextlib.redirect_stdout(Screen(sys.stdout)):
        return module.run(parsed(module, options))


def result_of(options: list[str], code: int) -> dict[str, Any]:
    """What a subject has written, and the code it ended with; its file is gone then."""
    path = Path(options[options.index("--json") + 1])
    if not path.exists():
        return {"code": code or 1, "error": f"it ended with {code} and no result"}
    result = json.loads(path.read_text())
    path.unlink()
    return {"code": code} | result
