"""When the page connects again and when it does not, and what it says meanwhile.

The browser's clock is the test's own here: minutes of waiting take no time.
"""

import pytest
from playwright.sync_api import expect

from tests.browser.driver import Tab
from tests.browser.scripted import talk


def fails(sentence, code):
    async def script(conversation):
        await conversation.ready()
        await conversation.fail(sentence, code)

    return script


def fails_at_once(sentence, code):
    async def script(conversation):
        await conversation.fail(sentence, code)

    return script


async def drops(conversation):
    await conversation.ready()
    conversation.request.transport.abort()


@pytest.fixture(scope="module")
def clocked_tab(browser, scripted_server):
    """One page for all: after each test it is as it was when it was loaded."""
    tab = Tab(browser, scripted_server.url, clock=True)
    yield tab
    tab.close()


@pytest.fixture
def tab(clocked_tab, scripted_server):
    clocked_tab.rest()
    clocked_tab.page.clock.run_for(1500)  # what the end before has still to ask
    scripted_server.api.reset()
    yield clocked_tab
    assert clocked_tab.errors == []


@pytest.fixture
def api(tab, scripted_server):
    """The scripted socket, which has forgotten the test before when the page has."""
    return scripted_server.api


def test_an_unexpected_drop_is_repaired(tab, api):
    api.script = drops
    tab.connect("Reconnecting")
    api.script = talk
    tab.page.clock.run_for(1000)
    tab.phase("live")
    assert len(api.conversations) == 2
    expect(tab.page.locator(".turn.page")).to_contain_text("a new conversation follows")
    tab.errors.clear()  # the browser itself notes that the socket broke


def test_after_three_minutes_it_gives_up(tab, api):
    api.script = drops
    tab.connect("Reconnecting")
    expect(tab.sentence).to_contain_text("a new conversation begins")  # this server keeps none
    for _ in range(60):
        tab.page.clock.run_for(11_000)
        if tab.headline.inner_text() == "Ended":
            break
    expect(tab.sentence).to_contain_text("did not come back")
    expect(tab.page.locator(".turn.page")).to_have_count(1)  # and not one for each try
    count = len(api.conversations)
    assert 5 < count < 40
    tab.page.clock.run_for(300_000)
    assert len(api.conversations) == count
    tab.errors.clear()


@pytest.mark.parametrize(
    ("sentence", "code", "says"),
    [
        ("idle: nobody has spoken for 5 minutes", 1000, "Nobody spoke for a long time"),
        ("time limit: a conversation lasts at most 30 minutes", 1000, "reached its time limit"),
        ("closing: the server is being updated", 1001, "is being restarted"),
        ("internal error: 1a2b3c4d; see the log", 1011, "broke on the server: error 1a2b3c4d."),
    ],
)
def test_an_end_with_a_reason_is_an_end(tab, api, sentence, code, says):
    api.script = fails(sentence, code)
    tab.connect("Ended")
    expect(tab.sentence).to_contain_text(says)
    expect(tab.page.locator("#pp-start")).to_have_text("Talk again")
    tab.page.clock.run_for(300_000)
    assert len(api.conversations) == 1


def test_disconnect_is_an_end_and_closes_cleanly(tab, api):
    tab.connect()
    tab.page.clock.run_for(1000)  # a second press within 0.7 s is the same one
    tab.page.click("#pp-end")
    tab.see("Ended")
    tab.until(lambda: api.conversations[0].close_code is not None)
    assert api.conversations[0].close_code == 1000
    tab.page.clock.run_for(300_000)
    assert len(api.conversations) == 1


def test_a_closed_tab_closes_its_socket(browser, scripted_server, api, open_tab):
    tab = open_tab(browser, scripted_server.url)
    tab.connect()
    tab.page.goto("about:blank")
    tab.until(lambda: api.conversations[0].close_code is not None)
    assert api.conversations[0].close_code in (1000, 1001)


@pytest.mark.parametrize(
    ("sentence", "says"),
    [
        ("unauthorized: the token is wrong or missing", "needs an access token"),
        ("bad parameter: seed is 'x'; use a number", "The server does not take this seed."),
    ],
)
def test_a_refused_connection_says_why(tab, api, sentence, says):
    api.script = fails_at_once(sentence, 1008)
    tab.connect("Ended")
    expect(tab.sentence).to_contain_text(says)


def test_when_all_places_are_taken_it_says_so_and_waits_without_the_microphone(tab, api):
    api.script = fails_at_once("busy: all slots are taken; retry in 3 s", 1013)
    api.health |= {"slots": 4, "free": 0}
    tab.connect("Waiting for a place")
    expect(tab.sentence).to_contain_text("All 4 places are taken")
    assert (
        tab.page.evaluate("PersonaPlex.call.devices.stream") is None
    )  # the browser's own sign is off
    said = set()
    for _ in range(3):
        tab.page.clock.run_for(3500)
        said.add(tab.headline.inner_text())
    tab.until(lambda: len(api.conversations) >= 3)
    assert said == {"Waiting for a place"}  # and never "in 3 s, 2, 1"
    assert api.healths <= 2  # once when it began to wait, and after the end before it
    chimes = "AudioContext.prototype.createOscillator"
    tab.page.evaluate(
        f"() => {{ const make = {chimes}; window.chimes = 0;"
        f" {chimes} = function () {{ window.chimes += 1; return make.call(this); }} }}"
    )
    api.script = talk  # of a try that is on its way, too
    tab.page.clock.run_for(3500)
    tab.phase("live")
    assert tab.page.evaluate("window.chimes") == 2
    tab.until(lambda: tab.page.evaluate("PersonaPlex.state.facts.microphone"))
    assert sum(talk.close_code is None for talk in api.conversations) == 1


def test_waiting_for_a_turn_can_be_given_up(tab, api):
    api.script = fails_at_once("busy: all slots are taken; retry in 3 s", 1013)
    tab.connect("Waiting for a place")
    tab.page.clock.run_for(1000)  # a second press within 0.7 s is the same one
    tab.page.click("#pp-end")
    tab.see("Ended")
    tab.page.clock.run_for(60_000)
    assert len(api.conversations) == 1


def test_a_waking_server_shows_how_far_it_is(tab, api):
    async def script(conversation):
        await conversation.event(type="waking", phase="loading the model", percent=40.0)
        await conversation.told()
        await talk(conversation)

    api.script = script
    tab.connect("Waking up 40 %")
    expect(tab.sentence).to_contain_text("loading the model")
    api.conversations[0].resume()
    tab.phase("live")


def test_a_server_that_does_not_answer_is_being_woken_up(tab, api):
    async def script(conversation):
        await conversation.told()
        await talk(conversation)

    api.script = script
    tab.connect("Calling")
    tab.page.clock.run_for(5000)
    tab.see("Waking up")
    tab.until(lambda: api.conversations)  # by its own clock the page may wait before it asks
    api.conversations[0].resume()
    tab.phase("live")


def test_a_refusal_inside_the_conversation_is_shown_and_it_goes_on(tab, api):
    async def script(conversation):
        await conversation.ready()
        await conversation.send(5, b"say: 10 texts are waiting already; wait for one, or cancel")
        await conversation.echo()

    api.script = script
    tab.connect()
    expect(tab.notice).to_contain_text("Too many texts wait already")
    tab.phase("live")
