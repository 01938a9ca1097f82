"""Plain HTTP beside the socket, and what a client sees while the model wakes up."""

import asyncio
import threading

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.config import FRAME_SECONDS, VOICE_NAMES
from engine.runtime.embedded import EmbeddedBackend
from engine.runtime.metrics import Metrics, Stage
from engine.wire import socket as conversation
from engine.wire.protocol import Kind
from tests.wire.peer import FRAME, connected, eventually, talking


async def get(url, **headers):
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
        is_json = answer.content_type == "application/json"
        return answer, await (answer.json() if is_json else answer.text())


async def test_healthz_counts_the_free_slots(serve):
    small = serve(slots=3)
    async with talking(small.url):
        answer, body = await get(small.url + "/healthz")
    assert answer.status == 200
    assert body == {
        "status": "ok",
        "model": "embedded",
        "slots": 3,
        "free": 2,
        "limited_by": "asked",
        "hears": "energy only",
    }


async def test_voices_are_the_18_names_of_the_checkpoint(server):
    answer, body = await get(server.url + "/voices")
    assert answer.status == 200
    assert body == list(VOICE_NAMES)
    assert len(body) == 18


async def test_metrics_are_prometheus_text(server):
    answer, body = await get(server.url + "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    for name in ("ticks_total", "frames_total", "late_frames_total", "conversations "):
        assert f"personaplex_{name}" in body


async def test_metrics_are_written_beside_the_event_loop(server, monkeypatch):
    text, beside = Metrics.text, []

    def note(metrics: Metrics) -> bytes:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # there is none in this thread
            beside.append(True)
        return text(metrics)

    monkeypatch.setattr(Metrics, "text", note)
    await get(server.url + "/metrics")
    assert beside == [True]


async def test_metrics_tell_how_long_each_stage_of_the_frames_of_a_call_took(serve):
    server = serve(slots=1)
    async with talking(server.url) as peer:
        for _ in range(5):
            await peer.send(Kind.AUDIO, FRAME)
            await peer.until(Kind.AUDIO)
            await asyncio.sleep(FRAME_SECONDS)  # not ahead of its clock, or it is answered early
        _answer, body = await get(server.url + "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(body)}
    seconds = {
        (sample.labels["stage"], sample.labels["quantile"]): sample.value
        for sample in families["personaplex_frame_seconds"].samples
    }
    quantiles = ("0.5", "0.95", "0.99", "1")
    assert seconds.keys() == {(stage, quantile) for stage in Stage for quantile in quantiles}
    assert all(0 <= value < 20 for value in seconds.values())
    parts = (Stage.QUEUE, Stage.LISTEN, Stage.CHOOSE, Stage.SPEAK, Stage.SEND)
    assert max(seconds[part, "1"] for part in parts) <= seconds["answer", "1"] + 1e-6
    [slots] = [
        s for s in families["personaplex_active_slots"].samples if s.labels["quantile"] == "1"
    ]
    assert slots.value == 1


@pytest.mark.parametrize("path", ["/healthz", "/voices"])
async def test_every_origin_may_read_by_default(server, path):
    answer, _body = await get(server.url + path, Origin="https://anywhere.example")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("path", ["/healthz", "/voices"])
async def test_with_a_list_only_its_origins_may_read(serve, path):
    listed = serve(allowed_origins=("https://a.example", "https://b.example"))
    answer, _body = await get(listed.url + path, Origin="https://b.example")
    assert answer.headers["Access-Control-Allow-Origin"] == "https://b.example"
    assert "Origin" in answer.headers["Vary"]
    for headers in ({"Origin": "https://evil.example"}, {}):
        answer, _body = await get(listed.url + path, **headers)
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_another_origin_talks_with_a_token(serve):
    guarded = serve(token="t", allowed_origins=("https://a.example",))
    elsewhere = {"Origin": "https://elsewhere.example"}
    async with connected(guarded.url, headers=elsewhere, token="t") as peer:
        assert await peer.until(Kind.HANDSHAKE) == b""


# -- waking up -------------------------------------------------------------------------------------


@pytest.fixture
def waking(serve, monkeypatch):
    """(a server whose model loads until the event is set, the event)."""
    monkeypatch.setattr(conversation, "WAKING_SECONDS", 0.05)
    loaded = threading.Event()

    def load(progress):
        progress("weights", 41.6666)
        assert loaded.wait(60)
        return EmbeddedBackend(2)

    server = serve(load=load, wait=False)
    yield server, loaded
    loaded.set()


async def test_healthz_is_503_with_the_phase_while_the_model_loads(waking):
    server, loaded = waking
    answer, body = await get(server.url + "/healthz", Origin="https://x.example")
    assert answer.status == 503
    assert body == {"status": "waking", "phase": "weights", "percent": 41.7}
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    loaded.set()
    server.engine.wait(60)
    answer, body = await get(server.url + "/healthz")
    assert (answer.status, body["status"]) == (200, "ok")


async def test_a_client_hears_how_far_the_model_is_and_then_the_handshake(waking):
    server, loaded = waking
    async with connected(server.url, events=1) as peer:
        event = await peer.event("waking")
        assert (event["phase"], event["percent"]) == ("weights", 41.7)
        await peer.event("waking")
        await peer.say("Finally.")
        loaded.set()
        await peer.event("ready")
        await peer.until(Kind.HANDSHAKE)
        await peer.until(Kind.TEXT)
    assert peer.text == " Finally."


async def test_a_client_without_events_hears_nothing_before_the_handshake(waking):
    server, loaded = waking
    async with connected(server.url) as peer:
        assert await peer.is_alive()
        loaded.set()
        await peer.until(Kind.HANDSHAKE)
    assert [kind for kind, _ in peer.heard] == [Kind.PING, Kind.HANDSHAKE]


async def test_audio_sent_while_the_model_loads_does_not_count_as_too_fast(waking):
    server, loaded = waking
    async with connected(server.url, format="pcm16") as peer:
        for _ in range(29):
            await peer.send(Kind.AUDIO, bytes(48_000))
        assert await peer.is_alive()
        loaded.set()
        await peer.until(Kind.HANDSHAKE)
        await peer.send(Kind.AUDIO, bytes(96_000))
        assert await peer.is_alive()


async def test_a_voice_is_checked_as_soon_as_the_model_is_there(waking):
    server, loaded = waking
    async with connected(server.url, voice_prompt="Bob") as peer:
        loaded.set()
        text, code = await peer.end()
    assert text.startswith("bad parameter: voice_prompt is 'Bob'")
    assert code == 1008


async def test_a_client_that_leaves_while_the_model_loads_leaves_nothing_behind(waking):
    server, _loaded = waking
    async with connected(server.url, events=1) as peer:
        await peer.event("waking")
        assert len(server.engine.sessions) == 1
    await eventually(lambda: not server.engine.sessions)
