"""docs/api.md is held against the code, and its Python recipes are run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine import errors
from engine.config import ServerConfig
from engine.runtime.metrics import Metrics, Stage
from engine.wire import limits, protocol
from engine.wire import protocol as query
from engine.wire import socket as conversation
from engine.wire.socket import COMMAND_COST, LETTERS_PER_MESSAGE, RESTART_COST

DOC = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_documented_version_is_the_protocols():
    assert f"version **{protocol.VERSION}**" in DOC


@pytest.mark.parametrize("kind", protocol.Kind)
def test_every_kind_is_documented_with_its_number(kind):
    assert re.search(rf"^\| 0x{kind:02x} \| {kind.name.lower()} \|", DOC, re.MULTILINE)


def test_no_kind_is_documented_that_does_not_exist():
    assert len(re.findall(r"^\| 0x0\d \|", DOC, re.MULTILINE)) == len(protocol.Kind)


@pytest.mark.parametrize(
    "name",
    [
        *query.SAMPLING,
        *["seed", "text_seed", "audio_seed", "text_prompt", "voice_prompt", "format"],
    ],
)
def test_every_query_parameter_is_documented(name):
    section = DOC.split("## Query parameters")[1].split("## Metadata")[0]
    assert f"`{name}`" in section


@pytest.mark.parametrize("name", ["events", "routing", "token"])
def test_every_switch_is_documented(name):
    assert f"| `{name}` |" in DOC


@pytest.mark.parametrize(
    "error",
    [cls for cls in errors.EndError.__subclasses__() if cls.prefix],
)
def test_every_reason_to_end_is_documented_with_its_close_code(error):
    assert f"| `{error.prefix}` | {error.close_code} |" in DOC


@pytest.mark.parametrize("control", protocol.Control)
def test_every_control_byte_is_documented(control):
    row = next(line for line in DOC.splitlines() if line.startswith("| 0x03"))
    assert f"{control.value} {control.name.lower().replace('_', ' ')}" in row


def test_every_metric_and_every_stage_is_documented():
    section = DOC.split("## Metrics")[1].split("## Recipes")[0]
    for family in Metrics().registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"`{name}`" in section
    for stage in Stage:
        assert f"`{stage}`" in section


def test_the_limits_and_who_may_talk_are_documented_as_they_are():
    limits_section = DOC.split("## Limits")[1].split("## Access")[0]
    access = DOC.split("## Access")[1].split("## Plain HTTP")[0]
    config = ServerConfig()
    for number in (
        *(
            conversation.MESSAGES_PER_SECOND,
            conversation.MESSAGES_AT_ONCE,
            conversation.TOO_FAST_SECONDS,
        ),
        *(conversation.UNREAD_SECONDS, limits.REQUEST_SECONDS, limits.IDLE_SECONDS),
        *(config.max_sockets_per_address, config.max_sockets_total),
        *(COMMAND_COST, RESTART_COST, LETTERS_PER_MESSAGE),
    ):
        assert re.search(rf"\b{number:.0f}\b", limits_section), number
    for name in ("MAX_SOCKETS_PER_ADDRESS", "MAX_SOCKETS_TOTAL", "TRUSTED_PROXIES"):
        assert f"`PERSONAPLEX_{name}`" in limits_section
    for name in ("TOKEN", "ALLOWED_ORIGINS", "OPEN_METRICS"):
        assert f"PERSONAPLEX_{name}" in access
    assert f"{protocol.MAX_METADATA_BYTES:_} bytes".replace("_", " ") in DOC


RECIPES = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)


@pytest.mark.parametrize(
    ("recipe", "prints"),
    list(zip(RECIPES, ('"state": "done"', "Two."), strict=True)),
    ids=["say", "text-only"],
)
def test_a_python_recipe_runs_against_a_server(recipe, prints, server):
    code = recipe.replace("http://localhost:8998", server.url)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert prints in done.stdout
