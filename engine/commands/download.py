"""`python -m engine download`: fetch the checkpoint, or go on where it was cut short."""

import argparse

from engine.progress import show
from engine.weights.hub import DEFAULT_REPOSITORY, fetch
from engine.weights.voices import Voices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", "--hf-repo", dest="model", default=DEFAULT_REPOSITORY, help="a repository"
    )
    parser.add_argument(
        "--transcribe", metavar="REPOSITORY", help="a recogniser as well; 1: the usual one"
    )
    parser.add_argument("--revision", help="a branch, tag or commit; default: the pinned one")


def run(args: argparse.Namespace) -> int:
    folder = fetch(args.model, args.revision, show)
    print(f"{args.model} is in {folder}, with {len(Voices(folder).names)} voices")
    if args.transcribe:
        from engine.weights.loading import download_recogniser  # torch: only where asked for

        print(f"the recogniser is in {download_recogniser(args.transcribe, show)}")
    return 0
