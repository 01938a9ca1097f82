"""What many rooms' tests share: a real server on a free port, with the embedded backend."""

import gc
import math
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from engine.runtime.backend import Opening
from engine.runtime.load import Overload
from tests.planted import SWEEP, LogSweep
from tests.serving import ApiServer

# Servers of tests have no ears unless a test gives them some: loading them takes a second.
os.environ.setdefault("PERSONAPLEX_TRANSCRIBE", "0")
# One thread for every model, in servers too: they are tiny, and what several compute is rounded
# differently from run to run. PyTorch reads it when it is imported, which nothing above does.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # where a test wants two: who waits spends nothing
# What takes long first: what begins late must be short, or one worker ends alone. What waits for
# sockets and processes stands apart: while some workers wait, the others compute.
LONGEST = (
    "browser 1",
    "sockets",
    "tests/model/test_compiled.py",
    "tests/runtime/test_renewal.py",
    "browser 2",
    "tests/bench/test_drift.py",
    "tests/model",
    "tests/test_install.py",  # waits
    "tests/runtime",
    "tests/modal/test_gates.py",  # waits
    "tests/bench",
    "tests/modal/test_life.py",  # waits
    "tests/modal",
    "tests/demo",
)
COLLECTED = pytest.StashKey[frozenset[str]]()  # the modules that collecting has loaded
WITH_GRADIO = {  # files whose tests load it
    *(f"tests/demo/test_{name}.py" for name in ("bundle", "check", "login", "page", "routes")),
    "tests/modal/test_proxy.py",
}


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., ApiServer]]:
    """`serve(slots=2, token="x")`: a server that lives as long as the module."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(ApiServer(**options))


@pytest.fixture(scope="module")
def server(serve: Callable[..., ApiServer]) -> ApiServer:
    """The plain one: six slots, no token, the usual limits."""
    return serve(slots=6)


@pytest.fixture
def openings(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Opening]]:
    """What the plain server's backend is asked to open, as (slot, opening)."""
    seen, backend = [], server.engine.scheduler.backend
    opened = backend.open

    def note(slot: int, opening: Opening) -> Any:
        seen.append((slot, opening))
        return opened(slot, opening)

    monkeypatch.setattr(backend, "open", note)
    return seen


@pytest.fixture(scope="module")
def never_overloaded() -> Iterator[None]:
    """Servers that take every machine for a quick one, so a busy one refuses and drops nothing."""
    never_long = patch("engine.dialogue.session.LONG_WAIT_SECONDS", math.inf)
    with patch.object(Overload, "add_tick", lambda overload, seconds: None), never_long:
        yield


def pytest_configure() -> None:
    SWEEP.start()
    gc.disable()  # until all is collected: of a million objects that come to stay none is garbage


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is here now stays to the end, and is gone through in no search for garbage."""
    session.config.stash[COLLECTED] = frozenset(sys.modules)
    gc.enable()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # more often takes a twentieth of the time


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """A test that has written a planted word into the log fails; so does the last one for all."""
    yield
    SWEEP.check()


@pytest.fixture(scope="session", autouse=True)
def swept_log() -> Iterator[LogSweep]:
    """The whole log of the run, and at its end a last look: servers of a module live longer."""
    yield SWEEP
    SWEEP.check()


def scope_of(nodeid: str) -> str:
    """Whose tests run in one worker, for what they share: a file's, or those of a few groups.

    Two workers have a browser and Gradio each, which take seconds to start and to load. One has
    all that waits for sockets. If all workers waited at once, two cores would be idle.
    """
    file = nodeid.partition("::")[0]
    if file.startswith("tests/browser/"):
        return "browser 2" if file >= "tests/browser/test_l" else "browser 1"
    if file in WITH_GRADIO:
        return "browser 1"
    return "sockets" if file.startswith("tests/wire/") else file


class WholeFiles(LoadScopeScheduling):
    """Hands out scopes, in the order of their first tests."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFiles | None:
    return WholeFiles(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long first."""

    def place(item: pytest.Item) -> int:
        scope = scope_of(item.nodeid)
        return next((n for n, start in enumerate(LONGEST) if scope.startswith(start)), len(LONGEST))

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests counted, launches and files: what they print, pytest keeps to itself."""
    stats, counted = terminalreporter.stats, {}
    reports = [report for key in ("passed", "failed") for report in stats.get(key, [])]
    for report in sorted(reports, key=lambda report: report.location):
        for name, value in report.user_properties:
            if name.startswith("house "):
                terminalreporter.write_line(f"{name}: {value}")
            if name.startswith("launches "):
                counted.setdefault(name.removeprefix("launches "), []).append(value)
    if counted:
        parts = (f"{of}: {', '.join(values)}" for of, values in counted.items())
        terminalreporter.write_line("launches " + "; ".join(parts))
