"""docs/modal.md: every command exists and is spelled right, every setting is real, sums add up."""

import json
import re
import shlex
from dataclasses import fields

import click
import pytest
from modal.cli.entry_point import entrypoint_cli

from demo.cloud import deploying
from engine.config import ServerConfig
from tests.modal.rehearsal import ROOT

TEXT = (ROOT / "docs" / "modal.md").read_text(encoding="utf-8")
APP = (ROOT / "modal_app.py").read_text(encoding="utf-8")
CARDS = json.loads((ROOT / "docs" / "measurements" / "cards.json").read_text(encoding="utf-8"))
PER_SECOND = {card["name"]: card["usd_per_s"] for card in CARDS["cards"]}
CORE, GIB = 0.0000131, 0.00000222
ASSIGNMENT = re.compile(r"^[A-Z_]+=")


def commands(program: str) -> list[list[str]]:
    """Each command of a program in the text, in blocks and in back quotes, as its words."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
    found = []
    for line in lines:
        words = shlex.split(line)
        while words and ASSIGNMENT.match(words[0]):
            words = words[1:]
        if words[: len(program.split())] == program.split():
            found.append(words[len(program.split()) :])
    return found


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that these words name, and what is left of them."""
    command: click.Command = entrypoint_cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_there_is_something_to_check():
    assert len(commands("modal")) > 25
    assert ["app", "logs", "personaplex", "-f"] in commands("modal")


@pytest.mark.parametrize("words", commands("modal"), ids=" ".join)
def test_every_modal_command_exists_with_its_options(words):
    command, rest = resolve(words)
    assert command is not entrypoint_cli, f"modal {words[0]} does not exist"
    inner = rest[rest.index("--") + 1 :] if "--" in rest else []  # run in the container
    rest = rest[: len(rest) - len(inner)]
    known = {name for param in command.params for name in getattr(param, "opts", [])}
    for option in (word for word in rest if word.startswith("-") and word != "--"):
        assert option in known, f"modal {' '.join(words)}: {option} is none of {sorted(known)}"
    if rest and not isinstance(command, click.Group):  # alone: a mention in the text
        command.make_context("modal", list(rest), resilient_parsing=True)
        values = [word for word in rest if not word.startswith("-")]
        options = [param for param in command.params if isinstance(param, click.Option)]
        taking = [o for o in options if set(o.opts) & set(rest) and not o.is_flag]
        wanted = [p for p in command.params if isinstance(p, click.Argument)]
        assert len(values) + len(inner) - len(taking) >= sum(param.required for param in wanted)


def test_choices_of_options_are_real():
    strategy = next(p for p in resolve(["deploy"])[0].params if p.name == "strategy")
    used = re.findall(r"--strategy (\w+)", TEXT)
    assert used
    assert set(used) <= set(strategy.type.choices)


def test_every_function_that_is_run_is_in_the_app():
    names = re.findall(r"modal_app\.py::(\w+)", TEXT)
    assert {"check", "download", "gates"} <= set(names)
    assert all(f"def {name}(" in APP for name in names)


def test_every_setting_in_the_text_is_real():
    named = set(re.findall(r"PERSONAPLEX_\w+", TEXT))
    server = {entry.metadata["env"] for entry in fields(ServerConfig)}
    deployment = deployment_settings()
    # The first belongs to Transgate; knowledge comes with smart routing.
    assert named - server - deployment <= {"PERSONAPLEX_WS_URL", "PERSONAPLEX_KNOWLEDGE"}


def deployment_settings() -> set[str]:
    """Every setting that the deployment reads, and the container apart from the server."""
    read = set(re.findall(r'(?:setting|number)\("(\w+)"', APP))
    cloud = "".join((ROOT / "demo/cloud" / f"{name}.py").read_text() for name in (
        "container", "deploying",
    ))  # fmt: skip
    return {f"PERSONAPLEX_{name}" for name in read} | set(re.findall(r"PERSONAPLEX_\w+", cloud))


def test_every_setting_of_the_deployment_is_in_the_table():
    table = TEXT[TEXT.index("## All settings") : TEXT.index("## When something")]
    server = {entry.metadata["env"] for entry in fields(ServerConfig)}
    for name in deployment_settings() - server:
        assert f"`{name}`" in table, name


def test_names_of_secrets_keys_app_and_volume_are_those_of_the_code():
    for name in (
        *(deploying.HF_SECRET, deploying.HF_KEY, deploying.DEEPSEEK_SECRET),
        *(deploying.DEEPSEEK_KEY, "personaplex-weights", "personaplex-server", "8998"),
    ):
        assert name in TEXT
        assert name in APP + (ROOT / "demo" / "cloud" / "deploying.py").read_text()


def row(label: str) -> list[float]:
    """The four numbers of a row of the cost table."""
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| {label}"))
    return [float(cell.strip().removesuffix(" ms")) for cell in line.split("|")[2:6]]


def test_the_costs_are_computed_from_the_prices():
    hourly = [price * 3600 for price in PER_SECOND.values()]
    whole = [price + 3600 * (4 * CORE + 16 * GIB) for price in hourly]
    assert all(f"{name} ${price:f}" in TEXT for name, price in PER_SECOND.items())
    assert row("GPU alone") == [round(price, 2) for price in hourly]
    assert row("with CPU and memory") == [round(price, 2) for price in whole]
    conversations = row("conversations at once, bf16")
    alone, full = row("$ per conversation minute, one"), row("$ per conversation minute, all")
    assert alone == [round(price / 60, 3) for price in whole]
    assert full == [round(w / 60 / n, 4) for w, n in zip(whole, conversations, strict=True)]
    assert f"${12 * whole[0] / 60:.2f}" in TEXT
    assert f"${730 * whole[0]:,.0f}" in TEXT
    assert f"${24 * whole[0]:.0f} a day" in TEXT


def test_every_number_of_the_table_says_where_it_comes_from():
    table = TEXT[TEXT.index("| | A10G") : TEXT.index("Conversations are the smaller")]
    for line in table.strip().splitlines()[2:]:
        assert re.search(r"\| (measured|projected|list price)[^|]*\|$", line), line


def test_links_point_somewhere_sane():
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link
    hosts = set(re.findall(r"<https://([^/>]+)", TEXT))
    assert hosts == {"modal.com", "huggingface.co", "platform.deepseek.com"}
    assert not re.search(r"/root/|/home/|/tmp/|/work/|pypi|registry", TEXT)
    assert all(len(line) <= 130 or line.startswith("|") for line in TEXT.splitlines())
