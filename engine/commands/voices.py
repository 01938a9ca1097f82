"""`python -m engine voices`: the voices of a model, the default first."""

import argparse

from engine.config import VOICE_NAMES
from engine.progress import show
from engine.runtime.choose import choose_model
from engine.weights.voices import open_voices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="auto", help="auto, embedded, a directory or repository")
    parser.add_argument("--revision", help="of the repository")


def run(args: argparse.Namespace) -> int:
    source, _why = choose_model(args.model)
    embedded = source == "embedded"
    names = VOICE_NAMES if embedded else open_voices(source, args.revision, show).names
    print("\n".join(names))
    return 0
