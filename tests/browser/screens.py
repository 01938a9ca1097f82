"""Pictures of every state at four sizes, dark and light, each looked through by axe-core.

`python -m tests.browser.screens [FOLDER]` writes them, and prints what axe finds. It is run by
hand, to look at them: no test waits for it. The conversation is a scripted one, so that every state
comes when it is wanted; the voices are noise in the rhythm of speech.
"""

import argparse
import asyncio
import shutil
import sys
from pathlib import Path

import numpy as np
from aiohttp import web
from playwright.sync_api import sync_playwright

from demo.page.routes import add_page
from demo.page.ui import PageConfig
from engine.config import VOICE_NAMES
from engine.dialogue.persona import load_personas
from tests.browser.driver import FLAGS, MICROPHONE_FLAGS, Tab
from tests.browser.scripted import Conversation, ScriptedApi
from tests.browser.serving import Served

ROOT = Path(__file__).parents[2]
AXE = ROOT / "artifacts/npm/node_modules/axe-core/axe.min.js"  # test_accessibility.py brings it
SIZES = ((1440, 900), (1024, 768), (390, 844), (360, 640))
QUESTION = "How much is the premium plan, and may I cancel it any time?"

# A microphone that the script turns on and off: window.speak(true).
MICROPHONE = """navigator.mediaDevices.getUserMedia = async () => {
    const context = new AudioContext();
    const buffer = context.createBuffer(1, context.sampleRate * 4, context.sampleRate);
    const samples = buffer.getChannelData(0);
    for (let i = 0; i < samples.length; i++) {
        const t = i / context.sampleRate;
        const rhythm = Math.max(0.08, Math.sin(9 * t + 2 * Math.sin(3.1 * t))) ** 0.6;
        samples[i] = 0.3 * (2 * Math.random() - 1) * rhythm * (0.5 + 0.5 * Math.sin(1.7 * t) ** 2);
    }
    const source = new AudioBufferSourceNode(context, { buffer, loop: true });
    const volume = new GainNode(context, { gain: 0.0005 });
    const out = context.createMediaStreamDestination();
    source.connect(volume).connect(out);
    source.start();
    window.speak = (on) => { context.resume(); volume.gain.value = on ? 0.7 : 0.0005; };
    return out.stream;
};"""


class Agent:
    """What the scripted agent does, changed from outside while it runs."""

    def __init__(self) -> None:
        self.speaks = False
        self.there = True
        self.conversation: Conversation | None = None

    async def talk(self, conversation: Conversation) -> None:
        self.conversation = conversation
        going_on = {"resumed": True} if "resume" in conversation.query else {}
        await conversation.ready(transcript=True, resume="secret", **going_on)
        noise = np.random.default_rng(1)
        frame = 0
        while not conversation.ws.closed:
            at = (np.arange(1920) + 1920 * frame) / 24_000
            rhythm = np.maximum(0.08, np.sin(8 * at + 2 * np.sin(2.3 * at))) ** 0.6
            sound = noise.uniform(-0.25, 0.25, 1920) * rhythm * (1.0 if self.speaks else 0.0)
            if self.there:
                await conversation.send(1, (sound * 32767).astype("<i2").tobytes())
            frame += 1
            await asyncio.sleep(0.08)


async def wake_up(conversation: Conversation) -> None:
    await conversation.event(type="waking", phase="loading the model", percent=42.0)
    await conversation.told()


async def refuse(conversation: Conversation) -> None:
    await conversation.fail("busy: all slots are taken; retry in 3 s", 1013)


def photograph(browser, url, api, agent, folder, size, scheme) -> list[str]:
    """All states at one size; what axe finds in them."""
    width, height = size
    looks = {"color_scheme": scheme, "reduced_motion": "no-preference"}  # as most people see it
    tab = Tab(browser, url, viewport={"width": width, "height": height}, **looks)
    tab.context.set_default_timeout(20_000)
    tab.page.evaluate("() => { " + MICROPHONE + " }")
    axe = AXE.read_text(encoding="utf-8") if AXE.exists() else ""
    if axe:
        tab.page.evaluate(axe)
    found = []

    def take(name: str) -> None:
        tab.page.screenshot(path=folder / f"{name}-{width}x{height}-{scheme}.png")
        bad = tab.page.evaluate("axe.run().then((all) => all.violations)") if axe else []
        for one in bad:
            nodes = [node["html"][:100] for node in one["nodes"]][:3]
            found.append(f"{name} {width}x{height} {scheme}: {one['id']}: {nodes}")
        sideways = tab.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if sideways > 0:
            found.append(f"{name} {width}x{height} {scheme}: {sideways} px too wide")

    def tell(kind: int, payload: bytes) -> None:
        work = agent.conversation.send(kind, payload)
        asyncio.run_coroutine_threadsafe(work, agent.conversation.loop).result(5)

    def event(**fields: object) -> None:
        work = agent.conversation.event(**fields)
        asyncio.run_coroutine_threadsafe(work, agent.conversation.loop).result(5)

    def speak(user: bool, agent_too: bool, ms: int) -> None:
        tab.page.evaluate("on => window.speak(on)", user)
        agent.speaks = agent_too
        tab.page.wait_for_timeout(ms)

    tab.page.wait_for_timeout(600)
    take("1-ready")
    tab.page.click("#pp-tuning")
    tab.page.wait_for_timeout(300)
    take("1a-tuning")
    tab.page.keyboard.press("Escape")
    api.script = wake_up
    tab.connect("Waking up 42 %")
    tab.page.wait_for_timeout(500)
    take("2-waking")
    tab.rest()
    api.script, api.health["free"] = refuse, 0
    tab.connect("Waiting for a place")
    tab.page.wait_for_timeout(600)
    take("3-waiting")
    tab.rest()
    api.script, api.health["free"] = agent.talk, 14
    agent.there, agent.speaks = True, False
    tab.connect()
    tab.page.wait_for_timeout(500)
    tell(2, b" Hello, how can I help you today?")
    speak(False, True, 1800)
    speak(False, False, 500)
    user = {"type": "user_text", "final": True}
    speak(True, False, 2200)
    event(**user, text="Hi! I have heard that one may interrupt you.", start=2.4, end=4.5)
    speak(False, False, 320)
    tell(2, b" You may, whenever you like. I listen while I speak, and when you ")
    speak(False, True, 2500)
    take("5-speaking")
    if width < 900:
        tab.page.click("#pp-words")
        tab.page.wait_for_timeout(300)
        take("5a-words")
        tab.page.click("#pp-words")
    speak(True, True, 1300)
    take("6-both")
    speak(True, False, 1200)
    take("4-listening")
    event(**user, text=QUESTION, start=8.0, end=10.5)
    speak(False, False, 900)
    event(type="route", id=1, state="asking", question=QUESTION, knowledge=True)
    tab.see("Looking it up")
    tab.page.wait_for_timeout(400)
    take("7-looking")
    event(type="route", id=1, state="answering", question=QUESTION, knowledge=True)
    tell(2, b" It is fourteen dollars a month, and ")
    speak(False, True, 1500)
    agent.there = False
    tab.see("Unstable")
    tab.page.wait_for_timeout(900)
    take("8-unstable")
    agent.there = True
    tab.end()
    tab.page.wait_for_timeout(900)
    take("9-ended")
    found += [f"console: {one}" for one in tab.errors]
    tab.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "artifacts" / "screens")
    parser.add_argument("--size", action="append", help="as 390x844; all four by default")
    parser.add_argument("--scheme", action="append", choices=("light", "dark"))
    args = parser.parse_args()
    sizes = [tuple(map(int, one.split("x"))) for one in args.size or ()] or SIZES
    args.folder.mkdir(parents=True, exist_ok=True)
    api, agent = ScriptedApi(), Agent()

    def make() -> web.Application:
        app = web.Application()
        api.add_to(app)
        add_page(app, PageConfig(VOICE_NAMES, load_personas(), VOICE_NAMES[0], routing=True))
        return app

    found = []
    with Served(make) as served, sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*FLAGS, *MICROPHONE_FLAGS]
        )
        for size in sizes:
            for scheme in args.scheme or ("light", "dark"):
                found += photograph(browser, served.url, api, agent, args.folder, size, scheme)
        browser.close()
    print("\n".join(found) or f"axe finds nothing; the pictures are in {args.folder}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
