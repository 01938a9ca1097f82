"""`python -m engine bench SUBJECT`: measure one subject, print a table, write a json file."""

import argparse
import importlib

from engine.bench.report import Subject, check_options, parse_options, result_path

SUBJECTS = {  # what is typed -> its module, and the subject's name there if the module has several
    "tick": "engine.bench.tick",
    "stages": "engine.bench.tick:STAGES",
    "connect": "engine.bench.tick:CONNECT",
    "memory": "engine.bench.tick:MEMORY",
    "load": "engine.bench.load",
    "capacity": "engine.bench.capacity",
    "soak": "engine.bench.capacity:SOAK",
    "server": "engine.bench.capacity:SERVER",
    "hostile": "engine.bench.hostile",
    "drift": "engine.bench.drift",
    "peer": "engine.bench.peer",
    "gpu": "engine.bench.gpu",
    "page": "engine.bench.page",
    "verify": "engine.bench.gpu:VERIFY",
    "routing": "engine.evals.dialogues",
    "turns": "engine.evals.turns",
    "tiles": "engine.tools.tiles",
    "fleet": "engine.bench.fleet",
}


def subjects() -> list[str]:
    return sorted(SUBJECTS)


def load_subject(name: str) -> Subject:
    """Import a subject; its module is loaded only now, because most of them load torch."""
    path, _, attribute = SUBJECTS[name].partition(":")
    module = importlib.import_module(path)
    if attribute:
        return getattr(module, attribute)
    return Subject(module.add_arguments, module.run, getattr(module, "SMALL_OPTIONS", {}))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", choices=subjects(), help="what to measure")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the subject")


def run(args: argparse.Namespace) -> int:
    subject = load_subject(args.subject)
    options = parse_options(subject, args.options, f"python -m engine bench {args.subject}")
    check_options(args.subject, options)
    code = subject.run(options)
    print("written:", result_path(args.subject, options.json))
    return code
