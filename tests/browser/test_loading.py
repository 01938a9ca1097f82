"""What a visit costs; and that our rules win over Gradio's, as the browser computes them."""

import re

import pytest

SHIFTS = """window.shifts = 0; new PerformanceObserver((list) => {
  for (const one of list.getEntries()) if (!one.hadRecentInput) window.shifts += one.value;
}).observe({type: "layout-shift", buffered: true});"""


@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_is_ready_after_few_requests_few_bytes_and_without_a_jump(browser, server, width):
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    page.add_init_script(SHIFTS)
    sizes = []
    page.on(
        "requestfinished",
        lambda request: (
            request.url.startswith("http") and sizes.append(request.sizes()["responseBodySize"])
        ),
    )
    page.goto(server.url)
    page.wait_for_selector(".pp-there #pp-start:not([disabled])")
    page.wait_for_load_state("networkidle")
    assert len(sizes) <= 12  # 7, and what a browser looks for by itself
    assert sum(sizes) <= 300_000
    assert page.evaluate("window.shifts") <= 0.05
    context.close()


FRAMES = """window.frames60 = 0; {
  const { requestAnimationFrame } = window;
  window.requestAnimationFrame = (work) => {
    window.frames60 += 1;
    return requestAnimationFrame(work);
  };
}"""


def test_an_idle_page_asks_for_no_frames_and_runs_no_animation(browser, scripted_server, api):
    """Neither ours nor Gradio's: its sign of loading would go on for ever, at 60 Hz."""
    context = browser.new_context()  # for those who have not asked for less motion
    page = context.new_page()
    page.add_init_script(FRAMES)
    page.goto(scripted_server.url)
    page.wait_for_selector(".pp-there #pp-start:not([disabled])")
    size = "document.querySelector('.orb canvas').style.transform"
    first = page.evaluate(size)
    for _ in range(20):  # while it arrives, Gradio asks for some
        before = page.evaluate("frames60")
        page.wait_for_timeout(1000)
        if page.evaluate("frames60") == before:
            break
    assert page.evaluate("frames60") == before
    assert page.evaluate("document.getAnimations().length") == 0
    assert page.evaluate("PersonaPlex.sound.context.state") == "suspended"
    # And yet it breathes: waited for, as a breath comes by each size twice.
    page.wait_for_function(f"first => {size} !== first", arg=first, polling=100)
    context.close()


LOOK = """() => {
  const found = [];
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const contrast = (one, other) => {
    const [dark, light] = [luminance(rgb(one)), luminance(rgb(other))].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const back = (element) => {
    for (let e = element.parentElement; e; e = e.parentElement) {
      const { backgroundColor } = getComputedStyle(e);
      if (rgb(backgroundColor)[3] !== 0) return backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const controls = "button, input, select, textarea, summary, [role=slider], [role=log]";
  for (const element of document.querySelectorAll(controls)) {
    if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const box = (element.closest("label") ?? element).getBoundingClientRect();
    const name = element.id || element.className || element.textContent;
    const inText = element.matches(".word, input[type=range]");
    const size = `${name} is ${box.width}x${box.height}`;
    if (!inText && Math.min(box.width, box.height) < 24) found.push(size);
    if (element.disabled || element.matches("input[type=radio]")) continue;
    element.focus({ focusVisible: true });
    const { outlineColor, outlineStyle, outlineWidth } = getComputedStyle(element);
    const seen = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
    const focus = `${name}: focus ${outlineStyle} ${outlineColor} on ${back(element)}`;
    if (!seen || contrast(outlineColor, back(element)) < 3) found.push(focus);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_focus_is_seen_and_everything_can_be_hit(browser, server, open_tab, scheme):
    tab = open_tab(browser, server.url, color_scheme=scheme)
    assert tab.page.evaluate(LOOK) == []
    tab.tuning()
    assert tab.page.evaluate(LOOK) == []


COLOURS = """(selector) => {
  const style = getComputedStyle(document.querySelector(selector));
  return [style.color, style.backgroundColor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_disabled_stands_out_less_than_what_is_not(
    browser, scripted_server, api, open_tab, scheme
):
    tab = open_tab(browser, scripted_server.url, color_scheme=scheme)
    before = {name: contrast(*tab.page.evaluate(COLOURS, name)) for name in ("#pp-send",)}
    tab.connect()
    for name, disabled in before.items():
        assert disabled < contrast(*tab.page.evaluate(COLOURS, name))


def contrast(one: str, other: str) -> float:
    """Of two colours as CSS has them, by WCAG."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
