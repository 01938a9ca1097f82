"""The life of a container in a process of its own: what ends it, how, and how fast."""

import asyncio
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import aiohttp
import pytest

from tests.modal.hub import RefusingHub
from tests.modal.rehearsal import ROOT, SECONDS, clean, life

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
                started = time.monotonic()
                process.interrupt()
                last = [m.data async for m in ws if m.type is aiohttp.WSMsgType.BINARY]
        assert {0, 1, 2} <= kinds
        assert any(b'"closing"' in data for data in last if data[0] == 4)
        assert last[-1].startswith(b"\x05closing: ")
        code = await asyncio.to_thread(process.wait, 25)
        assert code == 0, process.output[-3000:]
        assert time.monotonic() - started < 25
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
        assert any("the GPU fell off the bus" in line for line in process.lines)


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Two containers that cannot load, run side by side: their exit codes and `error:` lines."""
    corrupt = tmp_path_factory.mktemp("corrupt") / "tiny"
    shutil.copytree(TINY, corrupt)
    weights = corrupt / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with ExitStack() as stack:
        gated = stack.enter_context(RefusingHub("gated"))
        cpu = {"PERSONAPLEX_DEVICE": "cpu"}
        environs = {
            "gated": {"HF_ENDPOINT": gated.url, "HF_TOKEN": "hf_test"} | cpu,
            "corrupt": {"PERSONAPLEX_MODEL": str(corrupt)} | cpu,
        }
        running = {
            name: stack.enter_context(life(tmp_path_factory.mktemp("life"), **environ))
            for name, environ in environs.items()
        }
        yield {name: (process.wait(), process.lines) for name, process in running.items()}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("gated", ["may not read", "403", "https://huggingface.co/nvidia/personaplex-7b-v1"]),
        ("corrupt", ["model.safetensors", "cut short"]),
    ],
)
def test_a_start_that_cannot_succeed_ends_with_one_clear_line(failures, case, words):
    code, lines = failures[case]
    assert code == 1
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_without_a_token_the_hubs_own_client_leads_to_a_line_that_says_how_to_get_one(tmp_path):
    code = "from engine.weights import hub; hub.fetch('nvidia/personaplex-7b-v1', None, print)"
    with RefusingHub("no token") as stand_in:  # its address is read when the client is imported
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
    with life(tmp_path, PERSONAPLEX_WEIGHTS="int8", **environ) as process:
        process.wait_until_ready()
        assert "committed" in process.output
    assert (repository / "snapshots" / commit / "model.int8" / "index.json").is_file()
