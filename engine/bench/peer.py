"""`python -m engine bench peer`: an installed peer beside us on the same weights, in turns.

Ours, the peer, ours again, for every number of streams. Both read one generated checkpoint, sample
with the same settings and are given the same past. `step` is the language model alone, `frame` has
the codec around it; both by the wall clock, from what the host has to what the host gets. Nothing
of theirs is kept here: --moshi and --reference say where it lies, each runs in its own process.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.bench.device import add_model_arguments, config_of, device_of
from engine.bench.model import CODEC
from engine.bench.model import CONFIG as RECIPE
from engine.bench.peers import ours
from engine.bench.peers.process import HOW, PeerProcess, package_at
from engine.bench.report import positive, save, table, zero_or_more
from engine.errors import ModelError
from engine.model.config import ModelConfig
from engine.weights.generated import FULL, SMALL, write_checkpoint
from engine.weights.hub import CONFIG as CONFIG_FILE
from engine.weights.loading import Checkpoint

SIZES = {"full": FULL, "small": SMALL, "recipe": ModelConfig(lm=RECIPE, mimi=CODEC)}
DEPTH_STEPS = {"moshi": 8, "reference": 16}
SMALL_OPTIONS = {"context": [100], "slots": [1, 2], "ticks": 3, "warm_up": 1}
UNSTEADY = 0.10  # of their mean: a row whose two own times differ by more is marked
COMPARED_FRAMES = 30
Turn = Callable[[], list[float]]  # milliseconds of every step of one side's turn
Ask = Callable[..., Any]  # a peer's process


def in_turns(own: Turn, peer: Turn) -> dict[str, Any]:
    """Ours, theirs, ours again: medians, the ratio to the mean of our two, and their spread."""
    before, theirs, after = own(), peer(), own()
    (first, first_p99), (other, other_p99), (second, second_p99) = (
        np.percentile(turn, (50, 99)).tolist() for turn in (before, theirs, after)
    )
    mean = (first + second) / 2
    spread = abs(first - second) / mean
    return {
        "ours_before_ms": first, "peer_ms": other, "ours_after_ms": second,
        "peer/ours": other / mean, "spread": spread,
        "ours_p99_ms": max(first_p99, second_p99), "peer_p99_ms": other_p99,
        "mark": "unsteady" if spread > UNSTEADY else "",
    }  # fmt: skip


def row_of(
    ask: Ask, checkpoint: Checkpoint, slots: int, kind: str, context: int, args: argparse.Namespace
) -> dict[str, Any]:
    """One line of the table; context 0 if the peer's memory is of a make that is not known."""
    told: dict[str, Any] = {}

    def peer() -> list[float]:
        told.update(
            ask("time", streams=slots, context=context, warm=args.warm_up, times=args.ticks,
                kind=kind)
        )  # fmt: skip
        return told.pop("ms")

    figures = in_turns(lambda: ours.turn(checkpoint, kind, slots, context, args), peer)
    filled = context if told.pop("rings") else 0
    return {"B": slots, "kind": kind, "context": filled} | figures | told


def compared(package: Path) -> dict[str, int]:
    """Frames of a small model in float32 on the CPU, greedy, that are the same on both sides."""
    with tempfile.TemporaryDirectory() as folder, PeerProcess(package, compiled=False) as peer:
        write_checkpoint(Path(folder), SMALL)
        checkpoint = ours.load(Path(folder), "cpu", torch.float32)
        codes = ours.user_codes(checkpoint, COMPARED_FRAMES + 1)  # the first call has no answer
        peer.ask(
            "load", folder=folder, device="cpu", dtype="float32", steps=DEPTH_STEPS["moshi"],
            codec=False,
        )  # fmt: skip
        theirs = np.array(peer.ask("tokens", codes=codes)[1:])
        own = ours.tokens(checkpoint, codes)[1:]
    return {
        "equal": int((own == theirs).all(1).sum()), "frames": len(own),
        "different_tokens": len(np.unique(own)),
    }  # fmt: skip


def beside(
    name: str, package: Path, folder: Path, checkpoint: Checkpoint, args: argparse.Namespace
) -> dict[str, Any]:
    """Everything about one peer. An error of its process ends its rows, not the bench."""
    result: dict[str, Any] = {"rows": []}
    device, fork = device_of(args), name == "reference"  # the fork: one stream, no batch
    try:
        if not fork:
            result["tokens"] = compared(package)
            print("tokens equal: {equal} of {frames}".format(**result["tokens"]), flush=True)
        compiled = device == "cuda" and not args.no_compile
        with PeerProcess(package, compiled) as peer:
            result |= peer.ask(
                "load", folder=str(folder), device=device, steps=DEPTH_STEPS[name],
                dtype="bfloat16" if device == "cuda" else "float32", codec="frame" in args.kind,
            )  # fmt: skip
            slots, kinds = ([1], ["step"]) if fork else (args.slots, args.kind)
            for each in product(slots, kinds, args.context):
                row = row_of(peer.ask, checkpoint, *each, args)
                result["rows"].append(row)
                print("{B} {kind} {context}: {peer/ours:.2f} {mark}".format(**row), flush=True)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        result["error"] = str(error)
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--moshi", metavar="PATH", help="where moshi is installed (pip --target)")
    parser.add_argument("--reference", metavar="PATH", help="checkout of NVIDIA's PersonaPlex")
    parser.add_argument("--folder", help="where the generated checkpoint is, or is put and kept")
    parser.add_argument("--size", choices=list(SIZES), default="full", help="--small: small")
    parser.add_argument("--kind", nargs="+", choices=list(ours.KINDS), default=["step"])
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--context", type=positive, nargs="+", default=[100, 750, 2999])
    parser.add_argument("--ticks", type=positive, default=100, help="timed steps of every turn")
    parser.add_argument("--warm-up", type=zero_or_more, default=10)
    parser.add_argument("--no-compile", action="store_true", help="NO_TORCH_COMPILE=1 for the peer")


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    given = {"moshi": args.moshi, "reference": args.reference}
    packages = {name: package_at(f"--{name}", path) for name, path in given.items() if path}
    if not packages:
        print(f"bench peer needs a peer: {HOW}", file=sys.stderr)
        return 2
    own = args.small or args.size == "full"
    config, device = config_of(args) if own else SIZES[args.size], device_of(args)
    args.context = sorted({min(c, config.lm.context - 1) for c in args.context})
    result: dict[str, Any] = {"device": device, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(args.folder or passing)
        if not (folder / CONFIG_FILE).exists():
            write_checkpoint(folder, config, device)
        checkpoint = ours.load(folder, device)
        for name, package in packages.items():
            result[name] = beside(name, package, folder, checkpoint, args)
            if result[name]["rows"]:
                print(table([{"peer": name} | row for row in result[name]["rows"]]), flush=True)
    print("written:", save("peer", result, args.json))
    good = all("error" not in result[name] and _same(result[name]) for name in packages)
    return 0 if good else 1


def _same(result: dict[str, Any]) -> bool:
    """Whether the tokens were the same, where they were compared."""
    tokens = result.get("tokens")
    return tokens is None or tokens["equal"] == tokens["frames"]
