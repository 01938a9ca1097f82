"""What is decided on the laptop when deploying: the image, its settings, and the two secrets.

Only modal and the standard library are needed here. The container never imports this file.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import modal
from modal.config import config as account
from modal_proto import api_pb2

from demo.cloud.settings import GPUS, SLOW_GPUS, check_deployment, tidy
from engine.config import parse_switch
from engine.errors import ConfigError
from engine.install import requirements

HF_SECRET, HF_KEY = "huggingface-secret", "HF_TOKEN"
DEEPSEEK_SECRET, DEEPSEEK_KEY = "deepseek-secret", "DEEPSEEK_API_KEY"
BESIDE_KEY = ("DEEPSEEK_BASE_URL", "DEEPSEEK_MODEL")  # a key belongs to one address
TOKEN, ROUTING = "PERSONAPLEX_TOKEN", "PERSONAPLEX_ROUTING"
NO_CARDS = ("UNSPECIFIED", "ANY")  # of the client's list; any card may be one that is too slow
ASK_SECONDS = 15.0  # for the account's answers: an import must neither hang nor fail

ROOT = Path(__file__).resolve().parents[2]
FOLDERS, IGNORE = ("engine", "demo", "assets"), ["**/__pycache__", "**/*.pyc"]
KNOWLEDGE = "/knowledge"  # where a knowledge folder lies in the container
# These do not travel as they are: secrets, local paths, and what the container fixes itself.
APART = {
    f"PERSONAPLEX_{name}"
    for name in (
        *("TOKEN", "KNOWLEDGE", "DEEPSEEK_SECRET", "HOST", "PORT"),
        *("TLS", "TLS_CERT", "TLS_KEY"),  # the platform speaks TLS for us
        "WS_URL",  # of Transgate: an address that may hold the token
    )
}


def check_settings() -> None:
    """Tidy the environment and refuse what cannot work. Raises SystemExit with value and fix."""
    for line in tidy(os.environ):
        print(line, file=sys.stderr)
    of_client = (name.removeprefix("GPU_TYPE_") for name in api_pb2.GPUType.keys())  # noqa: SIM118
    known = (name.replace("_", "-") for name in of_client if name not in NO_CARDS)
    try:
        check_deployment(os.environ, (*GPUS, *known))
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    for name in os.environ.get("PERSONAPLEX_GPU", "").split(","):
        if name in SLOW_GPUS:
            print(f"warning: {name} is too slow for a frame in 80 ms; A10G is not", file=sys.stderr)


def build_image(cache: str) -> modal.Image:
    """Packages, settings and code. The volume will be at `cache`.

    Raises SystemExit if there is no such folder of knowledge.
    """
    # Modal mounts its own client: a second one in the image would only compete with it.
    pins = [pin for pin in requirements("requirements.txt") if not pin.startswith("modal==")]
    built = modal.Image.debian_slim(python_version="3.11").uv_pip_install(*pins)
    built = built.env(image_environment(cache))
    for name in FOLDERS:
        built = built.add_local_dir(ROOT / name, f"/root/{name}", ignore=IGNORE)
    if knowledge := os.environ.get("PERSONAPLEX_KNOWLEDGE"):
        found = Path(knowledge).expanduser().resolve()
        if not found.is_dir():
            raise SystemExit(
                f"PERSONAPLEX_KNOWLEDGE is {knowledge!r}, which is no folder; name one"
            )
        built = built.add_local_dir(found, KNOWLEDGE)
    return built


def image_environment(cache: str) -> dict[str, str]:
    """Variables of the image: ours, and every plain PERSONAPLEX_ setting that is set here."""
    names = sorted(name for name in os.environ if name.startswith("PERSONAPLEX_"))
    plain = {name: os.environ[name] for name in names if name not in APART}
    if os.environ.get("PERSONAPLEX_KNOWLEDGE"):
        plain["PERSONAPLEX_KNOWLEDGE"] = KNOWLEDGE
    hub = {"HF_HOME": f"{cache}/hf", "HF_XET_HIGH_PERFORMANCE": "1"}
    return hub | {"PYTHONUNBUFFERED": "1"} | plain


def choose_secrets() -> list[modal.Secret]:
    """Two secrets: the model's, and that of smart routing, which also carries our own token.

    Raises SystemExit with the way out if it is certain that the model's is missing.
    """
    named = os.environ.get("PERSONAPLEX_DEEPSEEK_SECRET", "")
    embedded = os.environ.get("PERSONAPLEX_MODEL") == "embedded"
    asked = [] if embedded else [HF_SECRET]
    if not named and not os.environ.get(DEEPSEEK_KEY):
        asked.append(DEEPSEEK_SECRET)
    known = ask_which_exist(asked)
    if known.get(HF_SECRET) is False:
        raise SystemExit(
            f"secret {HF_SECRET} not found; create it (docs/modal.md, 3):\n"
            f"  modal secret create {HF_SECRET} {HF_KEY}=hf_...\n"
            "or deploy without the model, on CPU:\n"
            "  PERSONAPLEX_GPU=none PERSONAPLEX_MODEL=embedded modal deploy modal_app.py"
        )
    first = modal.Secret.from_dict({})
    if not embedded:
        first = modal.Secret.from_name(HF_SECRET, required_keys=[HF_KEY])
    return [first, choose_second_secret(named, known)]


def choose_second_secret(named: str, known: dict[str, bool]) -> modal.Secret:
    """The DeepSeek key, if there is one, and PERSONAPLEX_TOKEN, if it is set here."""
    key, token = os.environ.get(DEEPSEEK_KEY), os.environ.get(TOKEN)
    if known.get(DEEPSEEK_SECRET):
        named = DEEPSEEK_SECRET
    if named and named != "none":
        print_routing(f"on ({named})", is_on=True)
        for name in BESIDE_KEY:
            if os.environ.get(name):
                print(f"{name} is not sent: the key is in {named}, and its {name} belongs there")
        return add_token(named, token)
    routing = "off: no secret found"
    if named == "none":
        key, routing = None, "off: as PERSONAPLEX_DEEPSEEK_SECRET says"
    elif key:
        routing = f"on ({DEEPSEEK_KEY})"
    elif has_account() and DEEPSEEK_SECRET not in known:
        insist = f"PERSONAPLEX_DEEPSEEK_SECRET={DEEPSEEK_SECRET} insists"
        routing = f"off: Modal gave no answer; {insist}"
    print_routing(routing, is_on=bool(key))
    beside = {name: os.environ.get(name) or None for name in BESIDE_KEY} if key else {}
    return modal.Secret.from_dict({DEEPSEEK_KEY: key, TOKEN: token, **beside})


def print_routing(routing: str, is_on: bool) -> None:
    """Say whether questions are looked up, and who will write down those that are spoken."""
    asked = os.environ.get("PERSONAPLEX_TRANSCRIBE") or "auto"
    embedded = os.environ.get("PERSONAPLEX_MODEL") == "embedded"
    hears = "kyutai stt"
    routes = parse_switch(ROUTING, os.environ.get(ROUTING) or "1")
    if asked == "0" or (asked == "auto" and not routes):
        hears = "energy only, spoken questions are not routed"
    elif embedded or (asked == "auto" and not is_on):
        hears = "whisper, on the CPU"
    print(f"smart routing: {routing}\nhears: {hears}")


def add_token(name: str, token: str | None) -> modal.Secret:
    """A named secret, with our token added if it is set here: there is no third secret for it.

    Raises SystemExit if that fails: a server that is meant to be closed must not open.
    """
    secret = modal.Secret.from_name(name, required_keys=[DEEPSEEK_KEY])
    if token is None or not has_account():
        return secret
    try:
        run_in_time(lambda: modal.Secret.from_name(name).update({TOKEN: token}))
    except Exception as error:  # the account's boundary: whatever it was, say what to do
        raise SystemExit(
            f"{TOKEN} could not be added to the secret {name} ({error}); add it there by hand "
            f"(https://modal.com/secrets), unset {TOKEN} here and deploy again"
        ) from None
    print(f"access token: {'on' if token else 'off'} (kept in {name})")
    return secret


# -- the account -----------------------------------------------------------------------------------


def has_account() -> bool:
    """Whether a Modal token is configured, in the environment or by `modal setup`."""
    return bool(account.get("token_id") or account.get("oauth_refresh_token"))


def ask_which_exist(names: list[str]) -> dict[str, bool]:
    """Which of these exist. Those of which the account says nothing in time are left out."""
    known: dict[str, bool] = {}

    def ask() -> None:
        for name in names:
            try:
                modal.Secret.from_name(name).hydrate()
                known[name] = True
            except modal.exception.NotFoundError:
                known[name] = False

    if names and has_account():
        with contextlib.suppress(Exception):  # no network, no right: deploying will say it better
            run_in_time(ask)
    return dict(known)


def run_in_time(work: Callable[[], object]) -> None:
    """Do some work within ASK_SECONDS. Raises what it raised, or TimeoutError.

    It runs in a daemon thread: without a network Modal's client tries for minutes and holds the
    exit.
    """
    faults: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # carried over to the caller's thread
            faults.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ASK_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"Modal did not answer in {ASK_SECONDS:.0f} s")
    if faults:
        raise faults[0]
