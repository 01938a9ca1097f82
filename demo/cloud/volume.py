"""What lies on the volume that all containers share: weights, and compiled kernels.

Modal is unknown here. How a volume is committed comes in as a callable.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from engine.config import ServerConfig, choose_recogniser
from engine.errors import ConfigError, ModelError
from engine.runtime.choose import choose_device, cuda_device_name, find_recogniser
from engine.weights import hub

logger = logging.getLogger(__name__)

Commit = Callable[[], None]


def is_repository(model: str) -> bool:
    """Whether `--model` names a repository, which must be fetched."""
    return model != "embedded" and not Path(model).expanduser().is_dir()


def pin_to_local(config: ServerConfig) -> ServerConfig:
    """The same settings, at the commit whose files are all here: then loading asks nobody."""
    if not is_repository(config.model):
        return config
    commit = find_local_commit(config.model, config.revision or hub.DEFAULT_REVISION)
    return replace(config, revision=commit) if commit else config


def find_local_commit(repository: str, revision: str, files: tuple[str, ...] = hub.FILES) -> str:
    """The commit that a revision means, if every file of it is here; else an empty text."""
    folder = hub.repository_folder(repository)
    ref = folder / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    here = all((folder / "snapshots" / commit / name).is_file() for name in files)
    return commit if here else ""


def fetch(config: ServerConfig, progress: hub.Progress, commit: Commit) -> bool:
    """Fetch what is missing and commit the volume; whether anything was. Raises ModelError."""
    fetched = False
    if is_repository(config.model) and pin_to_local(config) is config:
        hub.fetch(config.model, config.revision or None, progress)
        fetched = True
    wants_one = config.model != "embedded" and choose_recogniser(config, os.environ)
    if wants_one and not find_local_recogniser(config):
        fetched |= find_recogniser(config, progress) is not None
    if fetched:
        progress("saving the weights to the volume", 0.0)
        commit()
    return fetched


def find_local_recogniser(config: ServerConfig) -> Path | None:
    """The folder of the recogniser that a start takes, if it is here: nobody is asked."""
    from engine.weights.loading import DEFAULT_RECOGNISER  # brings torch along

    source = choose_recogniser(config, os.environ)
    name = DEFAULT_RECOGNISER if source == "1" else source
    if not source or not is_repository(name):
        return Path(name).expanduser() if source else None
    commit = find_local_commit(name, hub.DEFAULT_REVISION, (hub.CONFIG, hub.LM_FILE))
    return hub.repository_folder(name) / "snapshots" / commit if commit else None


def keep_int8(config: ServerConfig, progress: hub.Progress, commit: Commit) -> None:
    """Write the int8 weights that this start reads, where they can be kept, and commit new ones."""
    if config.weights == "bf16" or not is_repository(config.model):
        return
    from engine.weights import loading  # brings torch along
    from engine.weights.verdict import choose_precision, choose_recogniser_precision

    device = choose_device(config.device)
    folder = hub.find(config.model, config.revision or None, progress)
    written: list[float] = []  # percents: none where good int8 weights are there

    def report(percent: float) -> None:
        written.append(percent)
        progress("keeping the int8 weights", percent)

    try:
        if choose_precision((config.weights, config.kv), folder, device)[0] == "int8":
            loading.quantise_checkpoint(folder, device, report)
        recogniser = find_local_recogniser(config)  # `fetch` has brought it
        weights = recogniser and choose_recogniser_precision(
            config.weights, folder, recogniser, device
        )
        if weights == "int8":
            loading.quantise_recogniser(recogniser, device, report)
    except ModelError as error:
        logger.warning("%s", error)
    if written:
        progress("saving the int8 weights to the volume", 0.0)
        commit()


def set_compile_cache(environ: MutableMapping[str, str], cache: Path) -> None:
    """Let kernels be kept on the volume, Triton's in a folder for each device and version.

    CUDA C++ needs no such folder: a kernel is known there by source, flags and architecture.
    """
    # The driver is asked: torch must not load yet.
    name = (cuda_device_name() or "cpu").replace(" ", "-").replace("/", "-").lower()
    with contextlib.suppress(metadata.PackageNotFoundError):
        name += f"-triton{metadata.version('triton')}"
    environ.setdefault("TRITON_CACHE_DIR", str(cache / "compiled" / name))
    environ.setdefault("PERSONAPLEX_KERNEL_CACHE", str(cache / "compiled" / "cuda"))


# -- settings --------------------------------------------------------------------------------------


def container_config(environ: Mapping[str, str], port: int) -> ServerConfig:
    """The settings, never `auto`: a paid GPU must not serve the test voice. Raises ConfigError."""
    # The platform asks for the port on the container's own address.
    config = ServerConfig.from_environment(environ, host="0.0.0.0", port=port)
    if config.model == "auto":
        config = replace(config, model=hub.DEFAULT_REPOSITORY)
    if is_repository(config.model) and config.device == "auto":
        if environ.get("PERSONAPLEX_GPU", "").lower() == "none":
            raise ConfigError(
                f"PERSONAPLEX_GPU is none, which is too little for {config.model}; "
                "deploy with PERSONAPLEX_MODEL=embedded, or with a GPU"
            )
        config = replace(config, device="cuda")
    return config
