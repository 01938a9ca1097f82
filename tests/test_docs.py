"""Every command of our own that a document names is real, with its options and their values."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from engine.bench.__main__ import load_subject, subjects
from engine.bench.report import parse_options
from engine.cli import COMMANDS, build_parser
from engine.commands.serve import add_arguments

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "docs/performance.md",
    "docs/internals.md",
    "docs/modal.md",
    "docs/modal-scaling.md",
    "docs/api.md",
)
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^(?:\.venv/bin/)?python -m (engine|demo)(?= |$)")


def lines(text: str) -> list[str]:
    """What stands in blocks, line by line, and between back quotes."""
    quoted = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    return [line for block in BLOCK.findall(text) for line in block.splitlines()] + [
        " ".join(line.split()) for line in quoted
    ]


def commands(text: str) -> list[list[str]]:
    """Each command of ours as its words: `engine`, `demo` or `bench`, then what it is given."""
    found = []
    for line in lines(text):
        if line.startswith("make run ARGS="):
            found.append(["demo", *shlex.split(shlex.split(line)[2].removeprefix("ARGS="))])
        elif PYTHON.match(line):
            found.append(shlex.split(PYTHON.sub(r"\1", line), comments=True))
        elif line.startswith("bench ") and line.split()[1] in subjects():
            found.append(["engine", *line.split()])
    return found


def every_command() -> list[tuple[str, str]]:
    """(document, command), each once."""
    return sorted(
        {
            (name, shlex.join(words))
            for name in DOCUMENTS
            for words in commands((ROOT / name).read_text(encoding="utf-8"))
        }
    )


def test_there_is_something_to_check():
    counts = {name: sum(name == document for document, _ in every_command()) for name in DOCUMENTS}
    assert counts["README.md"] > 10
    assert counts["docs/performance.md"] > 10
    assert min(counts.values()) > 0
    assert ("README.md", "engine bench gpu --random") in every_command()


@pytest.mark.parametrize(("document", "command"), every_command(), ids=": ".join)
def test_every_command_of_our_own_is_real(document, command):
    program, *words = (word for word in shlex.split(command) if word != "--help")
    if program == "demo":
        page = argparse.ArgumentParser()
        add_arguments(page)
        page.parse_args(words)
    elif words[:1] == ["bench"]:
        bench(words[1:])
    else:
        assert words[0] in COMMANDS
        if words[1:]:  # alone: a mention in the text
            build_parser(words[0]).parse_args(words)


def bench(words: list[str]) -> None:
    """A subject and its options; SUBJECT stands for any of them."""
    if words == ["SUBJECT"]:
        return
    assert words[0] in subjects()
    parse_options(load_subject(words[0]), words[1:])


@pytest.mark.parametrize(
    "wrong",
    ["engine bench tick --weight int4", "engine bench gpux", "demo --prot 1", "engine sing"],
)
def test_a_command_that_is_not_real_is_noticed(wrong):
    with pytest.raises((SystemExit, AssertionError)):
        test_every_command_of_our_own_is_real("README.md", wrong)
