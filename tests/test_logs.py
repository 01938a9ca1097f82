"""What stands in a log, and what must not, whoever writes the line."""

import asyncio
import gc
import io
import logging
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import describe_fault, logged_fault
from engine.logs import LINES_A_MINUTE, LOG_FORMAT, RepeatLimit, guard_faults

ROOT = Path(__file__).parents[1]
WORD = "mumpsimus"  # what a user said; planted nowhere else, so that the sweep does not look for it


@pytest.fixture
def written():
    """What a production handler writes during the test."""
    stream, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    root.addHandler(handler)
    yield stream.getvalue
    root.removeHandler(handler)


def fail(word: str = WORD):
    heard = {word: 1}
    try:
        return heard[f"not {word}"]
    except KeyError as error:
        raise ValueError(f"cannot say {word!r}") from error


async def fail_later():
    fail()


# -- exceptions ------------------------------------------------------------------------------------


def test_an_exception_is_its_type_and_place_with_its_causes():
    try:
        fail()
    except ValueError as error:
        told = describe_fault(error)
    assert WORD not in told
    assert "ValueError at tests/test_logs.py:" in told
    assert "; after KeyError at tests/test_logs.py:" in told


def test_every_part_of_a_group_is_told_without_its_words():
    group = ExceptionGroup(WORD, [ValueError(WORD), ExceptionGroup(WORD, [KeyError(WORD)])])
    told = describe_fault(group)
    assert WORD not in told
    assert "ValueError" in told
    assert "KeyError" in told


def test_exceptions_that_cause_each_other_and_deep_recursion_are_told_shortly():
    def dive(depth):
        return dive(depth + 1)

    first, second = ValueError(WORD), KeyError(WORD)
    first.__cause__, second.__cause__ = second, first
    assert len(describe_fault(first)) < 1000
    with pytest.raises(RecursionError) as raised:
        dive(0)
    assert len(describe_fault(raised.value)) < 2000


def test_a_conversations_fault_is_logged_without_what_was_said(written):
    try:
        fail()
    except ValueError:
        told = str(logged_fault("conversation failed"))
    assert "conversation failed, error" in written()
    assert told.split()[2].strip(";") in written()
    assert "tests/test_logs.py" in written()
    assert WORD not in written()


@pytest.mark.parametrize("name", ["engine.wire", "aiohttp.server", "asyncio", "gradio"])
def test_no_logger_writes_an_exceptions_message_or_its_causes(written, name):
    try:
        fail()
    except ValueError:
        logging.getLogger(name).exception("it failed")
        logging.getLogger(name).error("it failed", exc_info=True, stack_info=True)
    assert written().count("it failed: ValueError at tests/test_logs.py") == 2
    assert WORD not in written()


def test_a_task_that_nobody_waits_for_tells_no_words(written):
    async def forget():
        asyncio.get_running_loop().create_task(fail_later())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(forget())  # asyncio's own handler
    assert "Task exception was never retrieved" in written()
    assert WORD not in written()


@pytest.mark.parametrize("kind", ["task", "callback", "future"])
def test_what_a_servers_loop_could_not_hand_to_anybody_tells_no_words(written, kind):
    async def forget():
        loop = asyncio.get_running_loop()
        guard_faults(loop)
        if kind == "task":
            lost = loop.create_task(fail_later())
            del lost
        elif kind == "callback":
            loop.call_soon(fail)
        else:
            with ThreadPoolExecutor(1) as pool:  # until it has failed
                loop.run_in_executor(pool, fail)
        await asyncio.sleep(0.01)
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(forget())
    assert "ValueError at tests/test_logs.py" in written()
    assert WORD not in written()


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("raise ValueError(WORD)", "uncaught: ValueError at"),
        ("threading.Thread(target=fail).start()", "a thread ended: ValueError at"),
        ("Late()", "could not be raised: ValueError at"),
        ("warnings.warn(WORD)", "UserWarning"),
        ("logging.getLogger('x').warning('%d', WORD)", "does not fit its arguments"),
    ],
)
def test_a_servers_process_ends_without_a_word_of_anybody(end, said):
    code = f"""
        import asyncio, logging, sys, threading, warnings
        from engine.logs import guard_faults, set_up_logs
        WORD = "mump" + "simus"
        class Late:
            def __del__(self): raise ValueError(WORD)
        def fail(): raise ValueError(WORD)
        set_up_logs()
        guard_faults(asyncio.new_event_loop())
        {end}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert said in done.stderr
    assert WORD not in done.stdout + done.stderr


# -- what libraries write --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        f'127.0.0.1 [27/Nov/2026] "GET /api?token={WORD}&text_prompt=You HTTP/1.1" 200 "-" "ua"',
        f"HTTP Request: HEAD https://hub.example/x?token={WORD} done",
        f"400, message:\n  Invalid header value char:\n\n    b'Cookie: {WORD}'",
        f"bad request line b'GET /{WORD} HTTP/1.1' of a client",
        f"Authorization: Bearer {WORD}",
        f"header 'Cookie: a={WORD}",
        f"future: <Task finished exception=ValueError('{WORD}')>",
        f"went to /gradio_api/queue/join#{WORD}",
    ],
)
@pytest.mark.parametrize("name", ["aiohttp.access", "uvicorn.error", "httpx", "py.warnings"])
def test_a_librarys_line_loses_what_may_be_somebodys(written, name, line):
    logging.getLogger(name).warning(line)
    logging.getLogger(name).warning("%s", line)
    assert len(written().splitlines()) == 2
    assert WORD not in written()


def test_a_librarys_line_keeps_what_helps(written):
    logging.getLogger("aiohttp.server").error("Error handling request from %s", "10.0.0.7")
    logging.getLogger("httpx").warning("%s is %d%% full", "cache", 90)
    assert "Error handling request from 10.0.0.7" in written()
    assert "cache is 90% full" in written()


def test_a_long_line_with_control_characters_is_one_short_line(written):
    logging.getLogger("uvicorn").error("a\x1b[31m\x07\x85\udcff" + "x" * 100_000)
    assert len(written()) < 500
    assert written().count("\n") == 1
    assert not any(c in written() for c in "\x1b\x07\x85\udcff")


# -- how much --------------------------------------------------------------------------------------


class Later:
    """A timer that a test lets go off."""

    def __init__(self) -> None:
        self.waiting: list = []

    def __call__(self, _seconds, act):
        timer = threading.Timer(0, act)
        timer.start = lambda: self.waiting.append(act)
        return timer


@pytest.fixture
def limited():
    """A logger behind the limit, on a clock that the test turns."""
    stream, now, later = io.StringIO(), [0.0], Later()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RepeatLimit(lambda: now[0], later))
    ours = logging.getLogger("engine.logs")
    flood = logging.getLogger("aiohttp.flood")
    for logger in (ours, flood):
        logger.addHandler(handler)
    yield flood, stream.getvalue, now, later
    for logger in (ours, flood):
        logger.removeHandler(handler)


def test_one_line_of_code_writes_sixty_lines_a_minute_and_then_a_count(limited):
    flood, text, _now, later = limited
    for i in range(1000):
        flood.error("request %d is odd", i)
    flood.error("another line of code")
    assert len(text().splitlines()) == LINES_A_MINUTE + 1
    [tell] = later.waiting
    tell()
    assert "940 more lines like those of tests/test_logs.py:" in text()


def test_the_next_minute_begins_anew_and_tells_of_the_last(limited):
    flood, text, now, _later = limited
    for _ in range(100):
        flood.error("odd")
    now[0] = 61.0
    for _ in range(100):
        flood.error("odd")
    lines = text().splitlines()
    assert lines.count("odd") == 2 * LINES_A_MINUTE
    assert sum("40 more lines" in line for line in lines) == 1


# -- the sweep of the whole run --------------------------------------------------------------------

LEAKS = {
    "a line of ours": 'logging.getLogger("engine.x").info("heard zanzibarine today")',
    "a persona as a test gives it": (
        'engine = SimpleNamespace(preparer=None, answers=None)\n'
        '    Session(engine, SessionConfig(text_prompt=PERSONA))\n'
        '    logging.getLogger("engine.x").warning("join: %s", quote(PERSONA)[:60])'
    ),
}  # fmt: skip


@pytest.mark.parametrize("leak", [*LEAKS.values(), "pass"], ids=[*LEAKS, "none"])
def test_the_sweep_finds_a_planted_word_and_fails_the_run(tmp_path, leak):
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_leak.py").write_text(
        "import logging\nfrom types import SimpleNamespace\nfrom urllib.parse import quote\n"
        "from engine.dialogue.session import Session, SessionConfig\n"
        'PERSONA = "You sell umbrellas to seagulls on the moon."\n\n\n'
        f"def test_that_leaks():\n    {leak}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}",
         "-o", "asyncio_mode=auto", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == (0 if leak == "pass" else 1), done.stdout
    assert ("hold planted words" in done.stdout) == (leak != "pass")
