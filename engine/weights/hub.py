"""Files of a checkpoint: a directory as it is, or a Hugging Face repository, fetched once.

Every way in which fetching can fail ends in one line that says what to do.
"""

import errno
import os
import unicodedata
from collections.abc import Callable
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


def fetch(
    repository: str, revision: str | None, progress: Progress, files: tuple[str, ...] = FILES
) -> Path:
    """Download what is missing, resume what was cut short. Raises ModelError."""
    from huggingface_hub import errors, hf_hub_download

    faults = (OSError, ValueError, RuntimeError, errors.EntryNotFoundError, errors.HTTPError)
    revision, path = revision or DEFAULT_REVISION, ""
    for name in files:
        bar = progress_bar(f"downloading {name}", progress)
        try:
            path = hf_hub_download(repository, name, revision=revision, tqdm_class=bar)
        except faults as error:
            option = "--model" if files in (FILES, (VOICES_FILE,)) else "--transcribe"
            raise ModelError(reason(error, repository, revision, name, option)) from error
    return Path(path).parent


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


def reason(error: Exception, repository: str, revision: str, name: str, option: str) -> str:
    """One line: what went wrong with a download, and what to do."""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{repository}"
    token = "a token from https://huggingface.co/settings/tokens (HF_TOKEN=... or `hf auth login`)"
    resume = f"run `python -m engine download {option} {repository}` again to resume"
    status = getattr(getattr(error, "response", None), "status_code", None)
    refused = isinstance(error, UnicodeError | errors.RepositoryNotFoundError)
    if (refused or status in (401, 403)) and (fault := find_token_fault()):
        return fault
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        if not get_token():
            return f"{repository} is gated: accept the licence at {page}, then set {token}"
        if status == 401:
            return f"the Hugging Face token is not valid (401): set {token}"
        return f"this token may not read {repository} (403): accept the licence at {page} with it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}; see {page}/commits (--revision)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no repository {repository}, or it is private: see {page}, set {token}"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return (
            f"huggingface.co cannot be reached and {name} is not here yet: connect and {resume}, "
            "or give a folder that has the files (--model DIR)"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"{repository} has no {name} at revision {revision}; expected {', '.join(FILES)}"
    if isinstance(error, errors.HFValidationError):
        return f"{repository!r} is not a repository name; use one such as {DEFAULT_REPOSITORY}"
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return (
            f"the disk is full: the checkpoint needs 18 GB (set HF_HOME to a larger disk), {resume}"
        )
    short = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return f"downloading {name} of {repository} broke off ({short}): {resume}"
