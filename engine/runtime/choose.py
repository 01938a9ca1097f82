"""Which backend `--model` means: auto, embedded, a directory, or a Hugging Face repository.

Loads no torch: whether there is a GPU is asked of the driver's own library.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import ServerConfig, choose_recogniser
from engine.errors import ModelError
from engine.install import describe_missing
from engine.weights.hub import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from engine.runtime.backend import Backend
    from engine.runtime.ears import Ears
    from engine.weights.loading import Shelf

logger = logging.getLogger(__name__)

EMBEDDED_SLOTS = 16


def has_cuda() -> bool:
    """Whether the NVIDIA driver is here and sees a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):  # 0 is success
        return False
    return count.value > 0


def choose_model(model: str) -> tuple[str, str]:
    """(`embedded`, a directory or a repository; why) for what was asked for."""
    if model != "auto":
        return model, "as asked"
    if not has_cuda():
        return "embedded", "no CUDA device here, so the built-in test voice speaks"
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    folder = home / "hub" / f"models--{DEFAULT_REPOSITORY.replace('/', '--')}" / "snapshots"
    has_token = bool(os.environ.get("HF_TOKEN")) or (home / "token").exists()
    if has_token or any(folder.glob("*/model.safetensors")):
        return DEFAULT_REPOSITORY, "a CUDA device is here, and weights or a token for them"
    return "embedded", "there is a CUDA device, but neither weights nor HF_TOKEN"


def load_backend(
    config: ServerConfig, progress: Callable[[str, float], None], shelf: "Shelf"
) -> "Backend":
    """Load what the configuration asks for; `shelf` finds a model's voices. Raises ModelError."""
    source, _why = choose_model(config.model)
    if source == "embedded":
        from engine.runtime.embedded import EmbeddedBackend  # eSpeak: only where it speaks

        return EmbeddedBackend(config.slots or EMBEDDED_SLOTS)
    try:
        from engine.runtime.starting import load_personaplex  # torch: only where it is needed
    except ModuleNotFoundError as error:
        raise ModelError(describe_missing(error)) from None
    recogniser = choose_recogniser(config, os.environ)
    if recogniser and config.transcribe == "auto":
        from engine.weights.loading import download_recogniser

        try:
            recogniser = str(download_recogniser(recogniser, progress))
        except ModelError as error:  # nobody asked for it by name: the CPU's ears may do
            logger.warning("no recogniser in the model: %s", error)
            recogniser = ""
    device = config.device
    if device == "auto":
        device = "cuda" if has_cuda() else "cpu"
    return load_personaplex(
        source,
        shelf,
        device=device,
        slots=config.slots,
        revision=config.revision or None,
        transcribe=recogniser,
        precision=(config.weights, config.kv),
        graphs=not config.eager,
        renewal_frames=config.renewal_frames,
        progress=progress,
    )


def load_ears(
    config: ServerConfig, backend: "Backend", names: str, progress: Callable[[str, float], None]
) -> "tuple[Ears | None, str]":
    """The CPU's ears, where the model has no recogniser; and what is heard, for people.

    names: what the facts are about, so that it is written as they write it.
    """
    if backend.transcribes:
        return None, "kyutai stt"
    deaf = "energy only, spoken questions are not routed"
    if config.transcribe == "0":
        return None, f"{deaf}: --transcribe is 0"
    if config.transcribe == "auto" and not config.routing:
        return None, f"{deaf}: --routing is 0"
    try:
        from engine.runtime.ears import Ears, find_whisper

        ears = Ears()
    except ModuleNotFoundError as error:
        return None, f"{deaf}: {describe_missing(error)}"
    try:
        ears.load(find_whisper(config.transcribe, progress), names)
    except (ModelError, OSError, RuntimeError, ValueError) as error:
        return ears, f"voice activity only, spoken questions are not routed: {error}"
    return ears, "whisper"
