"""The order in which a server starts: a line, the port, `/api`, and then the page."""

import asyncio
import sys
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import aiohttp
import pytest

from engine.bench.hostile import find_parts
from engine.commands.check import ServerCheck
from tests.modal.rehearsal import ROOT, Process, clean, free_port

# In Gradio's place: it is not loaded until a file is there, however fast the machine.
SLOW_GRADIO = """
import importlib, os, sys, time
(FOLDER / "asked").touch()
while not (FOLDER / "go").exists():
    time.sleep(0.01)
sys.path.remove(str(FOLDER))
del sys.modules["gradio"]
sys.modules["gradio"] = importlib.import_module("gradio")
"""


@pytest.fixture
def slow_gradio(tmp_path):
    """A folder for PYTHONPATH; `go` in it lets the page be made."""
    (tmp_path / "gradio").mkdir()
    code = f"from pathlib import Path\nFOLDER = Path({str(tmp_path)!r})\n{SLOW_GRADIO}"
    (tmp_path / "gradio" / "__init__.py").write_text(code)
    return tmp_path


def start(folder) -> Process:
    port = free_port()
    arguments = ["-m", "demo", "--model", "embedded", "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--transcribe", "0"]
    return Process(arguments, port, folder, clean(folder, PYTHONPATH=f"{folder}:{ROOT}"))


@asynccontextmanager
async def opened(folder):
    """A server whose address is printed and whose page cannot come; its session and address."""
    with start(folder) as process:
        await asyncio.to_thread(process.wait_until_said, "listening on")
        async with aiohttp.ClientSession(f"http://127.0.0.1:{process.port}") as http:
            yield process, http


async def test_a_server_answers_before_gradio_is_loaded(slow_gradio):
    async with opened(slow_gradio) as (process, http):
        assert process.output.splitlines()[0] == "PersonaPlex starts"
        async with http.ws_connect("/api?format=pcm16") as ws:
            assert (await ws.receive_bytes(timeout=60))[0] == 0
        async with http.get("/healthz") as health:
            assert (await health.json())["status"] == "ok"
        async with http.get("/?token=x") as page:
            assert (page.status, page.headers["Retry-After"]) == (503, "1")
            assert page.content_type == "text/html"
            text = await page.text()
        assert "PersonaPlex is getting ready" in text
        assert '<meta http-equiv="refresh" content="1">' in text  # it loads itself again
        async with http.get("/pp/main.js") as script:
            assert script.status == 503
        check = ServerCheck(f"http://127.0.0.1:{process.port}", None, None, wait=600)
        page = asyncio.create_task(check._page())
        await asyncio.sleep(0.2)
        assert not page.done()
        (slow_gradio / "go").touch()
        await page  # by rights in some seconds
        async with http.get("/") as page:
            assert "gradio_config" in await page.text()
            assert "script-src 'self'" in page.headers["Content-Security-Policy"]
        # `bench hostile` loads the page as a browser does, with all its parts.
        parts = await find_parts(f"http://127.0.0.1:{process.port}/")
        assert {".js", ".css"} <= {PurePosixPath(urlsplit(part).path).suffix for part in parts}


async def test_a_page_that_cannot_be_made_costs_the_page_only(slow_gradio):
    (slow_gradio / "gradio" / "__init__.py").write_text("raise ValueError('zanzibarine')")
    async with opened(slow_gradio) as (process, http):
        said = "the page could not be made: ValueError at"
        await asyncio.to_thread(process.wait_until_said, said)
        async with http.ws_connect("/api?format=pcm16") as ws:
            assert (await ws.receive_bytes(timeout=60))[0] == 0
        for path in ("/", "/pp/main.js"):  # it does not load itself again: that costs a GPU
            async with http.get(path) as page:
                assert (page.status, page.content_type) == (500, "text/plain")
                assert "Retry-After" not in page.headers
                assert "log says why" in await page.text()


async def test_a_check_waits_for_a_server_that_is_not_there_yet(slow_gradio):
    (slow_gradio / "go").touch()
    port = free_port()
    check = ServerCheck(f"http://127.0.0.1:{port}", None, None, wait=600)
    health = asyncio.create_task(check._health())
    await asyncio.sleep(0.2)  # it finds nobody
    arguments = ["-m", "engine", "serve", "--model", "embedded", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, env=clean(slow_gradio, PERSONAPLEX_TRANSCRIBE="0"),
    )  # fmt: skip
    try:
        await health
    finally:
        process.kill()
        await process.wait()
