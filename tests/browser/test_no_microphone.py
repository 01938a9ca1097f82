"""Without a microphone the page says why in one sentence, connects all the same, and can speak."""

import pytest
from playwright.sync_api import expect

TEXT = "Nobody spoke, and yet I say this."


def denied(server):
    return "shy_browser", server.url, {}, "The microphone is blocked: allow it"


def absent(server):
    return (
        "bare_browser",
        server.url,
        {"permissions": ["microphone"]},
        "No microphone found: plug one in",
    )


def insecure(server):
    url = f"http://insecure.test:{server.port}/"
    return (
        "bare_browser",
        url,
        {},
        "The microphone works only over https: open this page with https://",
    )


@pytest.mark.parametrize("case", [denied, absent, insecure], ids=lambda case: case.__name__)
def test_say_is_heard_without_a_microphone(request, server, backend, open_tab, case):
    browser, url, options, sentence = case(server)
    tab = open_tab(request.getfixturevalue(browser), url, **options)
    tab.connect("No microphone")
    expect(tab.notice).to_contain_text(sentence)
    tab.watch_level("agent")
    tab.say(TEXT)
    given = tab.page.locator(".turn.agent.given .said")
    expect(given).to_have_text(TEXT, timeout=30_000)
    tab.until(lambda: tab.loudest > 20)
    assert not backend.heard_in_newest().any()  # silence kept the clock going
    tab.end()
