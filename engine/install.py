"""Sets up `.venv` with as many packages as the work at hand needs. The Makefile runs this.

    python3 -m engine.install run --model auto    for `make run`: the page, or the model as well
    python3 -m engine.install test                for `make test`: all there is

Runs before anything is installed, so it knows the standard library only. A second call compares a
digest and ends. Two calls at once wait for each other; one that was broken off is continued.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ANSWER_SECONDS = 10  # an interpreter that says nothing for so long is none for us
OLDEST, NEWEST = (3, 11), (3, 14)  # Pythons for which every pin has a wheel
LISTS = {  # each holds the one before it
    "page": "requirements-page.txt",
    "model": "requirements.txt",
    "test": "requirements-dev.txt",
}
BIG = "on Linux with CUDA, about 2.7 GB to fetch, 5.1 GB on disk"
CONTENTS = {  # as measured on Linux x86-64 with Python 3.12
    "page": "the page and the built-in voice (about 240 MB to fetch, 850 MB on disk)",
    "model": f"PersonaPlex, which needs PyTorch ({BIG})",
    "test": f"the test tools, and PersonaPlex, which needs PyTorch ({BIG})",
}


def main(argv: list[str]) -> None:
    """Set up for one purpose. Raises SystemExit with one line that says what is wrong."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        oldest, newest = ("{}.{}".format(*version) for version in (OLDEST, NEWEST))
        sys.exit(
            f"set-up: this is Python {sys.version.split()[0]}; use Python {oldest} to {newest} "
            "with its venv module, for example PYTHON=python3.12"
        )
    if argv[:1] not in (["run"], ["page"], ["model"], ["test"]):
        sys.exit("set-up: usage: python3 -m engine.install run [options] | page | model | test")
    kind = kind_for_run(argv[1:]) if argv[0] == "run" else argv[0]
    venv = ROOT / ".venv"
    if is_ready(venv, kind):
        return
    if venv.exists() and not venv.is_dir():
        sys.exit(f"set-up: {venv} is not a folder; remove it")
    if not os.access(ROOT, os.W_OK):
        sys.exit(f"set-up: {ROOT} cannot be written to; use a copy of the project that is yours")
    try:
        with lock(ROOT):
            if not is_ready(venv, kind):  # somebody else may have done it meanwhile
                install(venv, kind)
    except subprocess.CalledProcessError as error:
        what = "pip could not install everything"
        if "venv" in error.cmd:
            what = "the virtual environment could not be made"
        sys.exit(
            f"set-up: {what} (its own words are above); what is there stays, the next call goes on"
        )
    except OSError as error:  # a full disk, for example
        what = f"{error.filename or venv}: {error.strerror}"
        sys.exit(f"set-up: {what}; make room, and call again")
    except KeyboardInterrupt:
        sys.exit("set-up: broken off; the next call goes on from here")


def kind_for_run(args: list[str]) -> str:
    """Which list `python -m demo ARGS` needs: the built-in voice loads no PyTorch."""
    from engine.errors import ModelError
    from engine.runtime.choose import choose_model  # it asks what the server will ask
    from engine.weights.hub import DEFAULT_REPOSITORY, find_folder

    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--model", default=os.environ.get("PERSONAPLEX_MODEL") or "auto")
    try:
        model = parser.parse_known_args(args)[0].model
    except argparse.ArgumentError:  # `--model` without a value: the server itself will say so
        return "page"
    if {"-h", "--help"} & set(args) or not model:
        return "page"
    source, _why = choose_model(model)
    if source == "embedded":
        return "page"
    try:
        find_folder(source, "model", DEFAULT_REPOSITORY)
    except ModelError:  # neither a folder nor a repository: the server itself will say so
        return "page"
    return "model"


def requirements(name: str) -> list[str]:
    """The pins of a list and of those it includes, without comments."""
    pins = []
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            pins += requirements(line.removeprefix("-r "))
        elif line:
            pins.append(line)
    return pins


def describe_missing(error: ModuleNotFoundError) -> str:
    """What to do about a package that is not installed. Raises it again for our own modules."""
    package = (error.name or "").split(".")[0]
    if package in ("engine", "demo", ""):
        raise error
    return (
        f"the package {package} is not installed, and this needs it; run "
        "`.venv/bin/python -m engine.install model` (or `make setup`) once"
    )


def is_ready(venv: Path, kind: str) -> bool:
    """Whether exactly these pins were installed for this Python, which is still there."""
    if not (venv / "bin" / "python").exists():  # a link whose interpreter has gone counts as none
        return False
    try:
        return (venv / f".ready-{kind}").read_text(encoding="ascii") == _digest(kind)
    except OSError:
        return False


def _digest(kind: str) -> str:
    """Of a list's pins and this Python's version."""
    pins = "\n".join([f"{sys.version_info[:2]}", *requirements(LISTS[kind])])
    return hashlib.sha256(pins.encode()).hexdigest()


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One set-up of a folder at a time; the system frees the lock of a process that was killed."""
    import fcntl  # here: `modal deploy` only reads the lists, and may do so on Windows

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another set-up is running here; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def install(venv: Path, kind: str) -> None:
    """Make the virtual environment fit and fill it. Raises subprocess.CalledProcessError."""
    started = time.monotonic()
    python = venv / "bin" / "python"
    if not _is_usable(python):
        version = "{}.{}".format(*sys.version_info[:2])
        interpreter = pick_interpreter()
        _say(f"1 of 2: a virtual environment of Python {version} in .venv ({interpreter})")
        try:
            _run(interpreter, "-m", "venv", "--clear", str(venv), quiet=True)
        except subprocess.CalledProcessError:
            if interpreter == sys.executable:
                raise
            _run(sys.executable, "-m", "venv", "--clear", str(venv), quiet=True)
    remove_broken(venv)
    stamps = list(venv.glob(".ready-*"))
    _say(f"{'1 of 1' if stamps else '2 of 2'}: {CONTENTS[kind]}")
    for stale in stamps:  # while pip works, nothing is certain
        stale.unlink()
    quiet = [] if sys.stdout and sys.stdout.isatty() else ["--quiet"]
    _run(str(python), "-m", "pip", "install", "--disable-pip-version-check", *quiet,
         "-r", str(ROOT / LISTS[kind]))  # fmt: skip
    for name in list(LISTS)[: list(LISTS).index(kind) + 1]:
        (venv / f".ready-{name}").write_text(_digest(name), encoding="ascii")
    _say(f"set up in {time.monotonic() - started:.0f} s")


def pick_interpreter() -> str:
    """The path of the interpreter to make the environment of: this one, or a quicker one.

    An interpreter that was built without the compiler's optimisations, as pyenv does unless it is
    told otherwise, takes a fifth longer for all that Python does, frames included. Then the first
    optimised one of the same version on the PATH is taken. PYTHON names another by hand.
    """
    if os.environ.get("PYTHON") or is_optimised():
        return sys.executable
    version = "{}.{}".format(*sys.version_info[:2])
    question = "import ensurepip, sys, venv; from engine import install as i; "
    question += "print(i.is_optimised(), '{}.{}'.format(*sys.version_info[:2]))"
    for folder in filter(os.path.isabs, os.get_exec_path()):
        other = os.path.join(folder, f"python{version}")
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                [other, "-c", question], cwd=ROOT, stdin=subprocess.DEVNULL, text=True,
                capture_output=True, timeout=ANSWER_SECONDS, check=False,
            )  # fmt: skip
            if done.stdout.split() == ["True", version]:
                return other
    return sys.executable


def is_optimised() -> bool:
    """Whether this interpreter was built with optimisations; one below /usr is a distribution's."""
    built = sysconfig.get_config_var("CONFIG_ARGS")  # None on Windows, where it is, too
    return built is None or "--enable-optimizations" in built or sys.base_prefix == "/usr"


def _is_usable(python: Path) -> bool:
    """Whether the environment runs, has pip, and is of this Python's version."""
    code = "import sys, pip; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.stdout.split() == [str(part) for part in sys.version_info[:2]]


def remove_broken(venv: Path) -> None:
    """Forget packages that pip had not finished, which it would take for whole."""
    for folder in venv.glob("lib/python*/site-packages/*.dist-info"):
        record = folder / "RECORD"
        if not record.exists() or "INSTALLER" not in record.read_text(encoding="utf-8"):
            shutil.rmtree(folder)


def _run(*command: str, quiet: bool = False) -> None:
    """Run a command to its end; `quiet`: what it says is shown only if it fails."""
    kept = {name: value for name, value in os.environ.items() if name != "PIP_USER"}
    pipe = subprocess.PIPE if quiet else None
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, check=False,
        env=kept,
    )  # fmt: skip
    if done.returncode:
        _say(f"{done.stdout or ''}{done.stderr or ''}".strip())
        raise subprocess.CalledProcessError(done.returncode, command)


def _say(text: str) -> None:
    """Print progress, if the output is open."""
    with contextlib.suppress(OSError, ValueError):
        if text and sys.stdout:
            print(f"set-up: {text}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
