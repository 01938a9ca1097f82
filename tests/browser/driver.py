"""A tab with our page in it: what a person does and sees, and what the browser notes meanwhile."""

import base64
import time
from collections.abc import Callable

import numpy as np
import soxr
from playwright.sync_api import Browser, Page, Request, expect

from engine.config import SAMPLE_RATE

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP insecure.test 127.0.0.1",
)
MICROPHONE_FLAGS = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
PATIENCE = 30_000  # ms
expect.set_options(timeout=PATIENCE)  # else five seconds, which a busy machine may need

# What a worklet's tap has caught since the last look: [frame number, how many] of each piece, and
# all of them as base64 of float32 samples.
TAP = """which => {
    const taps = window.PersonaPlex.call.devices.taps[which].splice(0);
    const all = new Float32Array(taps.reduce((sum, tap) => sum + tap.samples.length, 0));
    let at = 0;
    for (const { samples } of taps) {
        all.set(samples, at);
        at += samples.length;
    }
    const bytes = new Uint8Array(all.buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i += 32768) {
        text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    }
    return [taps.map((tap) => [tap.currentFrame, tap.samples.length]), btoa(text)];
}"""

# The next press is a press of its own, too.
AT_FIRST = """() => {
    const page = window.PersonaPlex;
    if (page.state.calling) page.call.hangUp();
    page.pressedAt = -Infinity;
    page.stage.sheet("");
    page.stage.notice("");
    for (const one of document.querySelectorAll("details[open]")) one.open = false;
    document.querySelector(".persona input").click();
    page.lookUp(page.config.personas[0].looksUp);
    const { drawer, settings } = page;
    drawer.bandwidth.value = "auto";
    drawer.record.checked = true;
    Object.assign(settings, {
        voice: "", seed: null, record: true, bandwidth: "auto", microphone: "",
        textTemperature: null, textTopK: null, audioTemperature: null, audioTopK: null,
    });
    page.cast.voices(page.config.voices);
    document.querySelector("#pp-text").value = "";
    document.querySelector("#pp-kind-say").click();
}"""


class Shelf:
    """Empty pages of a browser for the next test, each in a context of its own.

    In a new context ours takes three times the work to load: the process, its scripts, all is cold.
    """

    MOST = 2  # more than that no test needs one after the other

    def __init__(self) -> None:
        self._kept: dict[Browser, list[Page]] = {}

    def take(self, browser: Browser, **look: object) -> Page:
        """A page as a new one would be; without motion if it is not told otherwise."""
        kept = self._kept.get(browser)
        page = kept.pop() if kept else browser.new_context().new_page()
        page.context.clear_cookies()
        # Without motion: drawing it in software takes half of a core, and few tests look at it.
        page.emulate_media(**{**LOOK, **{key: look[key] for key in LOOK if key in look}})
        page.set_viewport_size(look.get("viewport", VIEWPORT))
        return page

    def put_back(self, page: Page) -> None:
        """Keep it, with nothing in it."""
        kept = self._kept.setdefault(page.context.browser, [])
        if len(kept) < self.MOST:
            page.goto("about:blank")
            kept.append(page)
        else:
            page.context.close()


LOOK = {"color_scheme": "light", "forced_colors": "none", "reduced_motion": "reduce"}
VIEWPORT = {"width": 1280, "height": 720}
SHELF = Shelf()


class Tab:
    """One page: from the shelf, or, where more than its looks is another, in a new context."""

    ALONE = False  # whether its page is nothing that another could use

    def __init__(self, browser: Browser, url: str, clock: bool = False, **options: object) -> None:
        self.opened_at = time.monotonic()
        looks = options.keys() <= {*LOOK, "viewport"}
        self._shelved = looks and not clock and not self.ALONE
        if self._shelved:
            self.page = SHELF.take(browser, **options)
        else:
            self.page = browser.new_context(**{"reduced_motion": "reduce", **options}).new_page()
        self.context = self.page.context
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.requests: list[str] = []  # every HTTP request, in order
        self.open: set[Request] = set()  # those without an end so far
        self._heard: list[tuple[str, Callable]] = []
        self._tapped: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._listen()
        if clock:
            self.page.clock.install()
        self.page.goto(url)
        expect(self.headline).to_have_text("Ready", timeout=PATIENCE)

    def hear(self, event: str, listener: Callable) -> None:
        """Listen to the page until the tab is closed."""
        self._heard.append((event, listener))
        self.page.on(event, listener)

    def _listen(self) -> None:
        self.hear("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.hear("pageerror", lambda error: self.errors.append(str(error)))
        self.hear("request", self._requested)
        self.hear("requestfinished", lambda request: self.open.discard(request))
        self.hear("requestfailed", lambda request: self.open.discard(request))

    def _requested(self, request: Request) -> None:
        self.requests.append(request.url)
        self.open.add(request)

    @property
    def headline(self):
        return self.page.locator(".state-word")

    @property
    def sentence(self):
        return self.page.locator(".state-sentence")

    @property
    def notice(self):
        return self.page.locator(".notice")

    def connect(self, headline: str = "") -> None:
        """Press Start talking and wait for the state's word; without one, until they talk."""
        self.page.click("#pp-start")
        if headline:
            self.see(headline)
        else:
            self.phase("live")

    def end(self) -> None:
        self.page.evaluate("() => { PersonaPlex.pressedAt = -Infinity; }")  # no double click
        self.page.click("#pp-end")
        self.phase("ended")

    def rest(self) -> None:
        """As after loading, without loading: no call, no sheet, and what was chosen at first."""
        self.page.emulate_media(**LOOK)
        self.page.set_viewport_size(VIEWPORT)
        self.page.evaluate(AT_FIRST)
        self.errors.clear()
        self._tapped.clear()

    def phase(self, name: str) -> None:
        """Wait for a phase of static/state.js."""
        expect(self.page.locator(f".stage[data-phase={name}]")).to_be_attached(timeout=PATIENCE)

    def see(self, headline: str) -> None:
        expect(self.headline).to_contain_text(headline, timeout=PATIENCE)

    def say(self, text: str) -> None:
        """Type a text for the agent to say and press Enter."""
        self.send("say", text)
        expect(self.page.locator("#pp-text")).to_have_value("")

    def send(self, kind: str, text: str) -> None:
        """Give the composer a text to `say` or to `ask`."""
        self.page.locator(f".kinds label:has(#pp-kind-{kind})").click()
        self.page.fill("#pp-text", text)
        self.page.press("#pp-text", "Enter")

    def mute(self) -> None:
        self.page.click("#pp-mic")
        expect(self.page.locator("#pp-mic")).to_have_text("Unmute")

    def save(self, ending: str) -> None:
        """Choose a file of the summary's menu."""
        menu = self.page.locator(".save")
        if menu.get_attribute("open") is None:
            menu.locator("summary").click()
        menu.locator(f"button[value={ending}]").click()

    def tuning(self) -> None:
        """Open the drawer, or close it."""
        self.page.click("#pp-tuning")

    def sets(self, slider: str, value: str) -> None:
        """Type a value beside a slider and wait until Gradio has passed it on.

        What it still passes on of a change before it does not count.
        """
        script = """(value) => {
            const page = window.PersonaPlex;
            const { tune } = page;
            page.tune = (values) => {
                if (Object.values(values).includes(value)) {
                    console.log("passed on");
                    page.tune = tune;
                }
                tune.call(page, values);
            };
        }"""
        self.page.evaluate(script, float(value))
        with self.page.expect_console_message(lambda m: m.text == "passed on"):
            box = self.page.locator(f"{slider} input[type=number]")
            box.fill(value)
            box.press("Tab")

    def level(self, which: str) -> int:
        """How loud the orb shows `mic` or `agent`, 0 to 100."""
        return round(100 * self.page.evaluate("which => PersonaPlex.stage.loud[which]", which))

    def watch_level(self, which: str) -> None:
        """Keep the most that the orb shows from now on: `loudest`, however seldom it is asked."""
        script = """(which) => {
            const { stage } = PersonaPlex;
            const levels = stage.levels;
            window.loudest = 0;
            stage.levels = (now) => {
                levels.call(stage, now);
                window.loudest = Math.max(window.loudest, Math.round(100 * stage.loud[which]));
            };
        }"""
        self.page.evaluate(script, which)

    @property
    def loudest(self) -> int:
        return self.page.evaluate("window.loudest")

    def until(self, true: Callable[[], object], seconds: float = 60, every: float = 0.1) -> None:
        """Let the page run until something is true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "waited in vain"
            self.page.wait_for_timeout(every * 1000)

    def tap(self, which: str) -> np.ndarray:
        """What went through a worklet so far (with ?tap=1), float32 at 24 kHz; of one call."""
        places, encoded = self.page.evaluate(TAP, which)
        samples, at = np.frombuffer(base64.b64decode(encoded), np.float32), 0
        pieces = self._tapped.setdefault(which, [])
        for frame, count in places:
            pieces.append((frame, samples[at : at + count]))
            at += count
        first, (last, newest) = pieces[0][0], pieces[-1]
        sound = np.zeros(last - first + len(newest), np.float32)
        for frame, piece in pieces:
            sound[frame - first : frame - first + len(piece)] = piece
        rate = self.page.evaluate("window.PersonaPlex.call.devices.context.sampleRate")
        return soxr.resample(sound, rate, SAMPLE_RATE)

    def seconds(self) -> float:
        """How much of the call is recorded."""
        return self.page.evaluate("window.PersonaPlex.call.recorder.seconds")

    def close(self) -> None:
        for event, listener in self._heard:
            self.page.remove_listener(event, listener)
        if self._shelved:
            SHELF.put_back(self.page)
        else:
            self.context.close()
