"""Asking, answers, the user's own words: the page shows what the events say, as text only."""

import asyncio

from playwright.sync_api import expect

HEARD = "PersonaPlex.call.received"  # samples of the agent
NASTY = "<img src=x onerror=\"document.title='broken in'\">"


async def answering(conversation):
    """Answers the first question it is asked, while the sound goes on."""
    await conversation.ready(transcript=True)
    conversation.takes = False  # what it is asked it says itself
    sound = asyncio.create_task(conversation.echo())
    await conversation.told()
    route = {"type": "route", "id": 3, "question": "How much is it?", "knowledge": True}
    await conversation.event(**route, state="asking", source="client")
    await conversation.told()
    await conversation.event(**route, state="answering", source="client")
    say = {"type": "say", "id": 8, "text": "Fourteen dollars a month, I think."}
    await conversation.event(**say, state="speaking")
    await conversation.send(2, b" Fourteen dollars")
    await conversation.event(**say, state="cancelled", spoken="Fourteen dollars")
    await conversation.event(**route, state="done", source="client")
    await sound


def test_a_question_is_checked_answered_and_cut_off_truthfully(tab, api):
    api.script = answering
    tab.connect()
    page = tab.page
    tab.send("ask", "How much is it?")
    asked = {"type": "ask", "text": "How much is it?"}
    tab.until(lambda: api.conversations[0].metadata == [asked])
    api.conversations[0].resume()
    question = page.locator(".turn.user")
    expect(question).to_contain_text("How much is it?")
    expect(question).to_contain_text("checking…")
    api.conversations[0].resume()
    answer = page.locator(".turn.answer")
    expect(answer.locator(".said")).to_have_text("Fourteen dollars")
    expect(answer.locator("s.cut")).to_have_text(" a month, I think.")
    expect(answer).to_contain_text("from the product facts")
    expect(question).not_to_contain_text("checking…")
    expect(page.locator(".hint")).to_be_hidden()  # this server has a recogniser


def test_looking_things_up_can_be_switched_off_before_and_during_a_call(tab, api):
    tab.page.get_by_text("Transgate assistant", exact=True).click()
    tab.tuning()
    box = tab.page.get_by_label("Look things up")
    expect(box).to_be_checked()
    box.uncheck()
    tab.connect()
    assert api.conversations[0].query["routing"] == "0"
    box.check()
    tab.until(lambda: api.conversations[0].metadata)
    assert api.conversations[0].metadata[0]["type"] == "set"
    assert api.conversations[0].metadata[0]["routing"] == 1
    tab.page.keyboard.press("Escape")


def test_a_card_chosen_in_a_call_changes_nothing_in_that_call(tab, api):
    tab.page.get_by_text("Transgate assistant", exact=True).click()
    tab.connect()
    tab.page.click(".folded")
    tab.page.get_by_text("Casual talk", exact=True).click()
    tab.tuning()
    expect(tab.page.get_by_label("Look things up")).to_be_checked()
    tab.sets("#pp-temp", "0.35")
    tab.until(lambda: api.conversations[0].metadata)
    assert api.conversations[0].metadata[0]["routing"] == 1
    assert "Transgate" in tab.page.evaluate("PersonaPlex.call.settings.persona")


def test_without_routing_there_is_nothing_to_ask_with(browser, server, open_tab):
    tab = open_tab(browser, server.url)
    tab.connect()
    expect(tab.page.locator("#pp-kind-say")).to_be_enabled()
    expect(tab.page.locator("#pp-kind-ask")).to_be_disabled()
    tab.tuning()
    expect(tab.page.locator("#pp-lookup")).to_be_hidden()


def test_whatever_is_said_is_text_and_never_markup(tab, api):
    async def script(conversation):
        await conversation.ready()
        await conversation.send(2, NASTY.encode())
        await conversation.event(type="say", id=1, state="queued", text=NASTY)
        await conversation.event(type="user_text", text=NASTY, start=0, end=1, final=False)
        await conversation.send(5, NASTY.encode())
        await conversation.echo()

    api.script = script
    tab.connect()
    expect(tab.page.locator(".turn.agent .said")).to_have_text(NASTY)
    expect(tab.page.locator(".turn.user .said")).to_have_text(NASTY)
    expect(tab.page.locator(".queued")).to_have_text(NASTY)
    expect(tab.notice).to_have_text("The server did not take that.")
    assert "broken in" not in tab.page.title()


def test_a_notice_inside_a_call_passes(browser, scripted_server, api, open_tab):
    async def script(conversation):
        await conversation.ready()
        await conversation.send(5, b"say: the text is empty; send 1 to 2000 characters (0x07)")
        await conversation.echo()

    api.script = script
    tab = open_tab(browser, scripted_server.url, clock=True)
    tab.connect()
    expect(tab.notice).to_have_text("The text is empty.")
    for _ in range(9):
        heard = tab.page.evaluate(HEARD)
        tab.page.clock.run_for(1000)
        tab.until(lambda heard=heard: tab.page.evaluate(HEARD) > heard)  # else the line is dead
    expect(tab.notice).to_be_hidden()


def test_what_is_changed_while_the_server_wakes_up_is_not_lost(tab, api):
    async def script(conversation):
        await conversation.told()
        await conversation.ready()
        await conversation.echo()

    api.script = script
    tab.tuning()
    tab.connect("Calling")
    tab.sets("#pp-temp", "0.45")
    tab.until(lambda: api.conversations)
    api.conversations[0].resume()
    tab.phase("live")
    tab.until(lambda: api.conversations[0].metadata)
    (change,) = api.conversations[0].metadata
    assert change["type"] == "set"
    assert change["text_temperature"] == 0.45
