"""`modal run modal_app.py::check` and `::download`: what needs no GPU, and so pays for none.

The check asks about keys, licence and volume. Both run in a CPU container, or anywhere else.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from demo.cloud.remedies import describe_for_modal
from demo.cloud.settings import container_config, tidy
from demo.cloud.volume import Commit, fetch, find_local_commit, is_repository
from engine.config import DeepSeekConfig, ServerConfig
from engine.errors import EngineError
from engine.weights import hub

DEEPSEEK_HOST = "api.deepseek.com"  # where a balance can be asked for
ASK_SECONDS = 20
PROGRESS_SECONDS = 10.0  # between two lines of a phase

Finding = tuple[bool, str]  # fine or not, one line


def check(cache: Path) -> None:
    """Print one line for each finding. Raises SystemExit if one of them is a fault."""
    faults = 0
    for line in tidy(os.environ):
        print(line, flush=True)
    try:
        config = config_without_gpu()
    except EngineError as error:
        raise SystemExit(f"error: {describe_for_modal(error)}") from None
    for fine, line in run_checks(config, cache):
        print(f"{'ok     ' if fine else 'PROBLEM'}  {line}", flush=True)
        faults += not fine
    if faults:
        raise SystemExit(f"{faults} problem{'s' * (faults > 1)}: see the lines above")
    print("ready: modal deploy modal_app.py", flush=True)


def download(commit: Commit, reload: Commit = lambda: None) -> None:
    """Fetch weights, and a recogniser's, onto the volume. Raises SystemExit in one clear line."""
    tidy(os.environ)
    started = time.monotonic()
    try:
        config = config_without_gpu()
        if config.transcribe == "auto":
            config = replace(config, transcribe="1")  # it may be turned on later
        fetched = fetch(config, make_progress_printer(), commit, reload)
    except EngineError as error:
        raise SystemExit(f"error: {describe_for_modal(error)}") from None
    what = f"{config.model} is on the volume, {time.monotonic() - started:.0f} s"
    if not is_repository(config.model):
        what = f"model {config.model} needs no download"
    elif not fetched:
        what = f"{config.model} is on the volume already"
    print(what, flush=True)


def config_without_gpu() -> ServerConfig:
    """The server's settings on a machine that will not run the model. Raises ConfigError."""
    return container_config({**os.environ, "PERSONAPLEX_DEVICE": "cpu"}, port=8998)


def make_progress_printer() -> hub.Progress:
    """A progress callback that prints each new phase, and then at most a line in ten seconds."""
    last: dict[str, float] = {}

    def progress(phase: str, percent: float) -> None:
        now = time.monotonic()
        if now - last.get(phase, float("-inf")) >= PROGRESS_SECONDS:
            last[phase] = now
            print(f"{phase}: {percent:.0f} %", flush=True)

    return progress


def run_checks(config: ServerConfig, cache: Path) -> Iterator[Finding]:
    """Ask everything that can be asked without a GPU, one after the other."""
    yield check_token(config)
    if is_repository(config.model):
        yield check_licence(config)
    yield check_deepseek(os.environ)
    probe = cache / f".check-{os.getpid()}"
    try:
        probe.write_text("writable", encoding="utf-8")
        probe.unlink()
        yield True, f"the volume at {cache} is writable"
    except OSError as error:
        yield False, f"the volume at {cache} cannot be written ({error})"
    if is_repository(config.model):
        if find_local_commit(config.model, config.revision or hub.DEFAULT_REVISION):
            yield True, f"the weights of {config.model} are on the volume"
        else:
            yield True, "the weights are not on the volume yet: modal run modal_app.py::download"


def check_token(config: ServerConfig) -> Finding:
    if not is_repository(config.model):
        return True, f"model {config.model}: needs no Hugging Face token"
    token = os.environ.get("HF_TOKEN", "")
    if not token:
        return False, "HF_TOKEN is missing from the secret huggingface-secret"
    if not token.startswith("hf_"):
        return False, "HF_TOKEN does not begin with hf_; copy it again, without quotes"
    return True, f"HF_TOKEN is set, {len(token)} characters"


def check_licence(config: ServerConfig) -> Finding:
    """Whether this token may read the files of the model, which is gated."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        HfApi().auth_check(config.model)
    except (HTTPError, OSError, ValueError) as error:
        revision = config.revision or hub.DEFAULT_REVISION
        fault = hub.explain(error, config.model, revision, hub.LM_FILE, "--model")
        return False, describe_for_modal(fault)
    return True, f"the licence of {config.model} is granted to this token"


class KeyStays(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: followed, it would take the key to another address."""

    def redirect_request(self, *_: object) -> None:
        return None


OPENER = urllib.request.build_opener(KeyStays)


def check_deepseek(environ: Mapping[str, str]) -> Finding:
    """Whether the key works, and has money, where it will be used. Asking costs nothing."""
    try:
        config = DeepSeekConfig.from_environment(environ)
    except EngineError as error:
        return False, str(error)
    if not config.api_key:
        return True, "smart routing is off: there is no DEEPSEEK_API_KEY (this is fine)"
    address = urlsplit(config.base_url)
    host = address.netloc
    is_own = host == DEEPSEEK_HOST  # whose balance has one address, with and without /v1
    models = f"{config.base_url.rstrip('/')}/models"
    request = urllib.request.Request(
        f"{address.scheme}://{host}/user/balance" if is_own else models,
        headers={"Authorization": f"Bearer {config.api_key}"},
    )
    try:
        with OPENER.open(request, timeout=ASK_SECONDS) as answer:
            body = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return False, f"{host} refuses the key ({error.code}); make a new one there"
        return False, f"{host} answers {error.code}; see DEEPSEEK_BASE_URL, or try again later"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return False, f"{host} cannot be asked ({error}); see DEEPSEEK_BASE_URL, or try again later"
    if is_own and not (isinstance(body, dict) and body.get("is_available")):
        return False, "the DeepSeek key is right, but its account has no balance: top it up"
    return True, f"smart routing is on: {host} takes the key, for the model {config.model}"
