"""`python -m engine spell`: the words by which a text is said, as the agent's voice gets them."""

import argparse
import sys

from engine.dialogue.text import spell_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", help="the text; -: a text a line from stdin")


def run(args: argparse.Namespace) -> int:
    if args.text != "-":
        print(spell_text(args.text))
        return 0
    sys.stdin.reconfigure(errors="replace")
    for line in sys.stdin:
        print(spell_text(line), flush=True)
    return 0
