"""What is decided on the laptop when deploying: the image, its settings, and its secrets.

Only modal and the standard library are needed here. The container never imports this file.
"""

import contextlib
import os
import threading
from pathlib import Path

import modal
from modal.config import config as account

from engine.install import requirements

HF_SECRET, HF_KEY = "huggingface-secret", "HF_TOKEN"
DEEPSEEK_SECRET, DEEPSEEK_KEY = "deepseek-secret", "DEEPSEEK_API_KEY"
TOKEN = "PERSONAPLEX_TOKEN"
ASK_SECONDS = 15.0  # for the account's answers: an import must neither hang nor fail

ROOT = Path(__file__).resolve().parents[2]
FOLDERS, IGNORE = ("engine", "demo", "assets"), ["**/__pycache__", "**/*.pyc"]
KNOWLEDGE = "/knowledge"  # where a knowledge folder lies in the container
# These do not travel as they are: secrets, local paths, and what the container fixes itself.
APART = {
    f"PERSONAPLEX_{name}" for name in ("TOKEN", "KNOWLEDGE", "DEEPSEEK_SECRET", "HOST", "PORT")
}


def build_image(cache: str) -> modal.Image:
    """Packages, settings and code. Raises SystemExit if PERSONAPLEX_KNOWLEDGE is no folder."""
    # Modal mounts its own client: a second one in the image would only compete with it.
    pins = [pin for pin in requirements("requirements.txt") if not pin.startswith("modal==")]
    built = modal.Image.debian_slim(python_version="3.11").uv_pip_install(*pins)
    settings = {"HF_HOME": f"{cache}/hf", "HF_XET_HIGH_PERFORMANCE": "1", "PYTHONUNBUFFERED": "1"}
    own = sorted(name for name in os.environ if name.startswith("PERSONAPLEX_"))
    settings |= {name: os.environ[name] for name in own if name not in APART}
    knowledge = os.environ.get("PERSONAPLEX_KNOWLEDGE")
    if knowledge:
        settings["PERSONAPLEX_KNOWLEDGE"] = KNOWLEDGE
    built = built.env(settings)
    for name in FOLDERS:
        built = built.add_local_dir(ROOT / name, f"/root/{name}", ignore=IGNORE)
    if knowledge:
        found = Path(knowledge).expanduser().resolve()
        if not found.is_dir():
            raise SystemExit(
                f"PERSONAPLEX_KNOWLEDGE is {knowledge!r}, which is no folder; name one"
            )
        built = built.add_local_dir(found, KNOWLEDGE)
    return built


def choose_secrets() -> list[modal.Secret]:
    """The model's, smart routing's, and our token's. Raises SystemExit if the first is missing."""
    key, named = os.environ.get(DEEPSEEK_KEY), os.environ.get("PERSONAPLEX_DEEPSEEK_SECRET", "")
    embedded = os.environ.get("PERSONAPLEX_MODEL") == "embedded"
    asked = [] if embedded else [HF_SECRET]
    if not named and not key:
        asked.append(DEEPSEEK_SECRET)
    known = ask_which_exist(asked)
    if known.get(HF_SECRET) is False:
        raise SystemExit(
            f"secret {HF_SECRET} not found; create it (docs/modal.md, step 4):\n"
            f"  modal secret create {HF_SECRET} {HF_KEY}=hf_...\n"
            "or deploy without the model, on CPU:\n"
            "  PERSONAPLEX_GPU=none PERSONAPLEX_MODEL=embedded modal deploy modal_app.py"
        )
    model = modal.Secret.from_dict({})
    if not embedded:
        model = modal.Secret.from_name(HF_SECRET, required_keys=[HF_KEY])
    if known.get(DEEPSEEK_SECRET):
        named = DEEPSEEK_SECRET
    routing = "off: no secret found"
    if named == "none":
        key, routing = None, "off: as PERSONAPLEX_DEEPSEEK_SECRET says"
    elif named:
        routing = f"on ({named})"
    elif key:
        routing = f"on ({DEEPSEEK_KEY})"
    elif has_account() and DEEPSEEK_SECRET not in known:
        insist = f"PERSONAPLEX_DEEPSEEK_SECRET={DEEPSEEK_SECRET} insists"
        routing = f"off: Modal gave no answer; {insist}"
    print(f"smart routing: {routing}")
    deepseek = modal.Secret.from_dict({DEEPSEEK_KEY: key})
    if named and named != "none":
        deepseek = modal.Secret.from_name(named, required_keys=[DEEPSEEK_KEY])
    return [model, deepseek, modal.Secret.from_dict({TOKEN: os.environ.get(TOKEN)})]


# -- the account -----------------------------------------------------------------------------------


def has_account() -> bool:
    """Whether a Modal token is configured, in the environment or by `modal setup`."""
    return bool(account.get("token_id") or account.get("oauth_refresh_token"))


def ask_which_exist(names: list[str]) -> dict[str, bool]:
    """Which of these exist. Those of which the account says nothing in time are left out.

    Asked in a daemon thread: without a network Modal's client tries for minutes and holds the exit.
    """
    known: dict[str, bool] = {}

    def ask() -> None:
        with contextlib.suppress(Exception):  # no network, no right: deploying will say it better
            for name in names:
                try:
                    modal.Secret.from_name(name).hydrate()
                    known[name] = True
                except modal.exception.NotFoundError:
                    known[name] = False

    if names and has_account():
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(ASK_SECONDS)
    return dict(known)
