"""`bench page`: what the page costs a visitor, in a real Chromium: to load it, and to talk with it.

Requests and bytes until the page is ready, how far its parts jump meanwhile, the tab's share of a
core and its memory over a call, and both when the call is over. The voice is the embedded one: the
page does the same work with any. `--checkout DIR` measures another state of the project beside it.
"""

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.bench.process import ROOT, Server
from engine.bench.report import duration, positive, save, table
from engine.errors import EngineError

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
)
START = "#pp-start, #pp-connect"  # the second is what older pages have
READY = f":is({START}):not([disabled])"
SHIFTS = """window.shifts = 0; new PerformanceObserver((list) => {
  for (const one of list.getEntries()) if (!one.hadRecentInput) window.shifts += one.value;
}).observe({type: "layout-shift", buffered: true});"""
PATIENCE_MS = 60_000
VIEW = {"width": 1440, "height": 900}
SMALL_OPTIONS = {"loads": 1, "seconds": 6.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--small", action="store_true", help="one load, a call of 6 s")
    parser.add_argument("--loads", type=positive, default=5, help="loads, the median counts")
    parser.add_argument("--seconds", type=duration, default=60.0, help="length of the call")
    parser.add_argument("--checkout", default=str(ROOT), help="the project to be measured")


def run(args: argparse.Namespace) -> int:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise EngineError("chromium is missing; apt install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise EngineError("playwright is missing; run `make setup` once") from None
    folder = Path(args.checkout).resolve()
    command = [sys.executable, "-m", "demo"]
    with start_in(folder, command) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        loads = [load(browser, server.url) for _ in range(args.loads)]
        figures = {name: statistics.median(one[name] for one in loads) for name in loads[0]}
        figures |= talk(browser, server.url, args.seconds)
        browser.close()
    print(table([{"figure": name, "value": float(value)} for name, value in figures.items()]))
    save("page", figures, args.json)
    return 0


@contextmanager
def start_in(folder: Path, command: list[str]) -> Iterator[Server]:
    """A server of another checkout: its own code, this interpreter."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with Server(["--model", "embedded"], command) as server:
            yield server
    finally:
        os.chdir(before)


def load(browser: Any, url: str) -> dict[str, float]:
    """One visit with an empty cache, until the call can be started, and a second after that."""
    context = browser.new_context(viewport=VIEW)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    sent: dict[str, float] = {}  # request -> bytes, as they travel
    network.on("Network.requestWillBeSent", lambda e: note(sent, e))
    network.on(
        "Network.loadingFinished",
        lambda e: e["requestId"] in sent and sent.update({e["requestId"]: e["encodedDataLength"]}),
    )
    page.add_init_script(SHIFTS)
    started = time.monotonic()
    page.goto(url, wait_until="commit")
    page.wait_for_selector(READY)
    ready = time.monotonic() - started
    page.wait_for_timeout(1000)
    figures = {
        "ready_s": ready,
        "requests": len(sent),
        "kilobytes": sum(sent.values()) / 1000,
        "layout_shift": page.evaluate("window.shifts"),
    }
    page.reload(wait_until="commit")  # what a second visit costs
    before = dict(sent)
    page.wait_for_selector(READY)
    page.wait_for_timeout(1000)
    again = {name: size for name, size in sent.items() if name not in before}
    figures |= {"requests_again": len(again), "kilobytes_again": sum(again.values()) / 1000}
    context.close()
    return figures


def note(sent: dict[str, float], event: dict[str, Any]) -> None:
    """Count what goes over the network: modules in memory (blob:) and pictures in CSS do not."""
    if event["request"]["url"].startswith("http"):
        sent.setdefault(event["requestId"], 0)


def talk(browser: Any, url: str, seconds: float) -> dict[str, float]:
    """A call with Chromium's own beeping microphone: the tab's work, then, and when it is over."""
    context = browser.new_context(viewport=VIEW, permissions=["microphone"])
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    page.wait_for_selector(READY)
    watch = context.new_cdp_session(page)
    watch.send("Performance.enable")
    page.wait_for_timeout(3000)  # what loading leaves to be done is not idling
    idle = share_of_core(page, min(5.0, seconds))
    page.click(START)
    page.wait_for_function("window.PersonaPlex.state.live || window.PersonaPlex.call?.live")
    page.wait_for_timeout(2000)
    first = heap(watch)
    calling = share_of_core(page, seconds)
    last = heap(watch)
    page.evaluate("window.PersonaPlex.call.hangUp()")
    page.wait_for_timeout(1000)
    over = share_of_core(page, min(5.0, seconds))
    context.close()
    return {
        "idle_percent_of_a_core": idle,
        "call_percent_of_a_core": calling,
        "after_percent_of_a_core": over,
        "heap_mb_at_first": first,
        "heap_mb_at_last": last,
    }


def metrics(watch: Any) -> dict[str, float]:
    return {one["name"]: one["value"] for one in watch.send("Performance.getMetrics")["metrics"]}


def heap(watch: Any) -> float:
    """Megabytes of script memory that are in use, when garbage has been collected."""
    watch.send("HeapProfiler.collectGarbage")
    return metrics(watch)["JSHeapUsedSize"] / 1e6


def share_of_core(page: Any, seconds: float) -> float:
    """Percent of a core that the tab's process works, its audio threads included."""
    watch = page.context.browser.new_browser_cdp_session()

    def used() -> float:
        processes = watch.send("SystemInfo.getProcessInfo")["processInfo"]
        return sum(one["cpuTime"] for one in processes if one["type"] == "renderer")

    before, started = used(), time.monotonic()
    page.wait_for_timeout(seconds * 1000)
    share = 100 * (used() - before) / (time.monotonic() - started)
    watch.detach()
    return share
