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


SIZES = ((1280, 900), (800, 900), (360, 780))
# Every face of static/state.js, as the phase and the facts that it follows from.
FACES = {
    "ready": ("ready", {}),
    "permission": ("permission", {}),
    "calling": ("calling", {}),
    "waking": ("waking", {"percent": 42, "waking": "loading the model"}),
    "waiting": ("waiting", {"places": 16}),
    "listening": ("live", {"microphone": True, "user": True}),
    "speaking": ("live", {"microphone": True, "agent": True}),
    "both": ("live", {"microphone": True, "user": True, "agent": True}),
    "looking": ("live", {"microphone": True, "question": "How much is the premium plan?"}),
    "deaf": ("live", {}),
    "muted": ("live", {"microphone": True, "muted": True}),
    "paused": ("live", {"microphone": True, "paused": True}),
    "silenced": ("live", {"sound": False}),
    "unstable": ("unstable", {"microphone": True}),
    "reconnecting": ("reconnecting", {"kept": True}),
    "ended": ("ended", {"reason": "idle"}),
}
SHOW = """([phase, facts]) => {
    const { state } = PersonaPlex;
    state.on("end");
    state.phase = "ready";
    state.on("start");
    state.phase = phase;
    Object.assign(state.facts, facts);
    state.changed(state);
    return state.face;
}"""


# The colours are all that is another in the dark, and these rules look at them.
OF_COLOUR = ("color-contrast", "link-in-text-block")


@pytest.mark.parametrize(("scheme", "rules"), [("light", ()), ("dark", OF_COLOUR)])
def test_axe_finds_no_violation_in_any_state(
    browser, scripted_server, api, open_tab, axe, artifacts, scheme, rules
):
    api.script = busy_talk
    tab = open_tab(browser, scripted_server.url, color_scheme=scheme)
    tab.page.evaluate(axe.read_text(encoding="utf-8"))  # as a script the policy would refuse it
    for width, height in SIZES:
        tab.page.set_viewport_size({"width": width, "height": height})
        assert violations(tab.page, rules=rules) == [], width
        tab.tuning()
        assert violations(tab.page, rules=rules) == [], width
        tab.page.keyboard.press("Escape")
    for face, what in FACES.items():
        assert tab.page.evaluate(SHOW, what) == face
        assert violations(tab.page, ".stage", rules) == [], face
    tab.page.evaluate(SHOW, FACES["ready"])
    for width, height in SIZES:
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.rest()
        tab.connect()
        expect(tab.page.locator(".queued")).to_have_count(1)
        tab.until(lambda: tab.level("agent") > 20)
        assert violations(tab.page, rules=rules) == [], width
        tab.page.screenshot(path=artifacts / f"{width}-{scheme}-live.png", full_page=True)


def violations(page, within="html", rules=()):
    """What axe finds there, by all of its rules if none are named."""
    options = {"runOnly": list(rules)} if rules else {}
    script = "([one, options]) => axe.run(one, options).then((result) => result.violations)"
    found = page.evaluate(script, [within, options])
    return [
        (
            one["id"],
            one["help"],
            [(node["html"][:160], node["failureSummary"][:300]) for node in one["nodes"]][:4],
        )
        for one in found
    ]


BEYOND = """(health) => {
    PersonaPlex.bar.health(health);
    return [...document.querySelectorAll(".pp-bar, .pp-bar *")]
        .filter((e) => e.checkVisibility())
        .map((e) => [e, e.getBoundingClientRect()])
        .filter(([e, { left, right }]) => left < 0 || right > innerWidth
            || (e.clientWidth && e.scrollWidth > e.clientWidth))
        .map(([e]) => `${e.id || e.className || e.tagName}: ${e.textContent}`);
}"""
HEALTHS = [
    None,
    {"status": "ok", "free": 14, "slots": 16},
    {"status": "ok", "free": 96, "slots": 96},
    {"status": "ok", "free": 0, "slots": 96},
    {"status": "waking"},
    {"status": "waking", "percent": 99.6},
    *({"status": one} for one in ("stuck", "failed", "closing")),
]


def test_in_every_state_of_the_server_the_bar_of_a_phone_shows_all_it_has(tab):
    for width in (320, 360, 390, 719, 720, 899):
        tab.page.set_viewport_size({"width": width, "height": 640})
        for health in HEALTHS:
            for model in ("embedded", "personaplex"):  # with the badge, and without
                told = health and {**health, "model": model}
                assert tab.page.evaluate(BEYOND, told) == [], (width, told)
    expect(tab.page.get_by_role("button", name="Tuning")).to_be_visible()


def test_nothing_is_wider_than_a_phone(tab, api):
    api.script = busy_talk
    tab.page.set_viewport_size({"width": 360, "height": 780})
    tab.connect()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360


# Of what may scroll sideways, what has something to scroll.
SIDEWAYS = """[...document.querySelectorAll("*")]
    .filter((e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX))
    .filter((e) => e.scrollWidth > e.clientWidth)
    .map((e) => e.id || e.className)"""


def test_no_scrollbar_sideways_small_target_or_faint_focus_at_any_size(tab):
    """Computed, in both themes: what Gradio's rules leave of ours."""
    for width, height in ((360, 640), (390, 844), (720, 450), (1200, 900)):  # 720: 1440 at 200 %
        tab.page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            tab.page.emulate_media(color_scheme=scheme)
            tab.page.evaluate(
                f"document.body.classList.toggle('dark', {str(scheme == 'dark').lower()})"
            )
            assert tab.page.evaluate(SIDEWAYS) == [], (width, scheme)
            assert tab.page.evaluate(TARGETS) == [], (width, scheme)
            tab.page.focus("#pp-start")
            tab.page.keyboard.press("Tab")
            tab.page.keyboard.press("Shift+Tab")
            assert tab.page.evaluate(FOCUS) >= 3, (width, scheme)
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width


TARGETS = """[...document.querySelectorAll("button, select, summary, input:not([type=radio])")]
    .filter((e) => !e.matches(".word")) // a word in a text may be as narrow as it is
    .filter((e) => e.checkVisibility({ visibilityProperty: true }) && e.type !== "checkbox")
    .map((e) => [e.id || e.className, e.getBoundingClientRect()])
    .filter(([, box]) => box.width > 0 && (box.width < 24 || box.height < 24))
    .map(([name, box]) => `${name}: ${box.width} x ${box.height}`)"""

# The contrast of the focus ring with what is behind it.
FOCUS = """(() => {
    const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number)
            .map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const element = document.activeElement;
    const ring = getComputedStyle(element);
    if (ring.outlineStyle === "none" || parseFloat(ring.outlineWidth) < 2) return 0;
    const probe = document.createElement("i");
    const stage = getComputedStyle(document.querySelector(".stage"));
    probe.style.color = stage.getPropertyValue("--pp-card");
    document.body.append(probe);
    const behind = getComputedStyle(probe).color;
    const [a, b] = [light(ring.outlineColor), light(behind)].sort((x, y) => y - x);
    probe.remove();
    return (a + 0.05) / (b + 0.05);
})()"""


def test_on_a_phone_the_page_does_not_scroll_in_a_call(tab):
    tab.page.set_viewport_size({"width": 360, "height": 640})
    tab.connect()
    tab.page.mouse.move(180, 300)
    tab.page.mouse.wheel(0, 500)
    tab.page.wait_for_timeout(200)
    assert tab.page.evaluate("window.scrollY") == 0
    for name in ("#pp-mic", "#pp-pause", "#pp-quiet", "#pp-end", "#pp-words", "#pp-keys"):
        box = tab.page.locator(name).bounding_box()
        assert 0 <= box["x"] <= 360 - box["width"], name
        assert box["y"] + box["height"] <= 640, name
    tab.page.click("#pp-words")
    expect(tab.page.locator(".log")).to_be_visible()
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator(".log")).to_be_hidden()
    tab.page.click("#pp-keys")
    expect(tab.page.locator("#pp-text")).to_be_visible()
    size = tab.page.evaluate("getComputedStyle(document.querySelector('#pp-text')).fontSize")
    assert float(size.removesuffix("px")) >= 16  # else a telephone zooms into it


def test_nothing_moves_for_those_who_want_no_motion(tab):
    frames = """() => {
        window.pictures = 0;
        const { clearRect } = CanvasRenderingContext2D.prototype;
        CanvasRenderingContext2D.prototype.clearRect = function (...box) {
            window.pictures += 1;
            clearRect.apply(this, box);
        };
    }"""
    tab.page.wait_for_timeout(1000)  # the orb of the call before has faded
    tab.page.evaluate(frames)
    assert tab.page.evaluate("document.getAnimations().length") == 0
    tab.page.wait_for_timeout(700)
    assert tab.page.evaluate("window.pictures") == 0  # and nothing is drawn where nothing moves


def test_in_forced_colours_every_control_has_an_outline(tab):
    tab.page.emulate_media(forced_colors="active")
    tab.connect()
    width = "e => getComputedStyle(e).borderTopWidth"
    for name in ("#pp-mic", "#pp-pause", "#pp-quiet", "#pp-end", ".stage"):
        assert tab.page.locator(name).evaluate(width) != "0px", name
    expect(tab.headline).to_be_visible()
    tab.page.emulate_media(forced_colors="none")


def test_a_whole_call_needs_only_the_keyboard(browser, scripted_server, api, open_tab):
    api.script = talk
    tab = open_tab(browser, scripted_server.url)
    reach(tab.page, "pp-start")
    tab.page.keyboard.press("Enter")
    tab.phase("live")
    reach(tab.page, "pp-mic")
    tab.page.keyboard.press("Space")
    expect(tab.page.locator("#pp-mic")).to_have_text("Unmute")
    reach(tab.page, "pp-text")
    tab.page.keyboard.type("Hello")
    tab.page.keyboard.press("Enter")
    tab.until(lambda: api.conversations[0].says == ["Hello"])
    reach(tab.page, "pp-end", back=True)
    tab.page.wait_for_timeout(700)  # sooner it would be a double click on Start
    tab.page.keyboard.press("Enter")
    tab.see("Ended")


def reach(page, elem_id, back=False):
    """Press Tab until the focus is in this element, as one does without a mouse."""
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if page.evaluate(f"Boolean(document.activeElement.closest('#{elem_id}'))"):
            return
    raise AssertionError(f"Tab never reaches {elem_id}")
