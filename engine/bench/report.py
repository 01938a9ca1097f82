"""What all benchmarks share: their options, the model that a server runs, and how they report.

A result is a table for people and a json file for comparison. Loads no torch by itself.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.commands.outputs import check_output
from engine.config import PRECISIONS
from engine.errors import ConfigError
from engine.runtime.choose import has_cuda


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure: its options, how it runs, and what --small changes of the options."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]  # -> exit code
    small: Mapping[str, Any] = field(default_factory=dict)


def parse_options(subject: Subject, options: Sequence[str], prog: str = "") -> argparse.Namespace:
    """A subject's options; with --small the subject's own small values replace the defaults."""
    parser = argparse.ArgumentParser(prog=prog or None)
    subject.add_arguments(parser)
    parser.add_argument("--json", help="where to write the result")
    args = parser.parse_args(options)
    if getattr(args, "small", False):
        parser.set_defaults(**subject.small)
        args = parser.parse_args(options)
    return args


def check_options(subject: str, args: argparse.Namespace) -> None:
    """Find now what would else be found when the work is done. Raises ConfigError."""
    if getattr(args, "device", "") == "cuda" and not has_cuda():
        raise ConfigError("--device cuda, but there is no CUDA device here; use cpu or auto")
    check_output("--json", result_path(subject, args.json))


def positive(text: str) -> int:
    """The type of an option: whole numbers from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"it is {text}; use 1 or more")
    return value


def duration(text: str) -> float:
    """The type of an option: seconds or minutes, more than none."""
    value = float(text)
    if not 0 < value < math.inf:  # NaN fails too
        raise argparse.ArgumentTypeError(f"it is {text}; use more than 0")
    return value


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--small", action="store_true", help="less, of a reduced size: for a CPU")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")


def add_precisions(parser: argparse.ArgumentParser, names: Sequence[str] = ("weights",)) -> None:
    for name in names:
        known = ["bf16", "int8"]
        parser.add_argument(f"--{name}", nargs="+", choices=known, default=known)


# -- results ---------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text, with a column for each key in the order of first appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def text(value: Any) -> str:
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    cells = [names, *([text(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def result_path(subject: str, path: str | None) -> Path:
    """The json file of a result: as asked for, or named after its subject."""
    return Path(path or f"bench-{subject}.json")


def save(subject: str, result: Mapping[str, Any], path: str | None) -> None:
    """Write a result with the date and the machine."""
    record = {
        "subject": subject,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        **result,
    }
    file = result_path(subject, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


class BenchRecord:
    """Rows in a json file that is written anew with each of them, so that a crash loses nothing."""

    def __init__(self, subject: str, args: argparse.Namespace, **result: Any) -> None:
        from engine.bench.device import pick_device  # loads torch, as each of these subjects does

        self._subject, self._path = subject, args.json
        self.result: dict[str, Any] = {"device": pick_device(args), **result, "rows": []}

    def add(self, row: Mapping[str, Any]) -> None:
        self.result["rows"].append(row)
        save(self._subject, self.result, self._path)


# -- the model of a server under test --------------------------------------------------------------


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a checkpoint's directory, or embedded")
    parser.add_argument("--random", action="store_true", help="generated weights (the default)")
    parser.add_argument("--folder", help="where the generated checkpoint is, or is put and kept")
    add_device(parser)
    parser.add_argument("--weights", default="auto", choices=PRECISIONS)
    parser.add_argument("--kv", default="auto", choices=PRECISIONS)
    parser.add_argument("--slots", type=positive, help="as many as fit, unless given")
    parser.add_argument("--transcribe", help="recogniser to run beside the model")


def serve_options(args: argparse.Namespace, model: str) -> list[str]:
    """The command line of the server. Routing is off: random words must not look anything up."""
    options = ["--model", model, "--routing", "0", "--device", args.device]
    options += ["--weights", args.weights, "--kv", args.kv]
    options += ["--slots", str(args.slots)] if args.slots else []
    return options + (["--transcribe", args.transcribe] if args.transcribe else [])


@contextlib.contextmanager
def choose_model(args: argparse.Namespace) -> Iterator[str]:
    """What the server is to load: a model that is there, or a generated one written to disk.

    A server reads files, as in earnest. Raises ConfigError.
    """
    if args.model and (args.random or args.folder):
        raise ConfigError(f"--model {args.model} and generated weights; give one of them")
    if args.model:
        yield args.model
    elif args.folder:
        yield write_generated(Path(args.folder), args)
    else:
        with tempfile.TemporaryDirectory(prefix="bench-model-") as scratch:
            yield write_generated(Path(scratch), args)


def write_generated(folder: Path, args: argparse.Namespace) -> str:
    """Put a generated checkpoint into a folder unless one is there; returns the folder."""
    from engine.bench.device import pick_config, pick_device, release_memory  # loads torch
    from engine.weights.generated import write_checkpoint
    from engine.weights.hub import CONFIG
    from engine.weights.loading import read_config

    config = pick_config(args)
    if not (folder / CONFIG).exists():
        start = time.monotonic()
        write_checkpoint(folder, config, pick_device(args), 0)
        release_memory()  # the server beside us needs the memory
        print(f"generated checkpoint written in {time.monotonic() - start:.1f} s", flush=True)
    written = read_config(folder)
    if replace(written.lm, dep_q=config.lm.dep_q) != config.lm or written.mimi != config.mimi:
        raise ConfigError(f"--folder {folder} holds a model of another size; give another folder")
    return str(folder)
