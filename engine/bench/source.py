"""Which model a server under test runs: one that is there, or a generated one written to disk.

A server reads files, as in earnest; `bench tick` and its like make their weights in memory.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from engine.bench.arguments import add_device, zero_or_more
from engine.config import PRECISIONS, VOICE_NAMES
from engine.errors import ConfigError

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
    from engine.runtime.generated_files import write_checkpoint
    from engine.runtime.hub import CONFIG
    from engine.runtime.loader import read_config

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
