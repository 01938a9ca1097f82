"""The whole GPU suite in one command: correctness first, then times; every part into one json."""

import argparse
import importlib
import json
import time
from pathlib import Path

from engine.bench.report import save

PARTS = {  # subject -> its options, chosen so that all of it takes less than 9 minutes on an H200
    "verify": ["--small"],
    "tick": ["--context", "100", "750", "2999", "--ticks", "80", "--warm-up", "10"],
    "stages": ["--slots", "1", "16"],
    "connect": [],
    "memory": ["--kv", "int8"],
    "load": [],
}
SMALL = {  # the same at a size for two CPU cores
    "verify": [],
    "tick": ["--context", "100", "--slots", "1", "2", "--ticks", "3", "--warm-up", "1"],
    "stages": ["--slots", "1", "--times", "2"],
    "connect": ["--columns", "80"],
    "memory": ["--slots", "2"],
    "load": [],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--random", action="store_true", help="generated weights (the only source)")
    parser.add_argument("--small", action="store_true", help="a reduced size, for a CPU")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--json", help="where to write the result")


def run(args: argparse.Namespace) -> int:
    """1 if the correctness part found something wrong."""
    target = Path(args.json or "bench-gpu.json")
    results, worst = {}, 0
    for part in args.parts:
        started = time.perf_counter()
        print(f"== {part}", flush=True)
        module, parser = importlib.import_module(f"engine.bench.{part}"), argparse.ArgumentParser()
        module.add_arguments(parser)
        path = target.with_suffix(f".{part}.json")
        options = [*(SMALL if args.small else PARTS)[part], "--json", str(path)]
        options += ["--small"] if args.small and "--small" not in options else []
        worst = max(worst, module.run(parser.parse_args(options)))
        seconds = time.perf_counter() - started
        results[part] = {"seconds": seconds, **json.loads(path.read_text())}
        path.unlink()
        print(f"== {part}: {seconds:.0f} s", flush=True)
    print("written:", save("gpu", results, str(target)))
    return worst
