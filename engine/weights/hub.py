"""Files of a checkpoint: a directory as it is, or a Hugging Face repository, fetched once.

Every way in which fetching can fail ends in one line that says what to do. The hub's own client
fetches, because it loads many pieces at once and checks each by its hash. It resumes within one
process only: what a killed one leaves behind is removed, and its file begins anew.
"""

import contextlib
import errno
import os
import time
import unicodedata
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from engine.errors import ModelError

DEFAULT_REPOSITORY = "nvidia/personaplex-7b-v1"
DEFAULT_REVISION = "main"  # of the default repository; set PERSONAPLEX_REVISION to pin a commit
CONFIG = "config.json"
LM_FILE = "model.safetensors"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TEXT_FILE = "tokenizer_spm_32k_3.model"
VOICES_FILE = "voices.tgz"
INT8_SUFFIX = ".int8"  # of the folder that int8.py keeps beside weights
ORPHAN_SECONDS = 180.0  # without a new byte: nobody writes this piece any more
FILES = (CONFIG, TEXT_FILE, VOICES_FILE, MIMI_FILE, LM_FILE)  # small ones first: faults show early

Progress = Callable[[str, float], None]  # phase, percent
Report = Callable[[float], None]  # percent of one phase


def hub_home() -> Path:
    """Where the hub's client keeps its things, found as it finds it itself."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return expand(os.environ.get("HF_HOME") or usual)


def expand(path: str | Path) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def repository_folder(repository: str) -> Path:
    """Where the hub's client keeps a repository."""
    names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    cache = next(filter(None, map(os.environ.get, names)), hub_home() / "hub")
    return expand(cache) / f"models--{repository.replace('/', '--')}"


def has_token() -> bool:
    """Whether there is a token, in the environment or where `hf auth login` puts it."""
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    return expand(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").is_file()


def find_token_fault() -> str:
    """What no token has, in the one that is set: consoles and editors put it there; "": nothing."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = os.environ.get(name, "").strip()
        if odd := next((char for char in token if char in "\"'`" or not char.isascii()), None):
            what = {'"': "quotes", "'": "quotes", "`": "quotes", "“": "quotes", "”": "quotes"}.get(
                odd, f"the character {odd!r} ({unicodedata.name(odd, 'unknown').lower()})"
            )
            return f"{name} has {what} in it, which no token has: set it again, without"
        if any(not char.isprintable() or char == " " for char in token):
            return f"{name} has blanks or line ends in it, which no token has: set it again"
    return ""


def find(source: str, revision: str | None, progress: Progress) -> Path:
    """The folder that holds a checkpoint's files, fetched if need be. Raises ModelError."""
    folder = find_folder(source, "model", DEFAULT_REPOSITORY)
    if not folder:
        return fetch(source, revision, progress)
    for name in (CONFIG, LM_FILE, MIMI_FILE, TEXT_FILE):
        if not (folder / name).is_file():
            missing = f"{folder} has no {name}"
            raise ModelError(f"{missing}; copy it there, or use {DEFAULT_REPOSITORY}")
    return folder


def find_folder(source: str, what: str, usual: str) -> Path | None:
    """A folder as it is; None: a repository. Raises ModelError if it can be neither."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.suffix == ".safetensors" or source.count("/") != 1 or source[0] in "./~":
        raise ModelError(
            f"{what} {source!r} is no directory and no repository; use a folder with {LM_FILE}, "
            f"or a name such as {usual}"
        )
    return None


class HubFault(StrEnum):
    """What went wrong with a download, as far as it decides what is to be done."""

    NO_TOKEN = "no token"
    BAD_TOKEN = "bad token"
    GATED = "gated"
    LIMITED = "limited"  # 429
    DOWN = "down"  # 5xx
    NO_ROUTE = "no route"
    NOT_THERE = "not there"  # repository, revision or file
    DISK_FULL = "disk full"
    WRONG_SIZE = "wrong size"
    CUT = "cut"


class HubError(ModelError):
    """A download that failed; its text says what to do on a machine with a terminal."""

    def __init__(self, fault: HubFault, what: str, remedy: str, repository: str) -> None:
        super().__init__(f"{what}: {remedy}")
        self.fault, self.what, self.repository = fault, what, repository


def fetch(
    repository: str, revision: str | None, progress: Progress, files: tuple[str, ...] = FILES
) -> Path:
    """Download what is missing. Raises HubError, a ModelError."""
    from huggingface_hub import errors, hf_hub_download

    faults = (OSError, ValueError, RuntimeError, errors.EntryNotFoundError, errors.HTTPError)
    revision, path = revision or DEFAULT_REVISION, ""
    sweep_orphans(repository)
    try:
        for name in files:
            bar = progress_bar(f"downloading {name}", progress)
            try:
                path = hf_hub_download(repository, name, revision=revision, tqdm_class=bar)
            except faults as error:
                option = "--model" if files in (FILES, (VOICES_FILE,)) else "--transcribe"
                raise explain(error, repository, revision, name, option) from error
    finally:
        sweep_orphans(repository)  # by now also one that was young at the beginning
    return Path(path).parent


def sweep_orphans(repository: str) -> int:
    """Remove what downloads left behind that were killed, up to 17 GB each; how many bytes."""
    freed = 0
    for piece in repository_folder(repository).glob("blobs/*.incomplete"):
        with contextlib.suppress(OSError):  # another process may have finished or removed it
            state = piece.stat()
            if time.time() - state.st_mtime > ORPHAN_SECONDS:
                piece.unlink()
                freed += state.st_size
    return freed


def progress_bar(phase: str, progress: Progress) -> type:
    """A progress bar class for the hub that tells percents instead of drawing."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.total:
                progress(phase, min(100.0, 100 * self.n / self.total))

    return Bar


def explain(
    error: BaseException, repository: str, revision: str, name: str, option: str
) -> HubError:
    """What went wrong with a download, and what to do about it at a terminal."""
    return HubError(*_judge(error, repository, revision, name, option), repository)


def _judge(
    error: BaseException, repository: str, revision: str, name: str, option: str
) -> tuple[HubFault, str, str]:
    """(kind, what went wrong, what to do)."""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{repository}"
    token = "a token from https://huggingface.co/settings/tokens (HF_TOKEN=... or `hf auth login`)"
    again = f"run `python -m engine download {option} {repository}` again"
    chain = list(list_causes(error))
    status = find_status(chain)
    gated = isinstance(error, errors.GatedRepoError)
    refused = isinstance(error, UnicodeError | errors.RepositoryNotFoundError)
    if (refused or status in (401, 403)) and (fault := find_token_fault()):
        what, _, fix = fault.partition(": ")
        return HubFault.BAD_TOKEN, what, fix
    if isinstance(error, errors.RevisionNotFoundError):
        what = f"{repository} has no revision {revision!r}"
        return HubFault.NOT_THERE, what, f"see {page}/commits (--revision)"
    if isinstance(error, errors.RepositoryNotFoundError) and not gated:
        what = f"there is no repository {repository}, or it is private"
        return HubFault.NOT_THERE, what, f"see {page}, set {token}"
    if gated or status in (401, 403):
        if not get_token():
            licence = f"accept the licence at {page}, then set {token}"
            return HubFault.NO_TOKEN, f"{repository} is gated", licence
        if status == 401 and not gated:
            what = "the Hugging Face token is not valid (401)"
            return HubFault.BAD_TOKEN, what, f"set {token}"
        what = f"this token may not read {repository} (403)"
        return HubFault.GATED, what, f"accept the licence at {page} with its account"
    if status == 429:
        what = "huggingface.co asks for fewer requests (429)"
        return HubFault.LIMITED, what, f"wait some minutes, then {again}"
    if status and status >= 500:
        what = f"huggingface.co has a fault of its own ({status})"
        return HubFault.DOWN, what, f"later {again}; see https://status.huggingface.co"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        what = f"huggingface.co cannot be reached and {name} is not here yet"
        folder = "or give a folder that has the files (--model DIR)"
        return HubFault.NO_ROUTE, what, f"connect and {again}, {folder}"
    if isinstance(error, errors.EntryNotFoundError):
        what = f"{repository} has no {name} at revision {revision}"
        return HubFault.NOT_THERE, what, f"expected {', '.join(FILES)}"
    if isinstance(error, errors.HFValidationError):
        what = f"{repository!r} is not a repository name"
        return HubFault.NOT_THERE, what, f"use one such as {DEFAULT_REPOSITORY}"
    if any(
        getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(one)
        for one in chain
    ):
        room = f"it needs 18 GB (set HF_HOME to a larger disk); {again}"
        return HubFault.DISK_FULL, "the disk is full", room
    if "should be of size" in str(error):
        what = f"{name} of {repository} did not arrive whole: its size is wrong"
        return HubFault.WRONG_SIZE, what, again
    short = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    what = f"downloading {name} of {repository} broke off ({short})"
    return HubFault.CUT, what, f"{again}; this file begins anew"


def list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it came from: the hub's client hides refusals behind one of its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def find_status(chain: list[BaseException]) -> int | None:
    """The HTTP status of the first answer in a chain of exceptions."""
    codes = (getattr(getattr(one, "response", None), "status_code", None) for one in chain)
    return next((code for code in codes if code), None)
