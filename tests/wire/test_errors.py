"""Every row of the error table (docs/api.md): the reason as 0x05 first, then the close code."""

import asyncio
import logging
import re
import socket

import aiohttp
import numpy as np
import pytest
import sphn

from engine.config import SAMPLE_RATE, VOICE_NAMES
from engine.dialogue import session
from engine.dialogue.director import Director
from engine.dialogue.session import Limits
from engine.errors import InternalError, TooFastError
from engine.runtime.embedded import EmbeddedBackend
from engine.wire import socket as conversation
from engine.wire.protocol import MAX_MESSAGE_BYTES, Kind
from tests.wire.ogg import EMPTY_PACKET_PAGE, page
from tests.wire.peer import FRAME, connected, eventually, talking


@pytest.fixture(scope="module")
def guarded(serve):
    return serve(slots=2, token="open sesame", allowed_origins=("https://friend.example",))


@pytest.fixture
def quick_watch(monkeypatch):
    """Limits are looked at every 50 ms instead of every second."""
    monkeypatch.setattr(session, "WATCH_SECONDS", 0.05)


# -- busy ------------------------------------------------------------------------------------------


async def test_a_client_beyond_the_last_slot_hears_busy_and_when_to_retry(serve):
    small = serve(slots=1)
    async with talking(small.url), connected(small.url) as second:
        text, code = await second.end()
    assert re.match(r"busy: .*retry in \d+ s", text)
    assert code == 1013


async def test_a_slot_is_free_again_after_its_client_hung_up(serve):
    small = serve(slots=1)
    for _ in range(3):
        async with talking(small.url) as peer:
            assert await peer.is_alive()
        await eventually(lambda: small.engine.free == 1)


# -- unauthorized ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ({}, {}),
        ({"token": "wrong"}, {}),
        ({"token": "öpen sesame"}, {}),
        ({}, {"Authorization": "Bearer wrong"}),
        ({}, {"Authorization": "Basic open sesame"}),
        ({}, {"Cookie": "personaplex_token=wrong"}),
        ({}, {"Cookie": 'personaplex_token="open sesame"'}),
        (
            {},
            {"Cookie": 'personaplex_token="open sesame"', "Origin": "https://evil.example"},
        ),
    ],
)
async def test_without_the_right_token_the_client_is_unauthorized(guarded, query, headers):
    async with connected(guarded.url, headers=headers, **query) as peer:
        text, code = await peer.end()
    assert text.startswith("unauthorized: ")
    assert "token" in text
    assert code == 1008


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ({"token": "open sesame"}, {"Origin": "https://anywhere.example"}),
        ({}, {"Authorization": "Bearer open sesame"}),
        (
            {},
            {"Cookie": 'personaplex_token="open sesame"', "Origin": "https://friend.example"},
        ),
    ],
)
async def test_the_token_counts_in_query_bearer_and_cookie(guarded, query, headers):
    async with connected(guarded.url, headers=headers, **query) as peer:
        assert await peer.until(Kind.HANDSHAKE) == b""


async def test_the_cookie_counts_from_the_servers_own_page(guarded):
    headers = {"Cookie": 'personaplex_token="open sesame"', "Origin": guarded.url}
    async with connected(guarded.url, headers=headers) as peer:
        assert await peer.until(Kind.HANDSHAKE) == b""


# -- bad parameter ---------------------------------------------------------------------------------

BAD_PARAMETERS = [
    *[(name, v) for name in ("text_temperature", "audio_temperature") for v in ("-0.1", "2.01")],
    *[(name, v) for name in ("text_topk", "audio_topk") for v in ("0", "-3", "2.5", "1e99")],
    *[("pad_mult", v) for v in ("-4.1", "4.1")],
    *[("repetition_penalty", v) for v in ("0.49", "2.1")],
    *[("repetition_penalty_context", v) for v in ("0", "4097", "1.5")],
    *[(name, v) for name in ("seed", "text_seed", "audio_seed") for v in ("-2", "0.5", 2**63)],
    *[("format", v) for v in ("mp3", "", "PCM16")],
    *[(name, v) for name in ("events", "routing") for v in ("2", "yes", "", "-1")],
    *[("voice_prompt", v) for v in ("Bob", "../../etc/passwd", "/voices/NATF2.pt", "NATF2.mp3")],
    ("text_prompt", "x" * 4001),
]
NUMBERS = ("text_temperature", "audio_temperature", "text_topk", "audio_topk", "pad_mult")
NUMBERS += ("repetition_penalty", "repetition_penalty_context", "seed", "text_seed", "audio_seed")
NOT_NUMBERS = ("", "warm", "nan", "inf", "-inf", "0x10", "1,5", "٣٣")


async def ending_of(server, **query):
    async with connected(server.url, **query) as peer:
        return await peer.end()


@pytest.mark.parametrize(("name", "value"), BAD_PARAMETERS)
async def test_a_parameter_out_of_range_is_named_with_its_value(server, name, value):
    text, code = await ending_of(server, **{name: value})
    assert text.startswith("bad parameter: ")
    assert name in text
    assert (str(value)[:10] in text) == (name != "text_prompt")  # a persona is not repeated
    assert "use " in text
    assert code == 1008


@pytest.mark.parametrize("name", NUMBERS)
async def test_what_is_not_a_number_is_refused_for_every_numeric_parameter(server, name):
    for value in (v for v in NOT_NUMBERS if v != "٣٣"):
        text, code = await ending_of(server, **{name: value})
        assert text.startswith(f"bad parameter: {name} is "), (value, text)
        assert code == 1008


async def test_an_unknown_voice_is_answered_with_all_names(server):
    text, _code = await ending_of(server, voice_prompt="Bob")
    assert all(name in text for name in VOICE_NAMES)


@pytest.mark.parametrize("fill", ["漢", "é", "😀", "x漢", "xx漢"])
async def test_a_long_reason_is_still_valid_in_the_close_frame(server, fill):
    text, code = await ending_of(server, voice_prompt=fill * 40)
    assert text.startswith("bad parameter: voice_prompt")
    assert code == 1008


# -- bad audio -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"RIFF" + bytes(2000),
        bytes(range(256)) * 20,
        b"\xff" * 5000,
        b"OggS" + b"\xff" * 5000,
        b"\x1a\x45\xdf\xa3 webm is not ogg " * 100,
    ],
)
async def test_audio_that_is_not_ogg_opus_is_bad_audio(server, garbage):
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        await peer.send(Kind.AUDIO, garbage)
        text, code = await peer.end()
    assert text.startswith("bad audio: ")
    assert "pcm16" in text  # and how to go on
    assert code == 1003


async def test_garbage_after_good_opus_is_bad_audio(server):
    good = sphn.OpusStreamWriter(SAMPLE_RATE).append_pcm(np.zeros(9600, np.float32))
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        await peer.send(Kind.AUDIO, good)
        await peer.send(Kind.AUDIO, b"garbage " * 500)
        text, code = await peer.end()
    assert (text[:11], code) == ("bad audio: ", 1003)


async def test_half_a_sample_of_pcm16_is_bad_audio(server):
    async with talking(server.url) as peer:
        await peer.send(Kind.AUDIO, FRAME + b"\0")
        text, code = await peer.end()
    assert text.startswith("bad audio: 3841 bytes")
    assert code == 1003


# -- too fast --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.AUDIO, Kind.PING, Kind.SAY, 99])
async def test_a_message_over_256_kib_is_too_fast(server, kind):
    async with talking(server.url) as peer:
        await peer.send(kind, bytes(MAX_MESSAGE_BYTES))
        text, code = await peer.end()
    assert text.startswith("too fast: ")
    assert code == 1008


async def test_a_message_of_exactly_256_kib_is_taken(server):
    async with talking(server.url) as peer:
        await peer.send(Kind.PING, bytes(MAX_MESSAGE_BYTES - 1))
        assert len(await peer.until(Kind.PING)) == MAX_MESSAGE_BYTES - 1


async def test_more_than_30_s_ahead_of_real_time_is_too_fast(server):
    async with talking(server.url) as peer:
        for _ in range(34):
            await peer.send(Kind.AUDIO, bytes(2 * SAMPLE_RATE))
        text, code = await peer.end()
    assert text.startswith("too fast: ")
    assert "30" in text
    assert code == 1008


async def test_a_burst_of_20_s_is_taken(server):
    async with talking(server.url) as peer:
        for _ in range(20):
            await peer.send(Kind.AUDIO, bytes(2 * SAMPLE_RATE))
        assert await peer.is_alive()


async def test_minutes_of_opus_silence_in_a_small_message_are_too_fast(server):
    header, packet = (
        sphn.OpusStreamWriter(SAMPLE_RATE).append_pcm(np.zeros(960, np.float32)),
        b"\x78",
    )
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        await peer.send(Kind.AUDIO, header + page([packet] * 255, 0, 0, 9) * 40)
        text, code = await peer.end()
    assert text.startswith("too fast: ")
    assert code == 1008


async def test_empty_opus_packets_cannot_become_minutes_of_silence(server):
    header = sphn.OpusStreamWriter(SAMPLE_RATE).append_pcm(np.zeros(960, np.float32))
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        await peer.send(Kind.AUDIO, header + EMPTY_PACKET_PAGE * 4000)
        assert await peer.is_alive()


# -- idle and time limit ---------------------------------------------------------------------------


async def test_a_client_that_sends_nothing_is_idle(serve, quick_watch):
    short = serve(limits=Limits(unheard_s=0.3))
    async with connected(short.url) as peer:  # on a slow machine it ends before its handshake
        text, code = await peer.end()
    assert text.startswith("idle: nothing was received")
    assert code == 1000


async def test_pings_keep_a_silent_client_alive(serve, quick_watch):
    short = serve(limits=Limits(unheard_s=3.0))
    async with talking(short.url) as peer:
        for _ in range(16):
            await asyncio.sleep(0.2)
            assert await peer.is_alive()


async def test_who_waits_for_a_text_to_be_said_is_not_idle(serve, quick_watch):
    short = serve(limits=Limits(unheard_s=2.0))  # to say it takes longer than half of this
    async with talking(short.url, events=1) as peer:
        await peer.say("Good evening.")
        assert (await peer.event("say", state="done"))["spoken"] == "Good evening."
        text, _code = await peer.end()
    assert text.startswith("idle: ")


async def test_a_conversation_in_which_nobody_speaks_is_idle(serve, quick_watch):
    short = serve(limits=Limits(silence_s=0.4))
    async with connected(short.url) as peer:
        pings = asyncio.create_task(keep_pinging(peer))
        text, code = await peer.end()
        pings.cancel()
    assert text.startswith("idle: nobody has spoken")
    assert code == 1000


async def keep_pinging(peer):
    while True:
        await peer.send(Kind.PING)
        await asyncio.sleep(0.05)


async def test_the_session_limit_ends_a_lively_conversation(serve, quick_watch):
    short = serve(limits=Limits(session_s=300.0))
    async with talking(short.url, events=1) as peer:
        await peer.say("This will not be heard to its end, because time is up.")
        (lively,) = short.engine.sessions
        lively._started -= 300.0
        text, code = await peer.end()
    assert text.startswith("time limit: ")
    assert code == 1000
    assert [event["reason"] for event in peer.events if event["type"] == "closing"]


# -- closing ---------------------------------------------------------------------------------------


async def test_a_server_that_stops_says_closing_with_warning(serve):
    stopping = serve(slots=2)
    async with talking(stopping.url, events=1) as peer:
        draining = asyncio.create_task(asyncio.to_thread(drain, stopping, 0.3))
        assert (await peer.event("closing"))["seconds_left"] == 0.3
        async with connected(stopping.url) as late:
            late_text, late_code = await late.end()
        text, code = await peer.end()
        await draining
    assert (text[:9], code) == ("closing: ", 1001)
    assert (late_text[:9], late_code) == ("closing: ", 1001)


def drain(server, grace_s):
    server.run(server.engine.drain(grace_s))


async def test_a_client_that_waits_for_the_model_hears_closing_too(serve, monkeypatch):
    monkeypatch.setattr(conversation, "WAKING_SECONDS", 0.05)
    never = asyncio.Event()
    stopping = serve(load=lambda _progress: asyncio.run(never.wait()), wait=False)
    async with connected(stopping.url, events=1) as peer:
        await peer.event("waking")
        draining = asyncio.create_task(asyncio.to_thread(drain, stopping, 0.1))
        text, code = await peer.end()
        await draining
    assert (text[:9], code) == ("closing: ", 1001)


# -- internal error --------------------------------------------------------------------------------


def error_id(text):
    return re.match(r"internal error: .*?\b([0-9a-f]{8})\b", text)[1]


async def test_a_fault_in_the_director_ends_its_own_conversation_only(server, monkeypatch, caplog):
    async with talking(server.url) as neighbour, talking(server.url) as peer:
        monkeypatch.setattr(Director, "step", fail)
        await peer.send(Kind.AUDIO, FRAME)
        text, code = await peer.end()
        monkeypatch.undo()
        await neighbour.send(Kind.AUDIO, FRAME)
        assert await neighbour.until(Kind.AUDIO)
    assert code == 1011
    assert error_id(text) in caplog.text
    assert "boom" not in text


def fail(*_args):
    raise RuntimeError("boom")


class FailingSocket(conversation.LiveSocket):
    """Its tasks raise these errors, all in one turn of the event loop."""

    def __init__(self, *errors):
        self.errors, self.done = errors, []

    async def _start_tasks(self, group):
        async def end(error):
            raise error

        for error in self.errors:
            group.create_task(end(error))

    def _note(self, error):
        self.done.append(type(error))

    def _let_go(self):
        self.done.append("let go")


@pytest.mark.parametrize(
    ("errors", "ending"),
    [
        ([TooFastError()], TooFastError),
        ([ConnectionError(), TooFastError()], TooFastError),
        ([TooFastError(), RuntimeError("boom")], InternalError),
        ([ExceptionGroup("of a part", [TooFastError()]), ConnectionError()], TooFastError),
    ],
)
async def test_one_error_leaves_a_conversation_however_many_ended_it(errors, ending):
    # Python before 3.11.4 made a group of what is raised while groups are handled, which nobody
    # told the client; two errors at once are one on any Python.
    failing = FailingSocket(*errors)
    with pytest.raises(ending):
        await failing.run()
    assert failing.done[-2:] == [ending, "let go"]


async def test_who_leaves_ends_no_conversation_with_an_error():
    failing = FailingSocket(ConnectionError(), conversation.ClientLeftError())
    await failing.run()
    assert failing.done == ["let go"]


async def test_a_fault_while_a_text_is_prepared_ends_its_own_conversation_only(
    server, monkeypatch, caplog
):
    async with talking(server.url) as neighbour, talking(server.url) as peer:
        monkeypatch.setattr("engine.dialogue.session.prepare_command", fail)
        await peer.say("hello")
        text, code = await peer.end()
        monkeypatch.undo()
        await neighbour.send(Kind.AUDIO, FRAME)
        assert await neighbour.until(Kind.AUDIO)
    assert code == 1011
    assert error_id(text) in caplog.text


async def test_a_fault_in_the_socket_code_is_an_internal_error(server, monkeypatch, caplog):
    async with talking(server.url) as peer:
        monkeypatch.setattr(conversation.ChatSocket, "_on_say", fail)
        await peer.say("hello")
        text, code = await peer.end()
    assert code == 1011
    assert error_id(text) in caplog.text


async def test_a_backend_that_dies_is_told_to_everybody_with_an_id(serve, caplog):
    class Dying(EmbeddedBackend):
        def listen(self, pcm, active):
            if pcm.any():
                raise RuntimeError("the device is gone")
            return super().listen(pcm, active)

    dying = serve(load=lambda _progress: Dying(2))
    async with talking(dying.url) as first, talking(dying.url) as second:
        await first.send(Kind.AUDIO, b"\x00\x40" * 1920)
        endings = [await first.end(), await second.end()]
    for text, code in endings:
        assert code == 1011
        assert error_id(text) in caplog.text
        assert "device" not in text


# -- clients that behave badly ---------------------------------------------------------------------


async def test_the_slot_of_a_client_that_vanishes_is_free_within_two_seconds(serve):
    small = serve(slots=1)
    async with talking(small.url) as peer:
        raw = peer.ws.get_extra_info("socket")
        # RST instead of a close frame, as when a laptop is shut
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.ws._response.connection.transport.abort()
        await eventually(lambda: small.engine.free == 1)


async def test_a_client_that_stops_reading_is_cut_off_and_its_slot_freed(
    serve, monkeypatch, quick_watch
):
    monkeypatch.setattr(session, "MAX_UNREAD_SECONDS", 0.4)
    small = serve(slots=1)
    async with talking(small.url) as peer:
        transport = peer.ws._response.connection.transport
        transport.pause_reading()
        flood = asyncio.create_task(flood_pings(peer))
        await peer.say("Somebody who does not listen cannot hear this long sentence.")
        await eventually(lambda: small.engine.free == 1)
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
        transport.abort()
        await asyncio.sleep(0.01)
    async with talking(small.url) as after:
        assert await after.is_alive()


async def flood_pings(peer):
    """Fill every buffer between the server and a client that does not read."""
    while True:
        await peer.send(Kind.PING, bytes(200_000))


async def test_a_plain_http_request_to_the_socket_says_what_to_do(server):
    async with aiohttp.ClientSession() as http, http.get(server.url + "/api") as answer:
        assert answer.status == 426
        assert "WebSocket" in await answer.text()


async def test_a_conversation_logs_its_opening_and_end_and_never_its_words(server, caplog):
    caplog.set_level(logging.INFO)
    async with talking(server.url, text_prompt="You are Zebulon.") as peer:
        await peer.say("xylophone")
        await peer.until(Kind.TEXT)
    await eventually(lambda: "closed" in caplog.text)
    logged = "".join(r.getMessage() for r in caplog.records if r.name.startswith("engine"))
    assert "opened" in logged
    assert "xylophone" not in logged
    assert "Zebulon" not in logged


@pytest.mark.parametrize("ending", ["garbage", "half a sample", "too fast", "vanished"])
async def test_a_bad_client_leaves_no_more_than_its_two_lines_in_the_log(server, caplog, ending):
    caplog.set_level(logging.INFO)
    async with talking(server.url, format="opus" if ending == "garbage" else "pcm16") as peer:
        match ending:
            case "garbage":
                await peer.send(Kind.AUDIO, b"garbage " * 500)
            case "half a sample":
                await peer.send(Kind.AUDIO, b"x")
            case "too fast":
                await peer.send(Kind.PING, bytes(300_000))
            case "vanished":
                peer.ws._response.connection.transport.abort()
        if ending != "vanished":
            await peer.end()
        await eventually(lambda: "closed" in caplog.text)
    lines = [r for r in caplog.records if r.name.startswith("engine")]
    assert max(r.levelno for r in lines) == logging.INFO
    assert all("Traceback" not in r.getMessage() for r in lines)
    assert 2 <= len(lines) <= 3
