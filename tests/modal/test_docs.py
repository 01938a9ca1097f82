"""The pages about Modal: every command exists, every setting is real, sums add up."""

import json
import re
import shlex
from dataclasses import fields

import click
import pytest

from demo.cloud.settings import NUMBERS, SWITCHES, WORDS
from engine.bench.__main__ import load_subject
from engine.bench.fleet import FleetPlan, describe, make_callers, simulate
from engine.bench.report import parse_options
from engine.config import ServerConfig
from tests.modal.rehearsal import ROOT

GUIDE, SCALING, GATES = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("modal", "modal-scaling", "modal-gates")
)
TEXT = "\n".join((GUIDE, SCALING, GATES))
APP = (ROOT / "modal_app.py").read_text(encoding="utf-8")
CARDS = json.loads((ROOT / "docs" / "measurements" / "cards.json").read_text(encoding="utf-8"))
PER_SECOND = {card["name"]: card["usd_per_s"] for card in CARDS["cards"]}
CORE, GIB = CARDS["prices"]["core_usd_per_s"], CARDS["prices"]["gib_usd_per_s"]
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
    from modal.cli.entry_point import entrypoint_cli  # loads modal; few need it

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
    assert rest != words, f"modal {words[0]} does not exist"
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
    read = set(re.findall(r'(?:setting|number|names)\("(\w+)"', APP))
    own = {f"PERSONAPLEX_{name}" for name in (*NUMBERS, *SWITCHES, *WORDS)}
    assert {f"PERSONAPLEX_{name}" for name in read} <= own
    return own - {"PERSONAPLEX_WS_URL"}


def test_every_setting_of_the_deployment_is_in_the_table():
    table = SCALING[SCALING.index("## All settings") :]
    server = {entry.metadata["env"] for entry in fields(ServerConfig)}
    for name in deployment_settings() - server:
        assert f"`{name}`" in table, name


def test_names_of_secrets_keys_app_and_volume_are_those_of_the_code():
    from demo.cloud import deploying  # loads modal; few need it

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
    assert f"${CORE:.7f}, a GiB of memory ${GIB:.8f} a second" in TEXT
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


def test_the_table_of_the_fleet_is_what_the_bench_prints():
    """Its quickest rows are simulated anew, with the bench's own defaults."""
    args = parse_options(load_subject("fleet"), [])
    for way, reading in (("fixed", "sum"), ("spare", "sum"), ("spare", "beside")):
        plan = FleetPlan(
            way, reading, args.places, args.takes_s, args.warm_s, args.patience_s,
            args.max_containers, args.scaledown_s, args.page_requests, args.page_s,
        )  # fmt: skip
        result = simulate(plan, make_callers(30, 60.0, args.talk_s, args.seed), args.seed)
        row = describe("30 in a minute", plan, result, args.dollars_per_hour)
        served, gpus = row["served"].split()[0], row["GPUs"]
        waited, price = f"{row['waited p50 s']}/{row['p95 s']}", row["$ per minute"]
        line = f"| 30 in a minute | {way} | {reading} | {served}, {waited}, {gpus}, {price} |"
        assert line in SCALING, line


# Everything that the guide which ours replaces has told, as the specification and the fourth issue
# have it: where ours says it or answers it.
SEED = {
    "commands": [
        *("pip install modal", "modal setup", "modal secret create huggingface-secret HF_TOKEN="),
        *("modal secret create deepseek-secret DEEPSEEK_API_KEY=", "modal secret list"),
        *("modal serve modal_app.py", "modal deploy modal_app.py", "modal app logs personaplex -f"),
        *("modal app stop personaplex", "modal app list", "npx wscat -c", "new WebSocket("),
    ],
    "addresses": [
        "https://WORKSPACE--personaplex-server.modal.run",
        "https://WORKSPACE--personaplex-server-dev.modal.run",
        "wss://WORKSPACE--personaplex-server.modal.run/api",
        "PERSONAPLEX_WS_URL=wss://",
        *(".env.local", ".env.production", "/healthz", "?token="),
    ],
    "secrets": ["huggingface-secret", "HF_TOKEN", "hf_", "deepseek-secret", "sk-", "**Read**"],
    "licence": [
        "https://huggingface.co/nvidia/personaplex-7b-v1",
        "Agree and access repository",
        "You have been granted access to this model",
    ],
    "errors": [
        *("403 Forbidden", "GatedRepoError", "Secret not found", "connection refused"),
        *("out of memory", "busy", "cold start", "broke off", "(401)", "HTTP 404"),
    ],
    "numbers": [
        "$0.46",
        "$330",
        "17 GB",
        "$1,035",
        "$30 a month",
        "five idle minutes",
        "4 in bf16",
    ],
    "modes": ["PERSONAPLEX_MIN_CONTAINERS=1", "PERSONAPLEX_SLOTS=1", "Python 3.10", "snapshots"],
}


@pytest.mark.parametrize(
    ("kind", "words"), [(kind, words) for kind, all_of in SEED.items() for words in all_of]
)
def test_nothing_of_the_former_guide_is_lost(kind, words):
    assert words in GUIDE, kind


def test_the_guide_is_short_and_comes_to_a_page_without_a_licence_first():
    assert len(GUIDE.splitlines()) <= 200
    first = GUIDE.index("export PERSONAPLEX_GPU=none PERSONAPLEX_MODEL=embedded\nmodal deploy")
    assert GUIDE.index("git clone") < GUIDE.index("-m venv") < first < GUIDE.index("The licence")
    for later in ("(modal-scaling.", "(modal-gates.", "(unauthenticated)", "--detach", "$env:"):
        assert later in GUIDE
    assert "modal app rollover personaplex" in GUIDE  # a changed secret


def test_links_point_somewhere_sane():
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link
    hosts = set(re.findall(r"[<(]https://([^/>)]+)", TEXT))
    assert hosts == {"modal.com", "huggingface.co", "platform.deepseek.com"}
    assert not re.search(r"/root/|/home/|/tmp/|/work/|pypi|registry", TEXT)
    assert all(len(line) <= 130 or line.startswith("|") for line in TEXT.splitlines())
