"""What many rooms' tests share: a real server on a free port, with the embedded backend."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from unittest.mock import patch

import pytest

from engine.runtime.load import Overload
from tests.planted import SWEEP, LogSweep
from tests.serving import ApiServer

# Servers of tests have no ears unless a test gives them some: loading them takes a second.
os.environ.setdefault("PERSONAPLEX_TRANSCRIBE", "0")
# One thread for every model, in servers too: they are tiny, and what several compute is rounded
# differently from run to run. PyTorch reads it when it is imported, which nothing above does.
os.environ["OMP_NUM_THREADS"] = "1"
LONGEST = ("test_install.py", "test_gpu.py", "test_capacity.py", "test_soak.py", "test_runtime.py")


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., ApiServer]]:
    """`serve(slots=2, token="x")`: a server that lives as long as the module."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(ApiServer(**options))


@pytest.fixture(scope="module")
def server(serve: Callable[..., ApiServer]) -> ApiServer:
    """The plain one: six slots, no token, the usual limits."""
    return serve(slots=6)


@pytest.fixture(scope="module")
def never_overloaded() -> Iterator[None]:
    """Servers that take every machine for a quick one: a busy machine refuses and sheds nothing."""
    with patch.object(Overload, "add_tick", lambda overload, seconds: None):
        yield


def pytest_configure() -> None:
    SWEEP.start()


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long first, browsers last: playwright's event loop stays in the thread."""
    for name in reversed(LONGEST):
        items.sort(key=lambda item, name=name: item.path.name != name)
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


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
