"""`python -m engine COMMAND`: one module a command, loaded only when asked for.

A command module has `add_arguments(parser)` and `run(args) -> int`. Exit codes: 0 done, 1 failed
with one clear line, 2 wrong usage.
"""

import argparse
import importlib
import os
import sys
from typing import TextIO

from engine.errors import EngineError
from engine.install import describe_missing
from engine.logs import set_up_logs

COMMANDS = {
    "serve": ("engine.commands.serve", "serve /api without the page"),
    "talk": ("engine.commands.talk", "talk to a server from the terminal (wav or microphone)"),
    "check": ("engine.commands.check", "acceptance test of a running server"),
    "offline": ("engine.commands.offline", "wav in, wav and text json out"),
    "trace": ("engine.commands.trace", "like offline, with every token and tensor in one file"),
    "voices": ("engine.commands.voices", "list the voices of a model"),
    "spell": ("engine.commands.spell", "print the words by which a text is said"),
    "download": ("engine.commands.download", "fetch or resume the checkpoint"),
    "quantise": ("engine.commands.quantise", "write int8 weights beside a checkpoint, once"),
    "bench": ("engine.bench.__main__", "benchmarks: python -m engine bench SUBJECT"),
}


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The whole parser; only the module of `command` is imported for its options."""
    parser = argparse.ArgumentParser(prog="python -m engine", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help_text) in COMMANDS.items():
        sub = commands.add_parser(name, help=help_text, description=help_text)
        if name == command:
            importlib.import_module(module).add_arguments(sub)
    return parser


def complain(error: object) -> None:
    """Print one line of error where one can be written. Never raises."""
    for stream in (sys.stderr, sys.stdout):
        try:
            if stream is not None:
                print(f"error: {error}", file=stream, flush=True)
                return
        except OSError:
            silence(stream)


def silence(stream: TextIO) -> None:
    """Give a stream up that cannot be written; Python flushes it once more at exit, to nothing."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is stream:
            setattr(sys, name, None)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv and argv[0] in COMMANDS else None
    try:
        args = build_parser(command).parse_args(argv)
        set_up_logs()
        return importlib.import_module(COMMANDS[command][0]).run(args)
    except EngineError as error:
        complain(error)
        return 1
    except ModuleNotFoundError as error:
        complain(describe_missing(error))
        return 1
    except KeyboardInterrupt:
        return 1
