"""What lies on the volume that all containers share: weights, and compiled kernels.

Modal is unknown here. How a volume is committed comes in as a callable.
"""

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.config import ServerConfig, choose_recogniser
from engine.errors import ModelError
from engine.runtime.choose import choose_device, cuda_device_name, find_recogniser
from engine.weights import hub

logger = logging.getLogger(__name__)

Commit = Callable[[], None]

BEAT_SECONDS = 30.0  # between two signs of life of who fetches
STALE_SECONDS = 240.0  # without one it was killed; a commit of much takes a while
SETTLE_SECONDS = 2.0  # until a commit is seen by all
POLL_SECONDS = 5.0  # between two looks of who waits


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
    # A damaged one names no folder, and fetching writes it anew.
    commit = (
        ref.read_text(encoding="utf-8", errors="replace").strip() if ref.is_file() else revision
    )
    here = all((folder / "snapshots" / commit / name).is_file() for name in files)
    return commit if here else ""


def fetch(
    config: ServerConfig,
    progress: hub.Progress,
    commit: Commit,
    reload: Commit = lambda: None,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Fetch what is missing and commit the volume; whether anything was. Raises ModelError.

    Containers that start at once take turns: the second finds what the first has fetched.
    """
    see_others(reload)  # a container sees the volume as it was at its own start
    if not is_missing(config):
        return False
    turn = FetchTurn(hub.repository_folder(config.model).parent, commit, reload, pause)
    if not turn.take(lambda: is_missing(config), progress):
        return False
    fetched = False
    try:
        if is_repository(config.model) and pin_to_local(config) is config:
            hub.fetch(config.model, config.revision or None, progress)
            fetched = True
        if choose_recogniser(config, os.environ) and not find_local_recogniser(config):
            fetched |= find_recogniser(config, progress) is not None
        progress("saving the weights to the volume", 0.0)
    finally:
        turn.end()
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


def is_missing(config: ServerConfig) -> bool:
    """Whether weights, or the recogniser's, that this configuration wants are not here."""
    if config.model == "embedded":
        return False
    if is_repository(config.model) and pin_to_local(config) is config:
        return True
    return bool(choose_recogniser(config, os.environ)) and not find_local_recogniser(config)


def see_others(reload: Commit) -> None:
    """Look at what other containers have committed. A failure only costs a download."""
    try:
        reload()
    except Exception as error:  # the platform's boundary
        logger.warning("the volume was not reloaded: %s", error)


class FetchTurn:
    """A lock between containers: a file on the volume that says who fetches, and since when.

    A volume has no locks. Each container writes its name and commits; the last commit wins, and
    after a moment all read the same name. Who fetches writes the time anew while it works, so that
    a killed container holds nobody up for long. At worst two fetch the same, which only costs time.
    """

    def __init__(
        self,
        folder: Path,
        commit: Commit,
        reload: Commit,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = folder / "fetching.json"
        self._commit, self._reload, self._pause, self._clock = commit, reload, pause, clock
        self._name = uuid.uuid4().hex
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._keep, name="turn", daemon=True)

    def take(self, is_needed: Callable[[], bool], progress: hub.Progress) -> bool:
        """Wait until nobody else fetches; False: what others fetched is enough."""
        while is_needed():
            if self._is_others():
                progress("another container fetches the weights", 0.0)
                self._pause(POLL_SECONDS)
                see_others(self._reload)
                continue
            written = self._write(self._name)
            self._pause(SETTLE_SECONDS)
            see_others(self._reload)
            if not written or self._read().get("by") == self._name:  # a full disk has no locks
                self._beat.start()
                return True
        return False

    def end(self) -> None:
        """Let others have it, and commit all that was written meanwhile."""
        self._over.set()
        self._beat.join()
        self._write("")

    def _keep(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._write(self._name)

    def _is_others(self) -> bool:
        known = self._read()
        # A time that is to come is the clock of a machine that went wrong.
        young = abs(self._clock() - known.get("at", 0.0)) < STALE_SECONDS
        return young and known.get("by") not in ("", None, self._name)

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # nobody has fetched yet, or the file is being written
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, name: str) -> bool:
        """Put a name there and commit; whether it could be written."""
        draft = self._path.with_suffix(f".{self._name}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps({"by": name, "at": self._clock()}), encoding="utf-8")
            draft.replace(self._path)
        except OSError as error:
            logger.warning("no lock on the volume: %s", error)
            return False
        try:
            self._commit()
        except Exception as error:  # the platform's boundary
            logger.warning("the volume was not committed: %s", error)
        return True


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
