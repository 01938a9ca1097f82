"""What an operator on Modal is told to do: nothing that needs a terminal inside the container."""

import re
from pathlib import Path

import pytest

from demo.cloud.remedies import REMEDIES, describe_for_modal
from engine.errors import ConfigError, ModelError
from engine.weights.hub import HubError, HubFault
from tests.modal.rehearsal import ROOT

TERMINAL = re.compile(r"python -m|hf auth|HF_TOKEN=\.\.\.|(?<!create) --")


@pytest.mark.parametrize("fault", HubFault)
def test_every_fault_of_the_hub_has_a_remedy_on_modal(fault):
    assert fault in REMEDIES
    error = HubError(fault, "it broke", "run `python -m engine download`", "someone/model")
    said = describe_for_modal(error)
    assert said.startswith("it broke: ")
    assert not TERMINAL.search(said)
    assert "{" not in said
    if fault is not HubFault.NOT_THERE:  # this one needs another setting, so another deployment
        assert said.endswith("then `modal app rollover personaplex`")  # it does not try again


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "cuda ran out of memory; take fewer --slots, --weights int8 --kv int8, or a larger GPU",
            "cuda ran out of memory; take fewer PERSONAPLEX_SLOTS, PERSONAPLEX_WEIGHTS=int8 "
            "PERSONAPLEX_KV=int8, or a larger GPU; set it when you deploy again",
        ),
        (
            "m.safetensors is cut short; run `python -m engine download` to fetch it again",
            "m.safetensors is cut short; run `modal run modal_app.py::download` to fetch it again",
        ),
    ],
)
def test_options_and_commands_become_settings_and_modals_commands(text, said):
    assert describe_for_modal(ModelError(text)) == said


def test_a_setting_is_set_by_deploying_again():
    said = describe_for_modal(ConfigError("PERSONAPLEX_SLOTS is 'many'; use a number"))
    assert said.endswith("use a number; set it when you deploy again")


def test_no_text_of_the_weights_or_the_model_is_left_with_a_command_for_a_terminal():
    """Every string of a load that names a command is one that is translated."""
    sources = [*(ROOT / "engine/weights").glob("*.py"), ROOT / "engine/runtime/starting.py"]
    found = [
        text
        for path in sources
        if path.name != "hub.py"
        for line in Path(path).read_text(encoding="utf-8").splitlines()
        if not line.startswith('"""') and "logger" not in line
        for text in re.findall(r'"([^"]*python -m engine (?:download|voices)[^"]*)"', line)
    ]
    assert len(found) >= 3
    assert not [text for text in found if TERMINAL.search(describe_for_modal(ModelError(text)))]
