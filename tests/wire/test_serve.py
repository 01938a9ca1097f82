"""`python -m engine serve` as a process: opens, answers, stops with grace."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import aiohttp
import pytest

from engine.wire.protocol import Kind
from tests.wire.peer import connected

PATIENCE = 100  # seconds, on a machine of whatever speed
NO_SPACE = "cannot be written (No space left on device)"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def engine(*options, run=("-m", "engine")):
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", *run, "serve", "--host", "127.0.0.1", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_a_server_starts_talks_and_stops_with_grace():
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = await engine("--model", "embedded", "--port", str(port), "--drain-s", "0.2")
    assert b"model: embedded" in await process.stdout.readline()
    assert b"listening on" in await process.stdout.readline()
    async with connected(url, events=1) as peer:
        await peer.until(Kind.HANDSHAKE)
        async with aiohttp.ClientSession() as http, http.get(url + "/healthz") as answer:
            assert (await answer.json())["free"] == 15
        process.send_signal(signal.SIGTERM)
        await peer.event("closing")
        text, code = await peer.end()
    assert (text[:9], code) == ("closing: ", 1001)
    await ends_well(process)


async def read_until(process, words):
    """Read lines until one holds these words."""
    while words not in (line := await process.stdout.readline()):
        assert line, f"it ended before it said {words}"


async def ends_well(process):
    """Whatever it prints stands in the report where it does not."""
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    told = (out + err).decode(errors="replace")
    assert process.returncode == 0, told
    assert "Traceback" not in told, told
    assert "error: " not in told, told
    return told


AT_WORK = """
import atexit, sys, threading, time
from engine.cli import main
atexit.register(print, "temporary files went")
threading.Thread(target=time.sleep, args=[3600]).start()
sys.exit(main(sys.argv[1:]))
"""


async def test_a_thread_that_is_at_work_yet_delays_no_end_and_makes_it_no_failure():
    """As one that loads vectors: the interpreter would wait for it, and nobody needs it."""
    process = await engine("--model", "embedded", "--port", "0", run=("-c", AT_WORK))
    await read_until(process, b"listening on")
    process.send_signal(signal.SIGTERM)
    told = await ends_well(process)
    assert "temporary files went" in told
    assert "warning: " not in told  # for this machine only


async def test_a_bad_option_is_one_line_and_exit_code_1():
    process = await engine("--slots", "many")
    _out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert err.startswith(b"error: --slots is 'many'")
    assert err.count(b"\n") == 1


@pytest.mark.parametrize(
    ("command", "redirected", "said"),
    [
        ("engine serve", ">&-", "error: stdout is closed"),
        ("engine serve", "2>&-", "error: stderr is closed"),
        ("engine serve", ">/dev/full", f"error: <stdout> {NO_SPACE}"),
        ("engine serve", "2>/dev/full", f"error: <stderr> {NO_SPACE}"),
        ("engine serve", ">&- 2>&-", None),
        ("engine serve", ">/dev/full 2>/dev/full", None),
        ("demo", "2>&-", "error: stderr is closed"),
        ("demo", ">/dev/full", f"error: <stdout> {NO_SPACE}"),
    ],
)
async def test_without_a_place_to_write_to_a_server_does_not_start(command, redirected, said):
    """One line where one can be written, and exit code 1."""
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m {command} --host 127.0.0.1 --port 0 --model embedded {redirected}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    lines = [line for line in (out + err).decode().splitlines() if " starts" not in line]
    assert process.returncode == 1
    if said is None:
        assert lines == []
    else:
        assert len(lines) == 1
        assert lines[0].startswith(said)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--token", "secret"], False),
    ],
)
async def test_a_server_that_is_open_to_all_says_so_once_with_the_fix(options, warned):
    port = free_port()
    process = await engine("--model", "embedded", "--port", str(port), *options)
    await read_until(process, b"listening on")
    process.send_signal(signal.SIGTERM)
    out, _err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert out.count(b"warning: ") == warned
    assert out.count(b"PERSONAPLEX_TOKEN") == out.count(b"--host 127.0.0.1") == warned


def test_nothing_keeps_a_process_from_ending_not_even_an_output_that_nobody_reads():
    code = (
        "from engine.commands.serve import leave_later\n"
        "import threading; leave_later(0.1, 1, 'it hangs'); threading.Event().wait()\n"
    )
    reader, writer = os.pipe()
    os.close(reader)  # a line to it is a broken pipe
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writer)
    os.close(writer)
    try:
        assert process.wait(PATIENCE) == 1
    finally:
        process.kill()
