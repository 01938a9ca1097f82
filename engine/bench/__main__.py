"""`python -m engine bench SUBJECT`: one module a subject, each prints a table and writes json."""

import argparse
import importlib
import pkgutil

import engine.bench as room
from engine.bench.arguments import check, parsed

# modules of this room that measure nothing themselves
HELPERS = (
    *("__main__", "arguments", "crowd", "device", "fits", "forcing", "paced", "peers", "process"),
    *("profiled", "report", "scripted", "source", "standin", "talks"),
)


def subjects() -> list[str]:
    """The modules beside this one that measure something."""
    names = [module.name for module in pkgutil.iter_modules(room.__path__)]
    return sorted(name for name in names if name not in HELPERS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", choices=subjects(), help="what to measure")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the subject")


def run(args: argparse.Namespace) -> int:
    module = importlib.import_module(f"engine.bench.{args.subject}")
    options = parsed(module, args.options, f"python -m engine bench {args.subject}")
    check(args.subject, options)
    return module.run(options)
