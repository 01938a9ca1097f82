"""What talks feel while pages load. No test: `python -m tests.demo.pages_beside_talks` measures.

Chromium records once what a page asks for. A process of its own replays that, for PAGES pages at
once with six lines each, in turns from the talks' server and from another one. The second is what
the same load costs the talks on this machine without touching their server.
"""

import asyncio
import shutil
import sys
import time

import numpy as np
from playwright.sync_api import expect, sync_playwright

from engine.bench.clients import converse, voice
from engine.bench.process import Server
from tests.browser.driver import FLAGS

TALKS, PAGES, LINES, BURSTS = 16, 30, 6, 4
QUIET_SECONDS, SECONDS = 10.0, 45.0  # before the first burst; of a whole talk
COMMAND = [sys.executable, "-m", "demo"]


def record(url: str) -> list[str]:
    """The paths that a real page asks its server for."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page, paths = browser.new_page(), []
        page.on("request", lambda request: paths.append(request.url.removeprefix(url)))
        page.goto(url)
        expect(page.locator(".state-headline")).to_have_text("Ready when you are", timeout=60_000)
        browser.close()
    return paths


async def load_page(port: int, paths: list[str]) -> None:
    first, *left = paths
    line = await asyncio.open_connection("127.0.0.1", port)
    await fetch(*line, first)

    async def use(line: tuple) -> None:
        while left:
            await fetch(*line, left.pop(0))
        line[1].close()

    others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(LINES - 1)]
    await asyncio.gather(*map(use, (line, *others)))


async def fetch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert " 200 " in head[:16], (path, head)
    await reader.readexactly(int(head.split("content-length: ")[1].split()[0]))


async def load_pages(port: int, paths: list[str]) -> None:
    await asyncio.gather(*(load_page(port, paths) for _ in range(PAGES)))


async def measure(talked: Server, other: Server, paths: list[str]) -> None:
    spans: dict[str, list[tuple[float, float]]] = {talked.url: [], other.url: []}

    async def burst() -> None:
        await asyncio.sleep(QUIET_SECONDS)
        for _ in range(BURSTS):
            for server in (other, talked):
                command = [sys.executable, "-m", __spec__.name, str(server.port), *paths]
                began = time.monotonic() + 0.5  # about when the process has started
                await (await asyncio.create_subprocess_exec(*command)).wait()
                spans[server.url].append((began, time.monotonic()))
                await asyncio.sleep(1)

    pcm = voice()
    talks = (converse(talked.url, SECONDS, n * 0.1, pcm) for n in range(TALKS))
    talks = (await asyncio.gather(burst(), *talks))[1:]
    answers = [pair for talk in talks for pair in zip(talk.sent_at, talk.latencies, strict=False)]
    began = min(at for at, _ in answers)
    quiet = [(began + 2, began + QUIET_SECONDS - 1)]
    rows = {"alone": quiet, "pages elsewhere": spans[other.url], "pages here": spans[talked.url]}
    for name, times in rows.items():
        ms = [1e3 * took for at, took in answers if any(a < at < b for a, b in times)]
        p50, p99 = np.percentile(ms, (50, 99))
        late = sum(one > 120 for one in ms)
        print(f"{name:16} p50 {p50:6.1f}  p99 {p99:6.1f}  worst {max(ms):6.1f} ms, {late} late")
    print("bursts took", *(f"{b - a:.1f}" for a, b in spans[talked.url]), "s")


def main() -> None:
    options = ["--model", "embedded"]
    with Server(options, COMMAND) as talked, Server(options, COMMAND) as other:
        asyncio.run(measure(talked, other, record(other.url)))


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(load_pages(int(sys.argv[1]), sys.argv[2:]))
    else:
        main()
