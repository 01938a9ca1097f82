"""Ask in a real browser: the real page, server and router; the text model is a local stand-in."""

import socket

import pytest
from aiohttp import web
from playwright.sync_api import expect

from demo.app import build_app
from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.evals.standin import Reply, StandIn, by_heart
from engine.runtime import embedded as espeak
from engine.runtime.embedded import EmbeddedBackend
from tests.browser.serving import Served, warm
from tests.dialogue.talk import answers_for

# All of it comes at once, and it is long: a slow machine, too, interrupts it before its end.
LONG = (
    "Business costs $21 a month with 40 hours of audio, or $15 if you pay yearly. "
    "The hours are shared by all the people of a team, whoever needs them most in a month. "
    "It can be changed to another plan on any day, and what is left of the month is refunded."
)


def reply(question: str) -> Reply:
    return Reply(LONG, pace=0) if "business" in question.lower() else by_heart(question)


@pytest.fixture
def words_spoken(monkeypatch):
    """Every word that reaches the synthesiser, in order."""
    words: list[str] = []
    synthesize = espeak.synthesize

    def listening(text: str, *how: object):
        words.append(text)
        return synthesize(text, *how)

    monkeypatch.setattr(espeak, "synthesize", listening)
    return words


@pytest.fixture
def asking_server(chromium):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = answers_for(f"http://127.0.0.1:{port}")
    engine = warm(Service(lambda _progress: EmbeddedBackend(2), answers=answers))

    async def text_model(_app: web.Application):
        async with StandIn(reply, port):
            yield
            await answers.answerer.close()

    def make() -> web.Application:
        app = build_app(engine, ServerConfig())
        app.cleanup_ctx.append(text_model)
        return app

    with Served(make) as served:
        yield served
    engine.stop()


def ask(tab, question: str) -> None:
    tab.send("ask", question)


def test_an_asked_price_is_spoken_and_an_interrupted_answer_is_shown_as_such(
    browser, asking_server, open_tab, words_spoken, artifacts
):
    tab = open_tab(browser, f"{asking_server.url}?raw=1")
    tab.tuning()
    box = tab.page.get_by_label("Look things up")
    expect(box).not_to_be_checked()  # the first persona looks nothing up
    box.check()
    tab.page.keyboard.press("Escape")
    tab.connect()
    tab.mute()
    talking = "() => PersonaPlex.state.facts.user || PersonaPlex.state.facts.agent"
    tab.until(lambda: not tab.page.evaluate(talking))  # what was heard before is over
    ask(tab, "How much is the premium plan?")
    question = tab.page.locator(".turn.user").first
    expect(question).to_contain_text("How much is the premium plan?")
    answers = tab.page.locator(".turn.answer")  # beside them, on a slow machine: "One moment, …"
    first = answers.filter(has_text="$14")
    expect(first.locator(".said")).to_contain_text("$14", timeout=60_000)
    tab.until(lambda: "fourteen dollars" in " ".join(words_spoken))
    expect(first).to_contain_text("from the product facts")
    expect(first.locator(".said")).to_contain_text("$10 a month.", timeout=60_000)

    ask(tab, "And what does the business plan cost?")
    second = answers.filter(has_text="Business")
    expect(second.locator(".said")).to_contain_text("Business", timeout=60_000)
    tab.page.click("#pp-mic")  # the microphone is open again: the user speaks
    expect(second.locator("s.cut")).to_contain_text("refunded", timeout=60_000)
    tab.page.screenshot(path=artifacts / "asking.png", full_page=True)
    said = second.locator(".said").inner_text()
    assert "refunded" not in said
    assert "refunded" not in " ".join(words_spoken).split("Business")[-1]
