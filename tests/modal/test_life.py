"""The life of a container in a process of its own: what ends it, how, and how fast."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.modal.hub import FakeHub
from tests.modal.rehearsal import ROOT, SECONDS, Process, clean, life

TINY = ROOT / "tests" / "golden" / "tiny"
SAY = b"\x07Hello from the container!"


async def test_start_ready_talk_interrupt_closing_exit(tmp_path):
    with life(tmp_path, PERSONAPLEX_MODEL="embedded") as process:
        await asyncio.to_thread(process.wait_until_ready)
        async with aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{process.port}"
            async with http.get(url) as page:
                assert "PersonaPlex" in await page.text()
            async with http.ws_connect(f"{url}/api?format=pcm16&events=1") as ws:
                kinds = await talk(ws)
                process.interrupt()
                last = [m.data async for m in ws if m.type is aiohttp.WSMsgType.BINARY]
        assert {0, 1, 2} <= kinds
        assert any(b'"closing"' in data for data in last if data[0] == 4)
        assert last[-1].startswith(b"\x05closing: ")
        code = await asyncio.to_thread(process.wait)
        assert code == 0, process.output[-3000:]
        assert not process.lines


async def talk(ws: aiohttp.ClientWebSocketResponse) -> set[int]:
    """Have something said until it is heard; the kinds of messages that came."""
    kinds: set[int] = set()
    await ws.send_bytes(SAY)
    while not {0, 1, 2} <= kinds:
        kinds.add((await ws.receive_bytes(timeout=SECONDS))[0])
    return kinds


def test_a_gpu_thread_that_dies_ends_the_process_with_a_message(tmp_path):
    async def call(port: int) -> None:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"http://127.0.0.1:{port}/api") as ws,
        ):
            async for _ in ws:
                pass

    with life(tmp_path, "tick", PERSONAPLEX_MODEL="embedded") as process:
        process.wait_until_ready()
        asyncio.run(call(process.port))
        assert process.wait() == 1
        (line,) = process.lines
        assert line.startswith("error: RuntimeError at ")
        assert line.endswith(" broken_tick")
        assert "fell off the bus" not in process.output  # it may quote a user


# -- faults that a new machine would have, too -----------------------------------------------------

CPU = {"PERSONAPLEX_DEVICE": "cpu"}


def cut_short(folder: Path) -> Path:
    """A checkpoint whose weights lack their end."""
    shutil.copytree(TINY, folder / "tiny")
    weights = folder / "tiny" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder / "tiny"


@dataclass(frozen=True)
class Told:
    """What a container that cannot load says, everywhere it is asked."""

    health: dict
    socket: str
    page: str
    lines: list[str]
    running: bool
    code: int


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Containers that cannot load, side by side; each is asked everything, then interrupted."""
    with ExitStack() as stack:
        stand_in = stack.enter_context(FakeHub("gated"))
        environs = {
            "gated": {"HF_ENDPOINT": stand_in.url, "HF_TOKEN": "hf_test"} | CPU,
            "corrupt": {"PERSONAPLEX_MODEL": str(cut_short(tmp_path_factory.mktemp("m")))} | CPU,
            "setting": {"PERSONAPLEX_SLOTS": "many", "PERSONAPLEX_MODEL": "embedded"},
        }
        faults = {"gated": ""}  # it makes its page; the others show the one that waits
        running = {
            name: stack.enter_context(
                life(tmp_path_factory.mktemp("life"), faults.get(name, "pageless"), **environ)
            )
            for name, environ in environs.items()
        }
        yield dict(zip(running, asyncio.run(ask_all(running.values())), strict=True))


async def ask_all(processes: Iterable[Process]) -> list[Told]:
    return await asyncio.gather(*map(ask, processes))


async def ask(process: Process) -> Told:
    url = f"http://127.0.0.1:{process.port}"
    health = {"status": "waking"}
    async with aiohttp.ClientSession() as http:
        while health["status"] == "waking":
            with suppress(aiohttp.ClientConnectionError):
                async with http.get(f"{url}/healthz") as answer:
                    assert answer.status == 503
                    health = await answer.json()
            await asyncio.sleep(0.1)
        async with http.ws_connect(f"{url}/api?format=pcm16") as ws:
            said = [m.data async for m in ws if m.type is aiohttp.WSMsgType.BINARY]
        async with http.get(url) as page:
            shown = await page.text()
    running = process.code is None
    process.interrupt()
    code = await asyncio.to_thread(process.wait, 60)
    return Told(health, said[-1][1:].decode(), shown, process.lines, running, code)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("gated", ["may not read", "403", "https://huggingface.co/nvidia/personaplex-7b-v1"]),
        ("corrupt", ["model.safetensors", "cut short", "modal run modal_app.py::download"]),
        ("setting", ["PERSONAPLEX_SLOTS is 'many'", "when you deploy again"]),
    ],
)
def test_a_fault_that_a_new_machine_would_have_ends_nothing_and_is_said(failures, case, words):
    told = failures[case]
    assert told.running
    assert told.health["status"] == "failed"
    for word in words:
        assert word in told.health["reason"]
    for foreign in ("python -m engine", "hf auth", "--"):
        assert foreign not in told.health["reason"].replace("create --force", "")
    assert told.socket == f"internal error: the server cannot start: {told.health['reason']}"
    assert "PersonaPlex" in told.page
    assert told.lines == [f"error: {told.health['reason']}"]  # once
    assert told.code == 0


def test_a_load_that_breaks_for_no_known_reason_ends_the_process(tmp_path):
    with life(tmp_path, "load", PERSONAPLEX_MODEL="embedded") as process:
        assert process.wait() == 1
        (line,) = process.lines
        assert line.startswith("error: RuntimeError at ")
        assert line.endswith(" load")
        assert "is broken" not in process.output


def test_a_load_that_hangs_ends_the_process(tmp_path):
    hang = {"PERSONAPLEX_LOAD_HANG_S": "1", "PERSONAPLEX_MODEL": "embedded"}
    with life(tmp_path, "hang", **hang) as process:
        assert process.wait() == 1
        (line,) = process.lines
        assert "the model has stopped: no progress of" in line


def test_without_a_token_the_hubs_own_client_leads_to_a_line_that_says_how_to_get_one(tmp_path):
    code = "from engine.weights import hub; hub.fetch('nvidia/personaplex-7b-v1', None, print)"
    with FakeHub("gated") as stand_in:  # its address is read when the client is imported
        environ = clean(tmp_path, PYTHONPATH=str(ROOT), HF_ENDPOINT=stand_in.url)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True
        )
    line = done.stderr.splitlines()[-1]
    assert all(words in line for words in ("is gated", "accept the licence", "HF_TOKEN"))


def test_the_first_start_in_int8_commits_the_volume(tmp_path):
    repository = tmp_path / "hf" / "hub" / "models--nvidia--personaplex-7b-v1"
    commit = "c0ffee".ljust(40, "0")
    fresh = shutil.ignore_patterns("*.int8*")  # which other runs leave there
    shutil.copytree(TINY, repository / "snapshots" / commit, ignore=fresh)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    environ = {"PERSONAPLEX_DEVICE": "cpu", "HF_HOME": str(tmp_path / "hf")}
    with life(tmp_path, "pageless", PERSONAPLEX_WEIGHTS="int8", **environ) as process:
        process.wait_until_ready()
        assert "committed" in process.output
    assert (repository / "snapshots" / commit / "model.int8" / "index.json").is_file()
