"""Which backend `--model` means: auto, embedded, a directory, or a Hugging Face repository.

Loads no torch: whether there is a GPU is asked of the driver's own library.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import ServerConfig, choose_recogniser
from engine.errors import ModelError
from engine.install import describe_missing
from engine.weights.hub import DEFAULT_REPOSITORY, LM_FILE, has_token, repository_folder

if TYPE_CHECKING:
    from engine.runtime.backend import Backend
    from engine.runtime.ears import Ears

logger = logging.getLogger(__name__)

EMBEDDED_SLOTS = 16


def cuda_device_name() -> str:
    """The first GPU's name, asked of the NVIDIA driver; empty where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    name = ctypes.create_string_buffer(100)
    if driver.cuInit(0) or driver.cuDeviceGetName(name, len(name), 0):  # 0 is success
        return ""
    return name.value.decode(errors="replace")


def has_cuda() -> bool:
    return bool(cuda_device_name())


def choose_device(device: str) -> str:
    """`cpu`, `cuda` or whatever else was asked for; `auto` is a GPU where there is one."""
    if device != "auto":
        return device
    return "cuda" if has_cuda() else "cpu"


def choose_model(model: str) -> tuple[str, str]:
    """(`embedded`, a directory or a repository; why) for what was asked for."""
    if model != "auto":
        return model, "as asked"
    if not has_cuda():
        return "embedded", "no CUDA device here, so the built-in test voice speaks"
    if has_token() or any(repository_folder(DEFAULT_REPOSITORY).glob(f"snapshots/*/{LM_FILE}")):
        return DEFAULT_REPOSITORY, "a CUDA device is here, and weights or a token for them"
    return "embedded", "there is a CUDA device, but neither weights nor HF_TOKEN"


def load_backend(config: ServerConfig, progress: Callable[[str, float], None]) -> "Backend":
    """Load what the configuration asks for. Raises ModelError."""
    source, _why = choose_model(config.model)
    if source == "embedded":
        from engine.runtime.embedded import EmbeddedBackend  # eSpeak: only where it speaks

        return EmbeddedBackend(config.slots or EMBEDDED_SLOTS)
    try:
        from engine.runtime.starting import load_personaplex  # torch: only where it is needed
    except ModuleNotFoundError as error:
        raise ModelError(describe_missing(error)) from None
    recogniser = find_recogniser(config, progress)
    config = replace(config, model=source, device=choose_device(config.device))
    return load_personaplex(config, progress, recogniser)


def find_recogniser(config: ServerConfig, progress: Callable[[str, float], None]) -> Path | None:
    """The folder of the recogniser that the model is to have, fetched if need be; None: none.

    Raises ModelError where it was asked for by name and cannot be had.
    """
    source = choose_recogniser(config, os.environ)
    if not source:
        return None
    from engine.weights.loading import download_recogniser  # brings torch along

    try:
        return download_recogniser(source, progress)
    except ModelError as error:
        if config.transcribe != "auto":
            raise
        logger.warning("no recogniser in the model: %s", error)  # the CPU's ears may do
        return None


def load_ears(
    config: ServerConfig, backend: "Backend", names: str, progress: Callable[[str, float], None]
) -> "tuple[Ears | None, str]":
    """The CPU's ears, where the model has no recogniser; and what is heard, for people.

    names: what the facts are about, so that it is written as they write it.
    """
    if backend.transcribes:
        return None, "kyutai stt"
    deaf = "energy only, spoken questions are not routed"
    if config.transcribe in ("", "0"):
        return None, f"{deaf}: --transcribe is 0"
    if config.transcribe == "auto" and not config.routing:
        return None, f"{deaf}: --routing is 0"
    try:
        from engine.runtime.ears import Ears, find_whisper

        ears = Ears()
    except ModuleNotFoundError as error:
        return None, f"{deaf}: {describe_missing(error)}"
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # a package that is broken
        return None, f"{deaf}: {error}"
    try:
        ears.load(find_whisper(config.transcribe, progress), names)
    except (ModelError, OSError, RuntimeError, ValueError) as error:
        return ears, f"voice activity only, spoken questions are not routed: {error}"
    return ears, "whisper"
