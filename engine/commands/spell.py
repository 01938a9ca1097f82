"""`python -m engine spell`: the words by which a text is said, as the agent's voice gets them."""

import argparse
import sys

from engine.dialogue.text import spell_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text",
        metavar="TEXT",
        help="the text (-- before one that begins with a minus); -: a text a line from standard "
        "input, a line of words for each",
    )


def run(args: argparse.Namespace) -> int:
    if args.text != "-":
        print(spell_text(args.text))
        return 0
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    for line in sys.stdin:
        print(spell_text(line), flush=True)
    return 0
