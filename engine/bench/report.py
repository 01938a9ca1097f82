"""How every benchmark reports: a table for people, json for comparison."""

import argparse
import contextlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.config import PRECISIONS, VOICE_NAMES
from engine.errors import ConfigError
from engine.hardware import has_cuda


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text columns, in the order in which their keys first come."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_text(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def target(subject: str, path: str | None) -> Path:
    """The json file of a result: as asked for, or named after its subject."""
    return Path(path or f"bench-{subject}.json")


def save(subject: str, result: Mapping[str, Any], path: str | None) -> Path:
    """Write a result with when and where it was measured; the path of the json file."""
    record = {
        "subject": subject,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        **result,
    }
    file = target(subject, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return file


class BenchRecord:
    """A result whose json is written anew with every row: what is measured is kept at once."""

    def __init__(self, subject: str, path: str | None, **result: Any) -> None:
        self.subject, self.path, self.result = subject, path, result

    def add(self, row: Mapping[str, Any], to: str = "rows") -> None:
        self.result.setdefault(to, []).append(row)
        self.save()

    def save(self) -> Path:
        return save(self.subject, self.result, self.path)


# -- arguments -------------------------------------------------------------------------------------
#
# Options that several subjects share, and what is refused before anything is measured.

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


# -- source ----------------------------------------------------------------------------------------
#
# Which model a server under test runs: one that is there, or a generated one written to disk.
#
# A server reads files, as in earnest; `bench tick` and its like make their weights in memory.

VOICE_FRAMES = 50  # of the generated saved voice: four seconds, as the public ones


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a checkpoint's directory, or embedded")
    parser.add_argument("--random", action="store_true", help="generated weights (the default)")
    parser.add_argument("--small", action="store_true", help="less, of a reduced size: for a CPU")
    parser.add_argument("--folder", help="where the generated checkpoint is, or is put and kept")
    add_device(parser)
    parser.add_argument("--weights", nargs="+", default=["auto"], choices=PRECISIONS)
    parser.add_argument("--kv", nargs="+", default=["auto"], choices=PRECISIONS)
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument(
        "--slots", type=zero_or_more, default=0, help="of the server; 0: as many as fit"
    )
    parser.add_argument("--transcribe", help="recogniser to run beside the model")
    parser.add_argument("--format", choices=("pcm16", "opus"), default="pcm16")
    parser.add_argument("--json", help="where to write the result")


def precisions(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Every (weights, keys and values) asked for."""
    return list(product(args.weights, args.kv))


def serve_options(args: argparse.Namespace, model: str, weights: str, kv: str) -> list[str]:
    """The command line of the server. Random words must not look anything up: routing is off."""
    options = ["--model", model, "--routing", "0", "--device", args.device]
    options += ["--weights", weights, "--kv", kv, "--slots", str(args.slots)]
    options += ["--eager", "1"] if args.eager else []
    options += ["--transcribe", args.transcribe] if args.transcribe else []
    return options


@contextlib.contextmanager
def model_of(args: argparse.Namespace) -> Iterator[str]:
    """What the server is to load. Raises ConfigError."""
    if args.model and (args.random or args.folder):
        raise ConfigError(f"--model {args.model} and generated weights; give one of them")
    if args.model:
        yield args.model
    elif args.folder:
        yield _written(Path(args.folder), args)
    else:
        with tempfile.TemporaryDirectory(prefix="bench-model-") as scratch:
            yield _written(Path(scratch), args)


def _written(folder: Path, args: argparse.Namespace) -> str:
    """The generated checkpoint of a folder, made there unless it is there."""
    from engine.bench.device import config_of, device_of, release  # torch: only where it generates
    from engine.weights.generated import write_checkpoint
    from engine.weights.hub import CONFIG
    from engine.weights.loading import read_config

    config, saved = config_of(args), folder / "voices" / f"{VOICE_NAMES[0]}.pt"
    if not (folder / CONFIG).exists():
        start = time.monotonic()
        write_checkpoint(folder, config, device_of(args), 0)
        release()  # the server beside us needs the memory
        print(f"generated checkpoint written in {time.monotonic() - start:.1f} s", flush=True)
    written = read_config(folder)
    if replace(written.lm, dep_q=config.lm.dep_q) != config.lm or written.mimi != config.mimi:
        raise ConfigError(f"--folder {folder} holds a model of another size; give another folder")
    if not saved.exists():
        write_voice(saved, config.lm)
    return str(folder)


def write_voice(path: Path, lm) -> None:
    """A saved voice as the public checkpoint has them: no sound file has to be read for it."""
    import torch

    from engine.model.prompt import RING

    generator = torch.Generator().manual_seed(0)
    rows = [3, *(lm.silence_tokens), *(lm.sine_tokens)]
    saved = {
        "embeddings": torch.randn(VOICE_FRAMES, 1, 1, lm.dim, generator=generator),
        "cache": torch.tensor(rows)[None, :, None].repeat(1, 1, RING),
    }
    torch.save(saved, path)
