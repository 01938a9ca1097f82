"""The pictures of README, docs/modal.md and of a link's preview: the page in a real call.

`python -m tests.browser.picture` remakes them in assets/page. The voice is the embedded one, the
microphone a recorded sentence; the picture is taken when both talk.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from engine.bench.process import Server
from tests.browser.driver import FLAGS, MICROPHONE_FLAGS
from tests.browser.sound import write_microphone

FOLDER = Path(__file__).parents[2] / "assets" / "page"
SIZES = {"page.png": (1440, 900), "preview.png": (1200, 630)}
TEXTS = ("City bikes cost twelve dollars a day, electric bikes thirty.", "Helmets are free.")
BOTH = "document.querySelector('.stage').dataset.face === 'both'"


def main() -> None:
    command = [sys.executable, "-m", "demo"]
    with (
        Server(["--model", "embedded"], command) as server,
        tempfile.TemporaryDirectory() as scratch,
        sync_playwright() as playwright,
    ):
        wav = write_microphone(Path(scratch) / "speech.wav")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=[*FLAGS, *MICROPHONE_FLAGS, f"--use-file-for-fake-audio-capture={wav}"],
        )
        for name, (width, height) in SIZES.items():
            size = {"width": width, "height": height}
            page = browser.new_page(viewport=size, color_scheme="dark")
            page.goto(server.url)
            page.get_by_text("Service desk").click()
            page.click("#pp-start")
            page.wait_for_selector(".stage[data-phase=live]")
            page.wait_for_timeout(9000)  # so that the strip has something to show
            for text in TEXTS:
                page.fill("#pp-text", text)
                page.press("#pp-text", "Enter")
                page.wait_for_function("document.querySelector('#pp-text').value === ''")
            page.wait_for_selector(".turn.given")
            page.wait_for_timeout(2500)
            page.wait_for_function(BOTH)
            page.screenshot(path=FOLDER / name)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
