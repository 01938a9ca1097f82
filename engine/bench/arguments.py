"""Options that several subjects share, and what is refused before anything is measured."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from engine.bench.report import target
from engine.errors import ConfigError
from engine.hardware import has_cuda

WEIGHTS = ("bf16", "int8")
DEVICES = ("auto", "cuda", "cpu")


def at_least(low: int) -> Callable[[str], int]:
    """The type of an option: whole numbers from `low` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"it is {text}; use {low} or more")
        return value

    return number


positive, zero_or_more = at_least(1), at_least(0)  # 0 where it means all, or as many as fit


def duration(text: str) -> float:
    """The type of an option: seconds or minutes, more than none."""
    value = float(text)
    if not 0 < value < math.inf:  # NaN fails too
        raise argparse.ArgumentTypeError(f"it is {text}; use more than 0")
    return value


def add_precisions(parser: argparse.ArgumentParser, names: Sequence[str] = ("weights",)) -> None:
    for name in names:
        parser.add_argument(f"--{name}", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=DEVICES, default="auto")


def parsed(module: ModuleType, options: Sequence[str], prog: str = "") -> argparse.Namespace:
    """A subject's options; with --small its SMALL_OPTIONS are those not given."""
    parser = argparse.ArgumentParser(prog=prog or None)
    module.add_arguments(parser)
    args = parser.parse_args(options)
    if getattr(args, "small", False):
        parser.set_defaults(**getattr(module, "SMALL_OPTIONS", {}))
        args = parser.parse_args(options)
    return args


def check(subject: str, args: argparse.Namespace) -> None:
    """What would else be found when the work is done. Raises ConfigError."""
    if getattr(args, "device", "") == "cuda" and not has_cuda():
        raise ConfigError("--device cuda, but there is no CUDA device here; use cpu or auto")
    path = target(subject, args.json)
    check_file("--json", path, path)
    if folder := getattr(args, "folder", None):
        check_file("--folder", Path(folder), Path(folder) / ".bench")


def check_file(option: str, given: Path, path: Path) -> None:
    """Whether a file can be written at `path`. Raises ConfigError."""
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
    except OSError as error:
        why = error.strerror
        raise ConfigError(f"{option} {given} cannot be written ({why}); give another") from None
    if not there:
        path.unlink()
