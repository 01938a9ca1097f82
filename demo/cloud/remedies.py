"""Faults in the words of an operator on Modal, who has secrets and deployments but no terminal."""

import re
from dataclasses import fields

from engine.config import ServerConfig
from engine.errors import EngineError
from engine.weights.hub import HubError, HubFault

ANEW = "then `modal app rollover personaplex`"  # a container that failed does not try again
SECRET = "modal secret create --force huggingface-secret HF_TOKEN=hf_…"
FETCH = "`modal run modal_app.py::download`"
REMEDIES = {
    HubFault.NO_TOKEN: f"accept the licence at {{page}}, store a token: `{SECRET}`, {ANEW}",
    HubFault.BAD_TOKEN: f"store a new one: `{SECRET}`, {ANEW}",
    HubFault.GATED: f"accept the licence at {{page}} with the token's account, {ANEW}",
    HubFault.LIMITED: f"wait some minutes, then {FETCH}, {ANEW}",
    HubFault.DOWN: f"see https://status.huggingface.co, later {FETCH}, {ANEW}",
    HubFault.NO_ROUTE: (
        f"see https://status.huggingface.co and https://status.modal.com, later {FETCH}, {ANEW}"
    ),
    HubFault.NOT_THERE: "see {page}, and PERSONAPLEX_MODEL and PERSONAPLEX_REVISION; deploy again",
    HubFault.DISK_FULL: "see what lies on the volume: `modal volume ls personaplex-weights`, "
    f"remove what is not needed, {ANEW}",
    HubFault.WRONG_SIZE: f"run {FETCH} again, {ANEW}",
    HubFault.CUT: f"run {FETCH} again (this file begins anew), {ANEW}",
}
ENGINE_COMMANDS = {  # what the engine's own texts advise at a terminal
    "`python -m engine download`": FETCH,
    " (python -m engine voices)": "",
}
OPTION = re.compile(r"--([a-z][a-z-]+)(?: (int8|bf16|cpu|cuda|DIR|\d+))?")


def describe_for_modal(error: BaseException) -> str:
    """One line: what is wrong, and what an operator on Modal does about it."""
    if isinstance(error, HubError):
        remedy = REMEDIES[error.fault].format(page=f"https://huggingface.co/{error.repository}")
        return f"{error.what}: {remedy}"
    text = str(error)
    for command, instead in ENGINE_COMMANDS.items():
        text = text.replace(command, instead)
    settings = {entry.name: entry.metadata["env"] for entry in fields(ServerConfig)}

    def name(match: re.Match[str]) -> str:
        setting = settings.get(match[1].replace("-", "_"))
        return match[0] if setting is None else setting + (f"={match[2]}" if match[2] else "")

    named = OPTION.sub(name, text)
    is_setting = isinstance(error, EngineError) and "PERSONAPLEX_" in named
    return f"{named}; set it when you deploy again" if is_setting else named
