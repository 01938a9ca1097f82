"""The whole GPU suite in one command: correctness first, then times; every part into one json."""

import argparse
import importlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.bench.report import save
from engine.errors import EngineError

PARTS = {  # subject -> its options, chosen so that all of it takes less than 9 minutes on an H200
    "verify": ["--small"],
    "tick": ["--context", "100", "750", "2999", "--ticks", "80", "--warm-up", "10"],
    "stages": ["--slots", "1", "16"],
    "connect": [],
    "memory": ["--kv", "int8"],
    "load": [],
    "capacity": ["--step-seconds", "4", "--seconds", "60"],
    "soak": ["--weights", "int8", "--kv", "int8", "--minutes", "1"],
    "peer": ["--slots", "1", "8", "16", "--context", "2999", "--kind", "step", "frame"],
}
SMALL = {  # the same at a size for two CPU cores
    "verify": [],
    "tick": ["--context", "100", "--slots", "1", "2", "--ticks", "3", "--warm-up", "1"],
    "stages": ["--slots", "1", "--times", "2"],
    "connect": ["--columns", "80"],
    "memory": ["--slots", "2"],
    "load": [],
    "capacity": ["--slots", "2", "--step-seconds", "1", "--seconds", "2"],
    "soak": ["--slots", "2", "--minutes", "0.1"],
    "peer": ["--context", "100", "--slots", "1", "2", "--ticks", "3", "--warm-up", "1"],
}
READING = ("load", "capacity", "soak", "peer")  # they share one generated checkpoint on disk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--random", action="store_true", help="generated weights (the only source)")
    parser.add_argument("--small", action="store_true", help="a reduced size, for a CPU")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--moshi", metavar="PATH", help="where moshi is installed: part `peer`")
    parser.add_argument("--json", help="where to write the result")


def run(args: argparse.Namespace) -> int:
    """1 if a part found something wrong or could not be run; the others run all the same."""
    if args.small:  # models so small only wait for each other's threads; the servers are told too
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    target = Path(args.json or "bench-gpu.json")
    results, worst = {}, 0
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        for part in args.parts:
            if part == "peer" and not args.moshi:
                continue
            started = time.perf_counter()
            print(f"== {part}", flush=True)
            code, result = _run_part(part, args, folder, target.with_suffix(f".{part}.json"))
            worst = max(worst, code)
            seconds = time.perf_counter() - started
            results[part] = {"seconds": seconds, **result}
            save("gpu", results, str(target))  # at once: what is measured is kept
            print(f"== {part}: {seconds:.0f} s", flush=True)
    print("written:", target)
    return worst


def _run_part(
    part: str, args: argparse.Namespace, folder: str, path: Path
) -> tuple[int, dict[str, Any]]:
    """(exit code, what it wrote) of one subject; `path` is where it writes, for a moment."""
    from engine.bench.device import release

    release()  # a server beside us needs what the part before has left
    module, parser = importlib.import_module(f"engine.bench.{part}"), argparse.ArgumentParser()
    module.add_arguments(parser)
    options = [*(SMALL if args.small else PARTS)[part], "--json", str(path)]
    options += ["--folder", folder] if part in READING else []
    options += ["--moshi", args.moshi] if part == "peer" else []
    options += ["--small"] if args.small and "--small" not in options else []
    try:
        code = module.run(parser.parse_args(options))
    except EngineError as error:
        print(f"error: {error}", flush=True)
        return 1, {"error": str(error)}
    result = json.loads(path.read_text())
    path.unlink()
    return code, result
