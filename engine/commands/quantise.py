"""`python -m engine quantise`: write int8 weights beside a checkpoint, for every later start."""

import argparse

from engine.progress import show
from engine.runtime.choose import choose_device
from engine.weights.hub import DEFAULT_REPOSITORY, find


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_REPOSITORY, help="a directory or repository")
    parser.add_argument("--revision", help="of the repository")
    parser.add_argument(
        "--transcribe", metavar="REPOSITORY", help="a recogniser's too; 1: the usual one"
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cuda", "cpu"),
        help="where the weights will run: int8 weights belong to a kind of device",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from engine.weights.loading import (  # torch: not for --help
        download_recogniser,
        quantise_checkpoint,
        quantise_recogniser,
    )

    device = choose_device(args.device)
    work = [(find(args.model, args.revision, show), quantise_checkpoint)]
    if args.transcribe:
        work.append((download_recogniser(args.transcribe, show), quantise_recogniser))
    for folder, quantise in work:
        kept = quantise(folder, device, lambda percent: show("quantising", percent))
        print(f"int8 weights for {device} are in {kept}")
    return 0
