"""A line that dies without a word: what the page shows while it lasts, and what is true afterwards.

The network between is silent and closes nothing. Waiting of more than a few seconds is done by the
page's own clock, which belongs to the test.
"""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.badnet import BadNetwork
from tests.browser.driver import Tab
from tests.browser.scripted import talk_on
from tests.browser.sound import Matches, speech

STAMPS = """() => {
    window.stamps = [[performance.now(), PersonaPlex.state.phase]];
    const { state } = PersonaPlex;
    const { on } = Object.getPrototypeOf(state); // once, however often it is watched
    state.on = (...what) => {
        const told = on.apply(state, what);
        const last = window.stamps.at(-1)[1];
        if (state.phase !== last) window.stamps.push([performance.now(), state.phase]);
        return told;
    };
}"""


@pytest.fixture(scope="module")
def network(scripted_server):
    with BadNetwork(scripted_server.port) as made:
        yield made


@pytest.fixture(scope="module")
def clocked_tab(browser, network):
    """One page for all, behind the network."""
    tab = Tab(browser, f"http://127.0.0.1:{network.port}/", clock=True)
    yield tab
    tab.close()


@pytest.fixture
def tab(clocked_tab, network, api):
    """A page whose call is on, by a server that keeps conversations."""
    tab, api.script = clocked_tab, talk_on
    tab.connect()
    tab.until(lambda: tab.page.evaluate("PersonaPlex.call.recorded") > 24_000)
    tab.page.evaluate(STAMPS)
    yield tab
    network.stall(0.0)
    tab.rest()  # the browser itself notes which sockets broke


def test_a_cut_of_3_s_is_shown_within_a_moment_and_forgotten(tab, api, network):
    """In the page's own time, which stands still while nobody looks: it may be no cut of 8 s."""
    page = tab.page
    page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 10)  # not yet past when it comes

    def shows(phase: str) -> bool:
        page.clock.run_for(250)
        return bool(page.locator(f".stage[data-phase={phase}]").count())

    tab.until(lambda: shows("live"))
    page.evaluate(STAMPS)
    network.stall(60.0)
    tab.until(lambda: shows("unstable"))
    expect(tab.headline).to_have_text("Unstable")
    expect(tab.sentence).to_contain_text("stutters")
    heard = page.evaluate("PersonaPlex.call.received")
    network.stall(0.0)
    tab.until(lambda: page.evaluate("PersonaPlex.call.received") > heard)
    page.clock.resume()
    tab.phase("live")
    page.wait_for_timeout(500)
    assert len(api.conversations) == 1
    (began, _), (shaky, _), (steady, _) = page.evaluate("stamps")
    assert steady > shaky > began
    assert shaky - began <= 3000  # ms


def test_a_cut_of_8_s_reconnects_and_the_same_conversation_goes_on(tab, api, network):
    tab.say("Before the cut.")
    network.stall(60.0)
    tab.phase("unstable")
    tab.page.clock.run_for(6000)
    tab.phase("reconnecting")
    expect(tab.sentence).to_contain_text("Your conversation is kept")
    network.stall(0.0)
    tab.page.clock.run_for(3000)
    tab.phase("live")
    resumed = api.conversations[-1].query
    assert resumed["resume"] == f"secret of {id(api.conversations[0])}"
    assert float(resumed["heard"]) > 1
    assert "text_prompt" not in resumed
    expect(tab.page.locator(".turn.page")).to_have_count(0)  # nothing of a new conversation
    tab.say("After the cut.")
    tab.until(lambda: api.conversations[-1].says == ["After the cut."])


def test_after_75_s_the_reason_is_the_true_one(tab, api, network):
    async def gone(conversation):
        if "resume" in conversation.query:
            await conversation.fail("gone: it has ended; connect without resume", 1008)

    network.stall(600.0)
    tab.phase("unstable")
    for _ in range(15):
        tab.page.clock.run_for(5000)
    tab.phase("reconnecting")
    expect(tab.headline).to_have_text("Reconnecting")
    api.script = gone
    network.stall(0.0)
    for _ in range(3):
        tab.page.clock.run_for(5000)
    tab.phase("ended")
    expect(tab.sentence).to_contain_text("the server no longer has this conversation")
    expect(tab.sentence).not_to_contain_text("resume")
    expect(tab.page.locator("#pp-start")).to_have_text("Talk again")


def test_a_lost_network_is_told_at_once_and_tried_again_when_it_is_back(tab, api):
    tab.context.set_offline(True)
    tab.phase("unstable")
    tab.page.clock.run_for(6000)
    tab.context.set_offline(False)
    tab.page.clock.run_for(1000)
    tab.phase("live")


def test_a_pause_lasts_over_a_lost_line(tab, api, network):
    tab.page.click("#pp-pause")
    tab.see("Paused")
    network.stall(60.0)
    tab.phase("unstable")
    tab.page.clock.run_for(6000)
    tab.phase("reconnecting")
    network.stall(0.0)
    tab.page.clock.run_for(3000)
    tab.see("Paused")
    tab.until(lambda: api.conversations[-1].controls == [2])


def test_the_end_can_be_had_while_the_line_is_dead(tab, network):
    network.stall(60.0)
    tab.phase("unstable")
    tab.page.clock.run_for(6000)
    tab.phase("reconnecting")
    tab.page.click("#pp-end")
    tab.phase("ended")
    expect(tab.sentence).to_contain_text("You ended it")


def test_on_a_thin_line_the_conversation_goes_on_in_opus(browser, network, api, open_tab):
    """400 kbit/s: plain PCM would fill it, and the delay would grow for ever."""
    api.script = talk_on
    tab = open_tab(browser, f"http://127.0.0.1:{network.port}/")
    tab.connect()
    assert api.conversations[0].query["format"] == "pcm16"
    network.narrow(300_000 / 8)
    tab.until(lambda: len(api.conversations) > 1, seconds=60)
    assert api.conversations[-1].query["format"] == "opus"
    assert re.match("secret of", api.conversations[-1].query["resume"])
    network.narrow(0)
    tab.phase("live")
    expect(tab.notice).to_contain_text("a tenth of the data")
    tab.errors.clear()


# -- with the server that `make run` serves --------------------------------------------------------


def drops(network):
    network.cut()


def falls_silent(network):
    network.stall(7.0)


@pytest.mark.parametrize("breaks", [drops, falls_silent])
def test_with_the_real_server_the_same_talk_goes_on(
    browser, server, backend, engine, open_tab, breaks
):
    with BadNetwork(server.port) as network:
        tab = open_tab(browser, f"http://127.0.0.1:{network.port}/?raw=1")
        others = set(engine.sessions)  # the end of a test before may still be on its way
        tab.connect()
        tab.until(lambda: tab.seconds() > 3)
        tab.page.evaluate(STAMPS)
        (session,), opened = set(engine.sessions) - others, len(backend.opened)
        breaks(network)
        tab.until(lambda: "reconnecting" in [phase for _, phase in tab.page.evaluate("stamps")])
        tab.phase("live")
        assert set(engine.sessions) - others == {session}
        assert len(backend.opened) == opened
        expect(tab.page.locator(".turn.page")).to_have_count(0)
        before, said, hears = len(backend.heard_in_newest()), speech(), Matches(0.9)
        tab.until(lambda: hears.count(backend.heard_in_newest()[before:], said) >= 2, every=0.5)
        expect(tab.headline).to_have_text(re.compile("^(Listening|Speaking|Both talking)$"))
        tab.until(lambda: tab.level("agent") > 20)
        tab.mute()
        tab.say("We are back.")
        words = tab.page.locator(".turn.given .said")
        expect(words).to_have_text("We are back.")
        tab.until(lambda: tab.page.evaluate("!PersonaPlex.state.facts.agent"))
        expect(tab.headline).to_have_text("Muted")
        tab.end()
        tab.until(lambda: session not in engine.sessions)
    tab.errors.clear()
