"""What an operator on Modal sets: tidied, and refused on the laptop where it could not work.

Needs the standard library alone, because it runs where nothing but `modal` is installed. The
container reads the same settings again, together with what the secrets bring.
"""

import difflib
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import fields, replace
from pathlib import Path
from typing import NoReturn

from engine.config import (
    VOICE_NAMES,
    Bounds,
    DeepSeekConfig,
    ServerConfig,
    parse_switch,
    trim,
)
from engine.errors import ConfigError
from engine.weights import hub

PREFIX = "PERSONAPLEX_"
DAY = 86_400  # s; the longest call that Modal allows
NUMBERS = {  # whole numbers of the deployment
    "CPU": Bounds(1, 64),
    "MEMORY": Bounds(1024, 344_064),
    "TIMEOUT": Bounds(60, DAY),
    "STARTUP_TIMEOUT": Bounds(60, DAY),
    "SCALEDOWN_WINDOW": Bounds(2, 1200),
    "MIN_CONTAINERS": Bounds(0, 1000),
    "MAX_CONTAINERS": Bounds(1, 1000),
    "BUFFER_CONTAINERS": Bounds(0, 1000),
    "MAX_INPUTS": Bounds(1, 1000),
    "TARGET_INPUTS": Bounds(1, 1000),
}
SWITCHES = ("SNAPSHOT", "PROXY_AUTH")
GROWING = ("0", "1", "places")
WORDS = ("GPU", "REGION", "DEEPSEEK_SECRET", "AUTOSCALE", "WS_URL")  # the last is Transgate's
TIMEOUT_SECONDS = 3600  # the default of PERSONAPLEX_TIMEOUT
VOLUME = "/cache"
# Modal's documented names; the client's own list is added when deploying.
GPUS = (
    *("T4", "L4", "A10", "A10G", "L40S", "A100", "A100-40GB", "A100-80GB"),
    *("RTX-PRO-6000", "H100", "H100!", "H200", "B200", "B200+", "B300"),
)
SLOW_GPUS = ("T4", "L4")
NEW_GPU = "new:"  # before a name that no list has yet
MOST_DIGITS = 12  # of a number; Python itself refuses to read some thousands


def tidy(environ: MutableMapping[str, str]) -> list[str]:
    """Trim line ends, blanks and quotes around our values and keys; a line for each that had some.

    They come from copying, from `.env` files written on Windows, and from `set NAME="value"`.
    A token of nothing else stays, for ServerConfig refuses it: empty it would open the server.
    """
    told = []
    for name in sorted(environ):
        if not name.startswith((PREFIX, "DEEPSEEK_")) and name != "HF_TOKEN":
            continue
        text = environ[name]
        # 'self' is written with quotes
        value = text.strip() if name == f"{PREFIX}FRAME_ANCESTORS" else trim(text)
        if value != text and (value or name != f"{PREFIX}TOKEN"):
            environ[name] = value
            told.append(f"warning: {name} had blanks, quotes or a line end around it; without them")
    return told


def check_deployment(
    environ: MutableMapping[str, str], known_gpus: tuple[str, ...] = GPUS
) -> ServerConfig:
    """Refuse what cannot work, and write switches and GPUs as the app reads them.

    Raises ConfigError.
    """
    check_names(environ)
    numbers = check_growth(environ)
    for name in SWITCHES:
        if text := environ.get(PREFIX + name):
            environ[PREFIX + name] = "1" if parse_switch(PREFIX + name, text) else "0"
    for name in ("GPU", "REGION"):
        if text := environ.get(PREFIX + name):
            environ[PREFIX + name] = ",".join(split_list(PREFIX + name, text))
    if text := environ.get(f"{PREFIX}GPU"):
        environ[f"{PREFIX}GPU"] = check_gpus(text, known_gpus)
    config = container_config(environ, port=8998)
    if config.model != "embedded" and environ.get(f"{PREFIX}GPU") == "none":
        refuse_without_gpu(config.model)
    for name in ("model", "transcribe"):
        check_source(name, getattr(config, name))
    check_voice(config)
    DeepSeekConfig.from_environment(environ)
    check_bounds(numbers, config)
    return config


def check_voice(config: ServerConfig) -> None:
    """Where the voices are known, ours must be one. Raises ConfigError."""
    if config.model not in ("embedded", hub.DEFAULT_REPOSITORY):
        return
    asked = config.voice.strip().lower().removesuffix(".pt").removesuffix(".wav")
    if asked not in {name.lower() for name in VOICE_NAMES}:
        raise ConfigError(
            f"PERSONAPLEX_VOICE is {config.voice!r}; use one of {', '.join(VOICE_NAMES)}"
        )


def check_growth(environ: Mapping[str, str]) -> dict[str, int | None]:
    """The whole numbers of the deployment. Raises ConfigError, also for a way to grow."""
    if (growing := environ.get(f"{PREFIX}AUTOSCALE") or "1") not in GROWING:
        raise ConfigError(f"{PREFIX}AUTOSCALE is {growing!r}; use {', '.join(GROWING)}")
    return {name: read_number(environ, name) for name in NUMBERS}


def refuse_without_gpu(what: str) -> NoReturn:
    """Raises ConfigError."""
    raise ConfigError(
        f"PERSONAPLEX_GPU is none, which is too little for {what}; "
        "deploy with PERSONAPLEX_MODEL=embedded, or with a GPU"
    )


def check_bounds(numbers: Mapping[str, int | None], config: ServerConfig) -> None:
    """Settings that only together make no sense. Raises ConfigError."""
    least, most = numbers["MIN_CONTAINERS"] or 0, numbers["MAX_CONTAINERS"] or 10
    if least > most:
        raise ConfigError(
            f"PERSONAPLEX_MIN_CONTAINERS is {least}, which is more than the {most} of "
            "PERSONAPLEX_MAX_CONTAINERS; lower one or raise the other"
        )
    target, inputs = numbers["TARGET_INPUTS"] or 1, numbers["MAX_INPUTS"] or 100
    if target > inputs:
        raise ConfigError(
            f"PERSONAPLEX_TARGET_INPUTS is {target}, which is more than the {inputs} of "
            "PERSONAPLEX_MAX_INPUTS; lower one or raise the other"
        )
    if config.slots > inputs:
        raise ConfigError(
            f"PERSONAPLEX_SLOTS is {config.slots}, but a container takes no more than the {inputs} "
            "inputs of PERSONAPLEX_MAX_INPUTS, page loads among them; raise it well above"
        )
    timeout = numbers["TIMEOUT"] or TIMEOUT_SECONDS
    if config.session_s >= timeout:
        raise ConfigError(
            f"PERSONAPLEX_SESSION_S is {config.session_s:g}, but Modal cuts every connection "
            f"after PERSONAPLEX_TIMEOUT, {timeout} s, without a word; keep it below"
        )


def check_names(environ: Mapping[str, str]) -> None:
    """Raises ConfigError for a setting that nobody reads: it is misspelled."""
    known = {entry.metadata["env"] for entry in fields(ServerConfig)}
    known |= {PREFIX + name for name in (*NUMBERS, *SWITCHES, *WORDS)}
    for name in environ:
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"do you mean {near[0]}?" if near else "docs/modal.md lists the settings"
            raise ConfigError(f"there is no setting {name}; {hint}")


def read_number(environ: Mapping[str, str], name: str) -> int | None:
    """A whole number of the deployment; None: not set. Raises ConfigError."""
    text, bounds = environ.get(PREFIX + name, ""), NUMBERS[name]
    if not text:
        return None
    if not text.isdecimal() or len(text) > MOST_DIGITS:
        asked = f"a whole number from {bounds.low:g} to {bounds.high:g}"
        raise ConfigError(f"{PREFIX}{name} is {text[:80]!r}; use {asked}")
    bounds.check(PREFIX + name, int(text))
    return int(text)


def split_list(name: str, text: str) -> list[str]:
    """The parts of a list with commas. Raises ConfigError where one is empty."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{name} is {text!r}, where a name is missing; use names with commas")
    return parts


def check_gpus(text: str, known: tuple[str, ...]) -> str:
    """Names of GPUs as Modal is to hear them. Raises ConfigError."""
    names = []
    for name in text.split(","):
        if name.lower().startswith(NEW_GPU):
            card = name[len(NEW_GPU) :].strip().upper()
            if not re.fullmatch(r"[A-Z0-9+!-]+", card):
                raise ConfigError(f"{PREFIX}GPU is {name!r}; use one name after {NEW_GPU}")
            names.append("none" if card == "NONE" else card)
            continue
        if ":" in name:
            one = f"{PREFIX}GPU={name.partition(':')[0]}"
            raise ConfigError(f"{PREFIX}GPU is {name!r}; a container uses one GPU: {one}")
        if name.upper() not in (*known, "NONE"):
            raise ConfigError(
                f"{PREFIX}GPU is {name!r}; use {', '.join(sorted(set(known)))} or none, or "
                f"{NEW_GPU}{name.upper()} if Modal has a card of this name by now"
            )
        names.append("none" if name.lower() == "none" else name.upper())
    if "none" in names and names[1:]:
        raise ConfigError(f"{PREFIX}GPU is {text!r}; none stands alone")
    return ",".join(names)


def check_source(name: str, source: str) -> None:
    """Raises ConfigError for a folder of the laptop: the container does not have it."""
    if source in ("auto", "embedded", "0", "1", "") or source.startswith(f"{VOLUME}/"):
        return
    if source.count("/") != 1 or source[0] in "./~" or Path(source).is_dir():
        raise ConfigError(
            f"{PREFIX}{name.upper()} is {source!r}; in the container there is no such folder: "
            f"use a repository such as {hub.DEFAULT_REPOSITORY}, or a folder of the volume, "
            f"{VOLUME}/…"
        )


def container_config(environ: Mapping[str, str], port: int) -> ServerConfig:
    """The settings, never `auto`: a paid GPU must not serve the test voice. Raises ConfigError."""
    # The platform asks for the port on the container's own address.
    config = ServerConfig.from_environment(environ, host="0.0.0.0", port=port)
    if config.model == "auto":
        config = replace(config, model=hub.DEFAULT_REPOSITORY)
    if config.model == "embedded" or config.device == "cpu":
        return config
    if environ.get(f"{PREFIX}GPU", "").lower() == "none":
        refuse_without_gpu(config.model)
    return replace(config, device="cuda")
