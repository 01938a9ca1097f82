"""`python -m engine bench SUBJECT`: one module a subject, each prints a table and writes json."""

import argparse
import importlib

from engine.bench.report import check, parsed

SUBJECTS = {  # by what is typed; evaluations and tools stand in rooms of their own
    **{name: f"engine.bench.{name}" for name in (
        *("capacity", "connect", "drift", "gpu", "load", "memory", "model", "peer", "recogniser"),
        *("server", "soak", "stages", "tick", "verify"),
    )},
    "routing": "engine.evals.dialogues",
    "turns": "engine.evals.turns",
    "kernels": "engine.tools.tiles",
    "codec": "engine.tools.codec_tiles",
}  # fmt: skip


def subjects() -> list[str]:
    """What can be measured."""
    return sorted(SUBJECTS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", choices=subjects(), help="what to measure")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the subject")


def run(args: argparse.Namespace) -> int:
    module = importlib.import_module(SUBJECTS[args.subject])
    options = parsed(module, args.options, f"python -m engine bench {args.subject}")
    check(args.subject, options)
    return module.run(options)
