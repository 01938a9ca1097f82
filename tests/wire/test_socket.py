"""What travels inside a conversation: every kind, every control byte, every 0x04 (docs/api.md)."""

import asyncio
import json
import random
import time

import numpy as np
import pytest
import sphn

from engine.wire.protocol import VERSION, Kind
from tests.sound import assert_says, loud_seconds
from tests.wire.peer import FRAME, connected, eventually, talking

START, END_TURN, PAUSE, RESTART = (bytes([n]) for n in range(4))


async def frames(peer, count, payload=FRAME):
    """Send user frames; the agent frames that answer them."""
    before = len(peer.of(Kind.AUDIO))
    for _ in range(count):
        await peer.send(Kind.AUDIO, payload)
    while len(peer.of(Kind.AUDIO)) < before + count:
        await peer.until(Kind.AUDIO)
    return peer.of(Kind.AUDIO)[before:]


# -- saying ----------------------------------------------------------------------------------------


async def test_the_browser_console_example_is_heard_in_real_time_and_stays_usable(server):
    async with connected(server.url) as peer:  # no audio, opus, nothing but one 0x07
        started = time.monotonic()  # before the server can start, however late we read
        await peer.say("Hello from Modal!")
        assert await peer.next() == (Kind.HANDSHAKE, b"")
        await peer.until(Kind.TEXT)
        assert peer.text == " Hello"
        await peer.until(Kind.TEXT, lambda text: text == b" Modal!")
        assert peer.text == " Hello from Modal!"
        pages = sum(data.count(b"OggS") for data in peer.of(Kind.AUDIO)) - 2  # 40 ms each
        assert pages * 0.04 <= time.monotonic() - started + 0.2, "ahead of real time"
        assert {kind for kind, _ in peer.heard} == {Kind.HANDSHAKE, Kind.TEXT, Kind.AUDIO}
        await peer.say("Again.")
        await peer.until(Kind.TEXT, lambda text: text == b" Again.")
        assert await peer.is_alive()


async def test_a_said_sentence_is_the_synthesisers_words_in_order(server):
    async with talking(server.url, events=1, voice_prompt="NATM1.pt") as peer:
        await peer.say("Seven umbrellas")
        done = await peer.event("say", state="done")
    assert done["spoken"] == done["text"] == "Seven umbrellas"
    assert_says(peer.pcm, ["Seven", "umbrellas"], voice="NATM1")


async def test_in_opus_a_said_sentence_has_the_same_words_and_length(server):
    async with connected(server.url, events=1, format="opus") as peer:
        await peer.say("Seven umbrellas")
        await peer.event("say", state="done")
    reader = sphn.OpusStreamReader(24_000)
    pcm = np.concatenate([reader.append_bytes(data) for data in peer.of(Kind.AUDIO)])
    assert_says(pcm, ["Seven", "umbrellas"], at_least=0.8)
    assert 0.7 < loud_seconds(pcm) < 2.0
    pages = len(peer.of(Kind.AUDIO)) - 2  # each a message of its own; two are the stream's heads
    assert len(pcm) == 960 * pages


async def test_text_leaves_just_before_the_audio_of_its_word(server):
    async with talking(server.url, events=1) as peer:
        await peer.say("umbrella")
        await peer.event("say", state="done")
    kinds = [kind for kind, _ in peer.heard]
    before = peer.heard[: kinds.index(Kind.TEXT)]
    silent = b"".join(data for kind, data in before if kind is Kind.AUDIO)
    assert not np.frombuffer(silent, "<i2").any(), "the word sounds before its text"
    assert_says(peer.pcm, ["umbrella"])


async def test_a_text_said_is_bracketed_by_its_events(server):
    async with talking(server.url, events=1) as peer:
        await peer.tell(type="say", text="Yes.")
        await peer.event("say", state="done")
    trail = [
        json.loads(data)["state"] if kind is Kind.METADATA else data.decode()
        for kind, data in peer.heard
        if kind is Kind.TEXT or (kind is Kind.METADATA and json.loads(data)["type"] == "say")
    ]
    assert trail == ["queued", "speaking", " Yes.", "done"]
    ids = {event["id"] for event in peer.events if event["type"] == "say"}
    assert len(ids) == 1


async def test_without_events_a_client_is_sent_no_metadata(server):
    async with talking(server.url) as peer:
        await peer.tell(type="say", text="Yes.")
        await peer.until(Kind.TEXT)
        await frames(peer, 15)
    assert not peer.of(Kind.METADATA)


async def test_a_full_queue_refuses_the_eleventh_text_and_goes_on(server):
    async with talking(server.url, events=1) as peer:
        await peer.send(Kind.CONTROL, PAUSE)
        for number in range(11):
            await peer.say(f"text {number}")
        refusal = await peer.until(Kind.ERROR)
        assert b"10 texts are waiting" in refusal
        assert sum(event.get("state") == "queued" for event in peer.events) == 10
        assert await peer.is_alive()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty"),
        (b"  \n ", "empty"),
        (b"x" * 2001, "2001 characters"),
        ("漢".encode() * 2001, "2001 characters"),
        (b"caf\xe9 au lait", "byte 3 is not UTF-8"),
        ("🎉🎉".encode(), "nothing in this text can be spoken"),
        (b"!!!", "nothing in this text can be spoken"),
    ],
)
async def test_a_text_that_cannot_be_said_is_refused_and_the_call_goes_on(server, payload, reason):
    async with talking(server.url) as peer:
        await peer.send(Kind.SAY, payload)
        assert reason in (await peer.until(Kind.ERROR)).decode()
        assert await peer.is_alive()


async def test_2000_characters_are_taken(server):
    async with talking(server.url, events=1) as peer:
        await peer.say("漢 " * 1000)
        await peer.event("say", state="queued")
        assert await peer.is_alive()
        assert not peer.errors


async def test_replace_cancels_what_is_being_said_and_says_the_new_text(server):
    async with talking(server.url, events=1) as peer:
        await peer.say("One two three four five six seven eight nine ten")
        await peer.say("this waits in vain")
        await peer.until(Kind.TEXT)
        await peer.tell(type="say", text="Stop.", mode="replace")
        done = await peer.event("say", state="done")
    assert done["text"] == "Stop."
    cancelled = [event for event in peer.events if event.get("state") == "cancelled"]
    assert {event["id"] for event in cancelled} == {1, 2}
    assert peer.text.endswith(" Stop.")
    assert "ten" not in peer.text
    assert "vain" not in peer.text


async def test_cancel_stops_after_the_current_word_and_tells_what_was_spoken(server):
    async with talking(server.url, events=1) as peer:
        await peer.say("Umbrellas and many more words that nobody wants to hear")
        await peer.until(Kind.TEXT)
        await peer.tell(type="cancel")
        cancelled = await peer.event("say", state="cancelled")
        for _ in range(10):  # the word rings out
            await peer.until(Kind.AUDIO)
    assert cancelled["spoken"] == peer.text.strip()
    assert "hear" not in peer.text
    assert_says(peer.pcm, ["Umbrellas"])


# -- the other 0x04 --------------------------------------------------------------------------------


async def test_ready_tells_everything_a_client_needs_before_the_handshake(server):
    async with talking(server.url, events=1, voice_prompt="VARM3") as peer:
        pass
    assert [kind for kind, _ in peer.heard] == [Kind.METADATA, Kind.HANDSHAKE]
    ready = peer.events[0]
    assert ready.pop("session")
    assert ready.pop("resume")
    assert ready == {
        "type": "ready",
        "t": 0,
        "protocol": VERSION,
        "model": "embedded",
        "voice": "VARM3",
        "sample_rate": 24000,
        "format": "pcm16",
        "transcript": False,
    }


async def test_stats_come_about_once_a_second_of_audio(server):
    async with talking(server.url, events=1) as peer:
        await frames(peer, 27)
    stats, *_ = (event for event in peer.events if event["type"] == "stats")
    assert set(stats) == {
        *("type", "t", "step_ms_p50", "step_ms_p99", "queue_ms", "late_frames", "context_used")
    }
    assert stats["t"] == 1.04
    assert 0 <= stats["context_used"] <= 1


async def test_set_changes_the_sampling_during_the_call(server):
    async with talking(server.url) as peer:
        for change in (
            {"text_temperature": 0.2},
            {"audio_temperature": 0},
            {"text_topk": 5, "audio_topk": 7},
            {"routing": False},
            {"routing": 1, "text_temperature": 2},
        ):
            await peer.tell(type="set", **change)
        assert await peer.is_alive()
    assert not peer.errors


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('{"type":"set","text_temperature":3}', "text_temperature is 3"),
        ('{"type":"set","audio_temperature":NaN}', "audio_temperature is nan"),
        ('{"type":"set","audio_temperature":"warm"}', "audio_temperature is 'warm'"),
        ('{"type":"set","text_topk":0}', "text_topk is 0"),
        ('{"type":"set","audio_topk":1e999}', "audio_topk is 'inf'"),
        ('{"type":"set","audio_topk":true}', "audio_topk is 'True'"),
        ('{"type":"set","audio_topk":[1]}', "audio_topk is '[1]'"),
        ('{"type":"set","routing":"maybe"}', "routing is 'maybe'"),
        ('{"type":"set","routing":[]}', "routing is '[]'"),
        ('{"type":"say"}', "text is missing"),
        ('{"type":"say","text":7}', "text is missing"),
        ('{"type":"say","text":""}', "the text is empty"),
        ('{"type":"say","text":"x","mode":"shout"}', "mode is 'shout'"),
        ('{"type":"say","text":"half \\ud83d an emoji"}', "not valid Unicode"),
        ('{"type":"ask"}', "text is missing"),
        ('{"type":"dance"}', "type is 'dance'; use say, ask, cancel or set"),
        ('{"type":"\\ud800"}', "type is '\\ud800'"),
        ('{"type":3}', "needs a type"),
        ('{"text":"x"}', "needs a type"),
        ("[]", "needs a type"),
        ("say hello", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"type":"set","text_topk":' + "9" * 5000 + "}", "not JSON"),
    ],
)
async def test_a_wrong_0x04_is_refused_in_one_sentence_and_the_call_goes_on(
    server, message, reason
):
    async with talking(server.url) as peer:
        await peer.send(Kind.METADATA, message.encode())
        assert reason in (await peer.until(Kind.ERROR)).decode()
        assert await peer.is_alive()
        assert len(peer.errors) == 1


async def test_a_0x04_that_is_not_utf8_is_refused(server):
    async with talking(server.url) as peer:
        await peer.send(Kind.METADATA, b'{"type":"say","text":"\xff"}')
        assert b"not JSON" in await peer.until(Kind.ERROR)
        assert await peer.is_alive()


# -- control ---------------------------------------------------------------------------------------


async def test_one_agent_frame_leaves_for_each_user_frame(server):
    async with talking(server.url) as peer:
        answers = await frames(peer, 12)
        await peer.is_alive()
    assert len(peer.of(Kind.AUDIO)) == 12
    assert all(len(answer) == 3840 for answer in answers)


async def test_audio_is_taken_in_any_even_split(server):
    async with talking(server.url) as peer:
        whole = FRAME * 5
        for size in (2, 10, 3838, 4, 5000, 10_346):
            await peer.send(Kind.AUDIO, whole[:size])
            whole = whole[size:]
        await peer.send(Kind.AUDIO, b"")
        while len(peer.of(Kind.AUDIO)) < 5:
            await peer.until(Kind.AUDIO)
        assert await peer.is_alive()
    assert len(peer.of(Kind.AUDIO)) == 5


async def test_pause_is_silent_keeps_listening_and_lets_what_is_to_be_said_wait(server):
    async with talking(server.url, events=1) as peer:
        await peer.send(Kind.CONTROL, PAUSE)
        await peer.say("Patience")
        await peer.event("say", state="queued")
        paused = await frames(peer, 20)
        assert not any(np.frombuffer(data, "<i2").any() for data in paused)
        assert peer.text == ""
        await peer.send(Kind.CONTROL, START)
        await peer.event("say", state="done")
    assert peer.text == " Patience"
    assert_says(peer.pcm, ["Patience"])


async def test_end_turn_drops_what_is_said_and_what_waits(server):
    async with talking(server.url, events=1) as peer:
        await peer.say("One two three four five six seven eight nine ten")
        await peer.say("and this waits")
        await peer.until(Kind.TEXT)
        await peer.send(Kind.CONTROL, END_TURN)
        await peer.event("say", state="cancelled", id=1)
        states = {event["id"]: event["state"] for event in peer.events if event["type"] == "say"}
        assert states == {1: "cancelled", 2: "cancelled"}
        after = await frames(peer, 12)
        assert not any(np.frombuffer(data, "<i2").any() for data in after[1:])
        assert "ten" not in peer.text


async def test_restart_gives_a_second_handshake_and_the_same_greeting(server):
    async with talking(server.url, seed=-1) as peer:
        first = await frames(peer, 22)
        text = peer.text
        await peer.send(Kind.CONTROL, RESTART)
        await peer.until(Kind.HANDSHAKE)
        second = await frames(peer, 22)
    assert text.startswith((" Hello!", " Hi"))
    assert peer.text == text * 2
    assert first == second


async def test_what_is_said_right_after_a_restart_is_not_lost(server):
    async with talking(server.url, events=1) as peer:
        for _ in range(5):
            await peer.send(Kind.CONTROL, RESTART)
            await peer.say("Still here.")
        await peer.event("say", state="done", id=5)
    assert peer.text.endswith(" Still here.")


async def test_restart_drops_what_was_waiting(server):
    async with talking(server.url, events=1) as peer:
        await peer.send(Kind.CONTROL, PAUSE)
        await peer.say("old news")
        await peer.event("say", state="queued")
        await peer.send(Kind.CONTROL, RESTART)
        await peer.until(Kind.HANDSHAKE)
        await peer.say("New.")
        await peer.event("say", state="done")
    assert peer.text == " New."


@pytest.mark.parametrize("payload", [b"", b"\x04", b"\xff", b"\x00\x01"])
async def test_an_unknown_control_byte_is_refused(server, payload):
    async with talking(server.url) as peer:
        await peer.send(Kind.CONTROL, payload)
        assert b"send one byte, 00 to 03" in await peer.until(Kind.ERROR)
        assert await peer.is_alive()


# -- ping, text messages, noise --------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"\x00\xff", b"x" * 100_000, "grüße".encode()])
async def test_a_ping_is_answered_with_the_same_bytes(server, payload):
    async with talking(server.url) as peer:
        await peer.send(Kind.PING, payload)
        assert await peer.until(Kind.PING) == payload


async def test_a_ping_before_the_handshake_is_answered_too(server):
    async with connected(server.url) as peer:
        await peer.send(Kind.PING, b"early")
        assert await peer.until(Kind.PING) == b"early"


async def test_a_text_message_is_answered_with_one_sentence_and_ignored(server):
    async with talking(server.url) as peer:
        await peer.ws.send_str("hello")
        assert (await peer.until(Kind.ERROR)).startswith(b"binary messages only")
        assert await peer.is_alive()
        assert len(peer.errors) == 1


async def test_empty_messages_and_unknown_kinds_are_counted_and_ignored(server):
    before = ignored(server)
    async with talking(server.url) as peer:
        for message in (b"", b"\x08", b"\xffabc", b"\x00", b"\x02text", b"\x05error"):
            await peer.ws.send_bytes(message)
        assert await peer.is_alive()
        assert not peer.errors
    assert ignored(server) == before + 6


def ignored(server):
    lines = server.engine.metrics.text().decode().splitlines()
    return next(float(x.split()[1]) for x in lines if x.startswith("personaplex_ignored_messages_"))


async def test_commands_sent_before_the_handshake_are_obeyed_after_it(server):
    async with connected(server.url, format="pcm16", events=1) as peer:
        await peer.send(Kind.CONTROL, PAUSE)
        await peer.tell(type="say", text="Early.")
        await peer.send(Kind.AUDIO, FRAME * 10)  # dropped: nobody was there to hear it
        await peer.tell(type="set", text_temperature=0.1)
        await peer.event("ready")
        assert (await peer.next())[0] is Kind.HANDSHAKE
        await peer.event("say", state="queued")
        await peer.send(Kind.CONTROL, START)
        await peer.until(Kind.TEXT)
    assert peer.text == " Early."


def noise(rng):
    """One hostile message: pure noise, or something nearly right."""
    kind = rng.randrange(10)
    nearly = [
        b'{"type":"say","text":"x"}',
        b'{"type":"set","text_topk":1}',
        b'{"type":"cancel"}',
        rng.choice([START, END_TURN, PAUSE, RESTART]),
        b"OggS" + rng.randbytes(60),
        b"word " * rng.randrange(9),
    ]
    payload = rng.choice(nearly) if rng.random() < 0.5 else rng.randbytes(rng.randrange(80))
    payload = bytearray(payload)
    if payload and rng.random() < 0.3:
        payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
    return bytes([kind]) + bytes(payload)


async def fuzz(server, seed, messages):
    """Random messages on as many sockets as it takes; the server may hang up, never fail."""
    rng = random.Random(seed)
    while messages > 0:
        async with connected(server.url, format=rng.choice(["opus", "pcm16"])) as peer:
            reading = asyncio.create_task(peer.end())
            while messages > 0 and not peer.ws.closed:
                messages -= 1
                await peer.ws.send_bytes(noise(rng))
            if messages > 0:
                text, _code = await reading
                assert not text.startswith("internal error"), text
            reading.cancel()


async def neighbour(server):
    async with talking(server.url, seed=1) as peer:
        tone = (np.sin(np.arange(1920) / 7) * 9000).astype("<i2").tobytes()
        await frames(peer, 12, tone)
        await frames(peer, 30)
    return peer.text, b"".join(peer.of(Kind.AUDIO))


async def test_a_fuzzer_neither_ends_the_server_nor_reaches_its_neighbour(server):
    quiet = await neighbour(server)
    noisy, *_ = await asyncio.gather(
        neighbour(server), fuzz(server, 1, 1500), fuzz(server, 2, 1500)
    )
    assert noisy == quiet
    await eventually(lambda: server.engine.free == 6)
