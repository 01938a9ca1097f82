"""The stage: one press is one press, nothing is lost by the next, and what is shown is true."""

import re

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect

from tests.browser.driver import PATIENCE
from tests.browser.scripted import talk

EMBEDDED = {"status": "ok", "model": "embedded", "slots": 16, "free": 14}


def test_a_double_click_is_one_start(tab, api):
    tab.page.dblclick("#pp-start")
    tab.phase("live")
    tab.page.wait_for_timeout(900)
    tab.phase("live")
    assert len(api.conversations) == 1


PRESS = """() => (document.querySelector("#pp-end:not([hidden])")
    ?? document.querySelector("#pp-start")).click()"""


def test_presses_at_any_distance_end_in_a_state_that_is_true_and_raise_nothing(tab, api):
    for gap_ms in (0, 30, 120, 400, 800):
        for _ in range(4):
            tab.page.evaluate(PRESS)
            tab.page.wait_for_timeout(gap_ms)
        tab.page.wait_for_timeout(800)
        tab.until(lambda: settled(tab, api))  # on a busy machine that takes longer


def settled(tab, api) -> bool:
    """Whether a call is on or over, here and on the server alike."""
    phase = tab.page.evaluate("PersonaPlex.state.phase")
    open_now = [one for one in api.conversations if not one.ws.closed]
    return phase in ("live", "ended") and len(open_now) == (phase == "live")


def test_a_press_before_the_script_is_there_cannot_be_made(browser, scripted_server, api):
    """The button works from the moment at which it can be pressed."""
    context = browser.new_context()
    page = context.new_page()
    held = []
    page.route(re.compile(r"/pp/.*\.js"), lambda route: held.append(route))
    page.goto(scripted_server.url, wait_until="commit")
    start = page.locator("#pp-start")
    while not held:
        page.wait_for_timeout(50)
    expect(start).not_to_be_visible()  # a picture of the page stands there until then
    for route in held:
        route.continue_()
    start.click(timeout=PATIENCE)  # waits until it is enabled
    expect(page.locator(".stage[data-phase=live]")).to_be_attached(timeout=PATIENCE)
    context.close()


def test_the_last_conversation_stays_until_the_next_one_is_live(tab, api):
    async def speaks(conversation):
        await conversation.ready()
        await conversation.send(2, b" Remember me.")
        await conversation.hear(0.4)
        await conversation.echo()

    async def refuses(conversation):
        await conversation.told()
        await conversation.fail("closing: the server is being updated", 1001)

    api.script = speaks
    tab.connect()
    words = tab.page.locator(".turn.agent .said")
    expect(words).to_have_text("Remember me.")
    tab.end()
    api.script = refuses
    tab.rest()
    tab.connect("Calling")
    expect(words).to_have_text("Remember me.")
    tab.until(lambda: len(api.conversations) == 2)
    api.conversations[-1].resume()
    tab.see("Ended")
    expect(words).to_have_text("Remember me.")
    expect(tab.page.locator(".summary")).to_be_visible()
    api.script = talk
    tab.rest()
    tab.connect()
    expect(words).to_have_count(0)


def test_leaving_asks_only_while_a_call_is_on(tab):
    asked = []
    tab.hear("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    tab.page.mouse.click(5, 5)
    tab.page.reload()
    tab.see("Ready")
    assert asked == []
    tab.connect()
    tab.page.reload()
    tab.see("Ready")
    assert asked == ["beforeunload"]


# The least that is played from now on: it lasts for a moment, and a busy test sees no moment.
QUIETEST = """() => {
    const { stage } = PersonaPlex;
    const levels = stage.levels;
    window.quietest = 1;
    stage.levels = (now) => {
        levels.call(stage, now);
        window.quietest = Math.min(window.quietest, stage.loud.agent);
    };
}"""


def test_be_quiet_silences_it_here_at_once_and_on_the_server(tab, api):
    async def speaks(conversation):
        await conversation.ready()
        conversation.talking = True
        while conversation.talking:
            await conversation.hear(0.08)

    api.script = speaks
    sends = """() => {
        const send = WebSocket.prototype.send;
        window.controls = [];
        WebSocket.prototype.send = function (data) {
            if (data[0] === 3) window.controls.push(data[1]);
            return send.call(this, data);
        };
    }"""
    tab.page.evaluate(sends)
    tab.connect()
    tab.until(lambda: tab.level("agent") > 50)
    tab.page.evaluate(QUIETEST)
    tab.page.click("#pp-quiet")
    tab.until(lambda: tab.page.evaluate("window.quietest") == 0)
    assert tab.page.evaluate("window.controls") == [1]
    api.conversations[0].talking = False


def test_the_pill_tells_the_places_on_load_on_focus_and_after_a_call_and_never_polls(tab, api):
    pill = tab.page.locator(".pill-text")
    expect(pill).to_have_text("ready · 14 of 16 places free")
    expect(tab.page.locator(".demo-badge")).to_be_hidden()
    for _ in range(20):  # a call of the test before may just have ended
        asked = api.healths
        tab.page.wait_for_timeout(1500)
        if api.healths == asked:
            break
    assert api.healths == asked
    api.health = {"status": "ok", "model": "m", "slots": 16, "free": 0}
    tab.page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(pill).to_have_text("all 16 places are taken")
    api.health = dict(EMBEDDED)
    tab.connect()
    before = api.healths
    tab.page.evaluate("window.dispatchEvent(new Event('focus'))")
    tab.page.wait_for_timeout(800)
    assert api.healths == before  # talking asks nothing
    tab.end()
    expect(pill).to_have_text("ready · 14 of 16 places free")
    expect(tab.page.locator(".demo-badge")).to_have_text("demo voice, not PersonaPlex")


def test_a_server_that_wakes_up_or_is_away_is_told_in_the_pill(tab, api):
    pill = tab.page.locator(".pill-text")
    for health, says in (
        ({"status": "waking", "phase": "loading", "percent": 40}, "waking up · 40 %"),
        ({"status": "stuck", "reason": "x"}, "in trouble"),
    ):
        api.health = health
        tab.page.evaluate("window.dispatchEvent(new Event('focus'))")
        expect(pill).to_contain_text(says)


def test_the_microphone_is_asked_for_only_where_the_browser_really_asks(tab, api):
    async def sleeps(conversation):
        await conversation.told()
        await talk(conversation)

    api.script = sleeps
    faces = """() => {
        window.faces = [];
        const stage = PersonaPlex.stage;
        const { state } = stage;
        stage.state = (now) => { window.faces.push(now.face); state.call(stage, now); };
    }"""
    tab.page.evaluate(faces)
    tab.connect("Calling")
    tab.see("Waking up")  # after 4 s without an answer
    api.conversations[0].resume()
    tab.phase("live")
    shown = tab.page.evaluate("window.faces")
    assert shown.index("waking") > shown.index("calling")
    assert "calling" in shown[:3]  # one flash of the question at most


def test_worklets_need_no_server_when_the_call_begins(tab):
    tab.page.evaluate("PersonaPlex.sound.loaded")
    before = len(tab.requests)
    tab.connect()
    assert [url for url in tab.requests[before:] if "worklet" in url] == []


def test_only_state_words_are_read_out_and_who_speaks_is_not(tab):
    spoken = """() => {
        window.spoken = [];
        const region = document.querySelector(".stage [role=status]");
        new MutationObserver(() => window.spoken.push(region.textContent))
            .observe(region, { childList: true, characterData: true, subtree: true });
    }"""
    tab.page.evaluate(spoken)
    tab.connect()
    tab.until(lambda: tab.level("agent") > 20)  # our own voice comes back: both talk
    tab.see("Both talking")
    tab.page.wait_for_timeout(3000)
    tab.mute()
    tab.see("Muted")
    tab.end()
    said = tab.page.evaluate("window.spoken")
    assert not any("Both" in one or one.startswith("Speaking") for one in said)
    assert said[-1].startswith("Ended.")
    faltered = sum(one.startswith("Unstable") for one in said)  # a busy machine's line does
    assert len(said) <= 8 + 2 * faltered


# -- one clock -----------------------------------------------------------------------------------


SAVE = """async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await PersonaPlex.call.recorder.wav({}));
    link.download = "call.wav";
    link.click();
}"""


def test_each_word_lies_within_80_ms_of_its_sound_in_the_recording(tab, api, tmp_path):
    """The server sends frames in heaps and with gaps; each word comes just before its tone."""
    words = [f"word{i}" for i in range(8)]

    async def speaks(conversation):
        await conversation.ready()
        for word in words:
            await conversation.hear(0.16, level=0.0, heap=2)
            await conversation.send(2, f" {word}".encode())
            await conversation.hear(0.24, level=0.5, heap=3)
            await conversation.hear(0.16, level=0.0, heap=2)
        await conversation.hear(1.0, level=0.0)
        await conversation.echo()

    api.script = speaks
    stamps = """() => {
        const { transcript } = PersonaPlex;
        const { text } = transcript;
        window.stamps = {};
        transcript.text = (piece, t) => {
            window.stamps[piece.trim()] = t;
            text.call(transcript, piece, t);
        };
    }"""
    tab.page.evaluate(stamps)
    tab.connect()
    tab.until(lambda: "word7" in tab.page.evaluate("window.stamps"), seconds=60)
    tab.page.wait_for_timeout(1200)
    tab.end()
    stamped = tab.page.evaluate("window.stamps")
    with tab.page.expect_download() as download:
        tab.page.evaluate(SAVE)
    download.value.save_as(tmp_path / "call.wav")
    sound, rate = soundfile.read(tmp_path / "call.wav")
    loud = np.abs(sound[:, 0]) > 0.1
    quiet_before = np.array([not loud[max(0, i - 2400) : i].any() for i in np.flatnonzero(loud)])
    begins = np.flatnonzero(loud)[quiet_before] / rate
    assert len(begins) >= len(words)
    for word in words:
        assert np.abs(begins - stamped[word]).min() < 0.08, (word, stamped[word], begins)


# -- the orb ---------------------------------------------------------------------------------------

# How often the orb is drawn until it shows a level, and how often in its next twenty ticks.
DRAWN = """async (mic) => {
    const { orb } = PersonaPlex.stage;
    const paint = orb.canvas.getContext("2d");
    const frame = () => new Promise(requestAnimationFrame);
    let count = 0;
    paint.clearRect = (...area) => {
        count += 1;
        CanvasRenderingContext2D.prototype.clearRect.apply(paint, area);
    };
    orb.hear({ mic });
    while (orb.level.mic !== mic) await frame();
    const until = count;
    for (let ticks = 0, at = orb.at; ticks < 20; ticks += at !== orb.at, at = orb.at) await frame();
    return [until, count - until];
}"""


def test_who_wants_no_motion_has_the_orb_drawn_only_where_it_changes(tab):
    for level in (0.5, 0.9):
        changing, still = tab.page.evaluate(DRAWN, level)
        assert changing > 0
        assert still == 0
    tab.page.emulate_media(reduced_motion="no-preference")
    assert tab.page.evaluate(DRAWN, 0.4)[1] > 10
    tab.page.emulate_media(reduced_motion="reduce")  # the tests after this one have the same page
    tab.page.evaluate("PersonaPlex.stage.orb.hear({ mic: 0 })")


# How many frames the orb asks the browser for while it draws twenty pictures.
ASKED = """async () => {
    const { orb } = PersonaPlex.stage;
    const real = window.requestAnimationFrame;
    let asked = 0;
    window.requestAnimationFrame = (work) => {
        asked += 1;
        return real.call(window, work);
    };
    orb.hear({ mic: 0.4 });
    for (let ticks = 0, at = orb.at; ticks < 20; ticks += at !== orb.at, at = orb.at) {
        await new Promise((done) => real.call(window, done));
    }
    window.requestAnimationFrame = real;
    return asked;
}"""


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_the_orb_asks_for_no_frame_that_it_does_not_draw(tab, motion):
    tab.page.emulate_media(reduced_motion=motion)
    assert 19 <= tab.page.evaluate(ASKED) <= 22
    tab.page.evaluate("PersonaPlex.stage.orb.hear({ mic: 0 })")
    tab.page.emulate_media(reduced_motion="reduce")


# How often five seconds of a call, bar by bar, draw the strip.
MOVED = """() => {
    const { strip } = PersonaPlex.stage;
    const was = strip.timeline;
    const timeline = { bars: [], steps: 0, gaps: [] };
    strip.show(timeline);
    let count = 0;
    const draw = strip.draw;
    strip.draw = () => {
        count += 1;
        draw.call(strip);
    };
    for (const perBar = 5; timeline.steps < 50 * perBar; timeline.steps += 1) strip.update();
    delete strip.draw;
    strip.show(was);
    return count;
}"""


# The bars that the strip shows when a call of 59 bars has ended.
ENDED = """() => {
    const { stage } = PersonaPlex;
    const was = stage.strip.timeline;
    const timeline = { bars: [], steps: 0, gaps: [] };
    stage.strip.show(timeline);
    for (; timeline.steps < 59 * 5; timeline.steps += 1) stage.strip.update();
    stage.state(PersonaPlex.state);
    const { drawn } = stage.strip;
    stage.strip.show(was);
    return drawn;
}"""


def test_who_wants_no_motion_sees_the_last_second_of_a_call(tab):
    assert tab.page.evaluate(ENDED) == 59


# The ms between five pictures, with a change asked for again and again.
HASTE = """async () => {
    const { orb } = PersonaPlex.stage;
    const drawn = [orb.at];
    while (drawn.length < 6) {
        orb.show("listening", null);
        await new Promise((done) => setTimeout(done, 1));
        if (drawn.at(-1) !== orb.at) drawn.push(orb.at);
    }
    return drawn[5] - drawn[1];
}"""


def test_however_often_it_is_told_something_the_orb_keeps_its_pace(tab):
    assert tab.page.evaluate(HASTE) > 4 * 90
    tab.page.emulate_media(reduced_motion="no-preference")
    assert tab.page.evaluate(HASTE) > 4 * 25
    tab.page.evaluate("PersonaPlex.stage.state(PersonaPlex.state)")
    tab.page.emulate_media(reduced_motion="reduce")


def test_who_wants_no_motion_sees_the_strip_move_once_a_second(tab):
    assert 4 <= tab.page.evaluate(MOVED) <= 6
    tab.page.emulate_media(reduced_motion="no-preference")
    assert 49 <= tab.page.evaluate(MOVED) <= 51
    tab.page.emulate_media(reduced_motion="reduce")
