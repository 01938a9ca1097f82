"""axe-core finds no violation, keys reach everything, and a phone shows it all."""

import shutil
import subprocess

import pytest
from playwright.sync_api import expect

from tests.browser.scripted import talk

AXE = "axe-core@4.14.1"


@pytest.fixture(scope="package")
def axe(artifacts):
    """The script of axe-core, installed once into a folder that git ignores."""
    folder = artifacts / "npm"
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if script.exists():
        return script
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing (apt install npm): axe-core does not check the page")
    command = [npm, "install", "--silent", "--no-save", "--prefix", str(folder), AXE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {AXE}: axe-core does not check the page")
    return script


async def busy_talk(conversation):
    """Something of everything that can be on the page."""
    await conversation.ready()
    text = "These words were given, and these were cut off."
    await conversation.send(2, b" Hello, I speak for myself.")
    await conversation.event(type="say", id=1, state="speaking", text=text)
    await conversation.send(2, b" These words were given,")
    await conversation.event(
        type="say", id=1, state="cancelled", text=text, spoken="These words were given,"
    )
    await conversation.event(
        type="user_text", text="What is the price?", start=0.5, end=1.5, final=True
    )
    await conversation.event(
        type="route", id=1, state="asking", question="What is the price?", knowledge=True
    )
    await conversation.event(type="say", id=2, state="queued", text="This one waits.")
    await conversation.send(5, b"say: 10 texts are waiting already; wait for one")
    await conversation.echo()


VIEWS = [
    ("tablet", 800, 900, "light"),
    ("desktop", 1280, 900, "light"),
    ("desktop", 1280, 900, "dark"),
    ("phone", 360, 780, "light"),
    ("phone", 360, 780, "dark"),
]


@pytest.mark.parametrize(("name", "width", "height", "scheme"), VIEWS)
def test_axe_finds_no_violation(
    browser, scripted_server, api, open_tab, axe, artifacts, name, width, height, scheme
):
    api.script = busy_talk
    view = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    tab = open_tab(browser, scripted_server.url, **view)
    tab.page.get_by_role("button", name="Settings").click()
    tab.page.evaluate(axe.read_text(encoding="utf-8"))  # as a script the policy would refuse it
    assert violations(tab.page) == []
    tab.page.screenshot(path=artifacts / f"{name}-{scheme}-idle.png", full_page=True)
    tab.connect()
    expect(tab.page.locator(".queued")).to_have_count(1)
    tab.until(lambda: tab.level("agent") > 20)
    assert violations(tab.page) == []
    tab.page.get_by_role("button", name="Settings").click()
    tab.page.screenshot(path=artifacts / f"{name}-{scheme}-live.png", full_page=True)


def violations(page):
    found = page.evaluate("axe.run().then((result) => result.violations)")
    return [
        (
            one["id"],
            one["help"],
            [(node["html"][:160], node["failureSummary"][:300]) for node in one["nodes"]][:4],
        )
        for one in found
    ]


def test_nothing_is_wider_than_a_phone(browser, scripted_server, api, open_tab):
    api.script = busy_talk
    tab = open_tab(browser, scripted_server.url, viewport={"width": 360, "height": 780})
    tab.connect()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360


# Of what may scroll sideways, what has something to scroll.
SIDEWAYS = """[...document.querySelectorAll("*")]
    .filter((e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX))
    .filter((e) => e.scrollWidth > e.clientWidth)
    .map((e) => e.id || e.className)"""


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_has_a_scrollbar_sideways(browser, scripted_server, open_tab, width):
    tab = open_tab(browser, scripted_server.url, viewport={"width": width, "height": 900})
    assert tab.page.evaluate(SIDEWAYS) == []
    tab.page.get_by_role("button", name="Settings").click()
    expect(tab.page.locator("#pp-temp")).to_be_visible()
    assert tab.page.evaluate(SIDEWAYS) == []


def test_a_whole_call_needs_only_the_keyboard(browser, scripted_server, api, open_tab):
    api.script = talk
    tab = open_tab(browser, scripted_server.url)
    reach(tab.page, "pp-connect")
    tab.page.keyboard.press("Enter")
    tab.see("You are live")
    reach(tab.page, "pp-mute")
    tab.page.keyboard.press("Space")
    tab.see("Live, microphone muted")
    reach(tab.page, "pp-say")
    tab.page.keyboard.type("Hello")
    tab.page.keyboard.press("Enter")
    tab.until(lambda: api.conversations[0].says == ["Hello"])
    reach(tab.page, "pp-connect", back=True)
    tab.page.keyboard.press("Enter")
    tab.see("Conversation ended")


def reach(page, elem_id, back=False):
    """Press Tab until the focus is in this element, as one does without a mouse."""
    for _ in range(40):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if page.evaluate(f"Boolean(document.activeElement.closest('#{elem_id}'))"):
            return
    raise AssertionError(f"Tab never reaches {elem_id}")
