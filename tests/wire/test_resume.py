"""A line that drops, and a conversation that goes on: over real sockets (docs/api.md)."""

import asyncio
import json
import logging
import re
import socket
import time
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import pytest
import sphn

from engine.dialogue import resume, session
from engine.dialogue.session import Limits
from engine.evals.standin import Reply
from engine.wire import socket as conversation
from engine.wire.audio import make_codec
from engine.wire.client import Client
from engine.wire.protocol import Kind, encode_metadata
from tests.dialogue.talk import standing
from tests.serving import ApiServer
from tests.wire.drops import TINY, Wire, drop_lines
from tests.wire.peer import PATIENCE_SECONDS, connected, eventually, talking
from tests.wire.raw import PING, PONG, raw
from tests.wire.test_socket import RESTART, frames

SENTENCE = "One two three four five six seven."
HUM = (np.full(1920, 0.1) * 32767).astype("<i2").tobytes()


def cut(peer):
    """End a line without a goodbye, as a lost network does."""
    if line := peer.ws._response.connection:
        line.transport.abort()


async def dropped(server, count=1):
    await eventually(lambda: len(server.engine.ghosts) == count)


def ready_of(peer):
    return next(event for event in peer.events[::-1] if event["type"] == "ready")


@asynccontextmanager
async def resumed(server, secret, **query):
    async with connected(server.url, resume=secret, **query) as peer:
        await peer.until(Kind.HANDSHAKE)
        yield peer


async def refused(server, **query):
    """Why a socket was not let in; it has heard nothing else."""
    async with connected(server.url, **query) as peer:
        text, code = await peer.end()
    assert [kind for kind, _ in peer.heard] == [Kind.ERROR]
    return text, code


async def drop_one(server, **query):
    """A conversation whose line has dropped; its secret."""
    async with talking(server.url, events=1, **query) as peer:
        cut(peer)
        await dropped(server)
    return ready_of(peer)["resume"]


@pytest.fixture(scope="module")
def small(serve):
    return serve(slots=1)


@pytest.fixture
async def alone(small):
    """One slot, and nobody in it."""
    yield small
    small.run(give_up_all(small))
    await eventually(lambda: not small.engine.sessions)


async def give_up_all(server):
    server.engine.ghosts.give_up_all()


# -- it goes on ------------------------------------------------------------------------------------


async def test_a_dropped_conversation_goes_on_with_the_rest_of_the_sentence(alone):
    async with talking(alone.url, events=1) as peer:
        await peer.say(SENTENCE)
        await peer.until(Kind.TEXT, lambda text: text == b" three")
        cut(peer)
        await dropped(alone)
    heard = len(peer.pcm) / 24_000
    async with resumed(alone, ready_of(peer)["resume"], heard=heard) as after:
        before_0x00 = [kind for kind, _ in after.heard]
        await after.event("say", state="done")
    assert before_0x00 == [Kind.METADATA, Kind.HANDSHAKE]
    ready, old = ready_of(after), ready_of(peer)
    assert ready["resumed"] is True
    assert "resumed" not in old
    assert ready["session"] == old["session"]
    assert ready["resume"] != old["resume"]
    assert ready["format"] == "pcm16"
    assert ready["t"] == pytest.approx(heard, abs=1e-3)
    words = (peer.text + after.text).split()
    assert words[-4:] == ["four", "five", "six", "seven."]
    assert words[:3] == ["One", "two", "three"]


async def test_what_was_sent_into_a_dead_line_is_sent_again_from_where_the_client_says(alone):
    async with talking(alone.url, events=1) as peer:
        await peer.say(SENTENCE)
        await peer.until(Kind.TEXT, lambda text: text == b" two")
        half = len(peer.pcm) / 24_000
        mark = len(peer.heard)
        await peer.until(Kind.TEXT, lambda text: text == b" six")
        missed = [data for kind, data in peer.heard[mark:] if kind is Kind.AUDIO]
        cut(peer)
        await dropped(alone)
    async with resumed(alone, ready_of(peer)["resume"], heard=half) as after:
        await after.event("say", state="done")
    assert after.of(Kind.AUDIO)[: len(missed)] == missed
    assert " three four five six seven" in after.text


async def test_without_a_count_what_was_sent_counts_as_heard(alone):
    async with talking(alone.url, events=1) as peer:
        sent = await frames(peer, 10, HUM)
        cut(peer)
        await dropped(alone)
    async with resumed(alone, ready_of(peer)["resume"]) as after:
        assert ready_of(after)["t"] == 0.8
        await frames(after, 2)
    assert len(sent) + len(after.of(Kind.AUDIO)) == 12


def count_ticks(server):
    text = server.engine.metrics.text().decode()
    return float(re.search(r"^personaplex_ticks_total (.*)$", text, re.MULTILINE)[1])


async def test_while_it_waits_not_a_frame_passes(alone):
    async with talking(alone.url, events=1) as peer:
        await peer.say(SENTENCE)
        await peer.until(Kind.TEXT)
        cut(peer)
        await dropped(alone)
    before = count_ticks(alone)
    await asyncio.sleep(0.5)  # six frames, had it gone on
    assert 0 < count_ticks(alone) <= before + 1  # the tick that was running
    assert alone.engine.scheduler.free == 1


@pytest.mark.parametrize("fmt", ["opus", "pcm16"])
async def test_the_next_line_may_have_another_format_with_a_stream_of_its_own(alone, fmt):
    secret = await drop_one(alone)
    async with resumed(alone, secret, format=fmt) as after:
        assert ready_of(after)["format"] == fmt
        await after.say("Seven umbrellas")
        await after.event("say", state="done")
    if fmt == "opus":
        reader = sphn.OpusStreamReader(24_000)
        pcm = np.concatenate([reader.append_bytes(data) for data in after.of(Kind.AUDIO)])
        assert np.abs(pcm).max() > 0.1
    else:
        assert np.abs(after.pcm).max() > 0.1


async def test_what_the_next_query_says_of_the_conversation_is_void(alone):
    secret = await drop_one(alone, voice_prompt="NATM1")
    async with resumed(alone, secret, voice_prompt="VARF2", text_prompt="Somebody else.") as after:
        assert ready_of(after)["voice"] == "NATM1"


async def test_a_line_that_is_not_known_to_be_dead_is_taken_over(alone):
    """Wi-Fi is left for the mobile network: the old socket says nothing any more."""
    async with talking(alone.url, events=1) as old:
        await old.say(SENTENCE)
        await old.until(Kind.TEXT)
        reading = asyncio.create_task(old.end())
        async with resumed(alone, ready_of(old)["resume"]) as new:
            await new.event("say", state="done")
            reason, code = await reading
    assert reason == "gone: this conversation goes on in another connection of yours"
    assert code == 1008
    assert "seven." in new.text
    assert "seven." not in old.text


@pytest.mark.parametrize("told", [True, False])
async def test_a_line_that_drops_again_before_its_client_knows_the_new_secret_still_goes_on(
    alone, told, monkeypatch
):
    secret = await drop_one(alone)
    if not told:
        never = asyncio.Event()  # nobody sets it
        monkeypatch.setattr(conversation.ChatSocket, "_send_ready", lambda self: never.wait())
    async with raw(alone.url) as blind:  # it reads nothing, so it never has the next secret
        await blind.upgrade(f"/api?resume={secret}&format=pcm16")
        await eventually(lambda: not len(alone.engine.ghosts))
        blind.writer.transport.abort()
        await dropped(alone)
    monkeypatch.undo()
    async with resumed(alone, secret) as after:
        assert ready_of(after)["resumed"] is True


async def test_a_pause_and_the_texts_that_wait_in_it_are_there_for_the_next_line(alone):
    """... whose secret may come in a first message, and stands in no address then."""
    async with talking(alone.url, events=1) as peer:
        await peer.send(Kind.CONTROL, b"\x02")  # pause
        await peer.say("Seven.")
        await peer.say("Umbrellas.")
        await peer.event("say", state="queued", text="Umbrellas.")
        cut(peer)
        await dropped(alone)
    async with connected(alone.url, open=1) as after:
        await after.tell(type="open", resume=ready_of(peer)["resume"])
        await after.until(Kind.HANDSHAKE)
        assert len(await frames(after, 5)) == 5
        assert not after.text
        await after.send(Kind.CONTROL, b"\x00")  # start
        await after.event("say", state="done", text="Umbrellas.")
    assert after.text.split() == ["Seven.", "Umbrellas."]


async def test_a_restart_that_is_under_way_when_the_line_drops_is_there_for_the_next(alone):
    async with talking(alone.url, events=1) as peer:
        await peer.say(SENTENCE)
        await peer.send(Kind.CONTROL, RESTART)
        cut(peer)
        await dropped(alone)
    async with resumed(alone, ready_of(peer)["resume"]) as after:
        assert ready_of(after)["resumed"] is True
        await after.say("Umbrella.")
        await after.event("say", state="done", text="Umbrella.")


async def test_a_lookup_that_is_on_its_way_is_answered_into_the_waiting_conversation():
    reply = Reply(text="Nine dollars.", delay=0.3)
    async with standing(lambda question: reply) as (api, answers):
        with ApiServer(slots=1, answers=answers) as server:
            async with talking(server.url, events=1) as peer:
                await peer.tell(type="ask", text="How much is the premium plan?")
                await peer.event("route", state="asking")
                cut(peer)
                await dropped(server)
            await api.asked.wait()
            await asyncio.sleep(0.6)  # all of it has come
            async with resumed(server, ready_of(peer)["resume"]) as after:
                await after.event("route", state="done")
            assert "Nine dollars" in after.text
            await asyncio.to_thread(server.run, server.engine.drain(0.0))  # the answerer's sockets


# -- it is over ------------------------------------------------------------------------------------


async def test_who_says_goodbye_is_gone_at_once(alone):
    async with talking(alone.url, events=1) as peer:
        await frames(peer, 1)
    await eventually(lambda: not alone.engine.sessions)
    assert not len(alone.engine.ghosts)
    text, code = await refused(alone, resume=ready_of(peer)["resume"])
    assert (text, code) == (f"gone: {resume.GONE}", 1008)


@pytest.mark.parametrize("secret", ["x", "x" * 43, "ö", "NULL"])
async def test_a_secret_that_was_never_given_opens_nothing(alone, secret):
    await drop_one(alone)
    text, code = await refused(alone, resume=secret)
    assert text.startswith("gone: ")
    assert code == 1008
    assert len(alone.engine.ghosts) == 1


async def test_a_secret_counts_once(alone):
    secret = await drop_one(alone)
    async with resumed(alone, secret) as first:
        await frames(first, 1)
        assert (await refused(alone, resume=secret, events=1))[0].startswith("gone: ")
        assert await first.is_alive()
        cut(first)
        await dropped(alone)
    assert (await refused(alone, resume=secret))[0].startswith("gone: ")
    async with resumed(alone, ready_of(first)["resume"]):
        pass


async def test_two_who_come_with_one_secret_at_once_are_one_and_a_stranger(alone, monkeypatch):
    monkeypatch.setattr(resume, "SIGN_SECONDS", PATIENCE_SECONDS)  # on a slow machine, too
    secret = await drop_one(alone)

    async def come():
        async with connected(alone.url, resume=secret) as peer:
            kinds = [message[0] for _ in range(2) if (message := await peer.next())]
            await asyncio.sleep(0.1)
            return kinds

    both = sorted(await asyncio.gather(come(), come()), key=len)
    assert both == [[Kind.ERROR], [Kind.METADATA, Kind.HANDSHAKE]]


async def test_who_comes_too_late_is_told_so_and_the_slot_is_free(alone, monkeypatch):
    monkeypatch.setattr(alone.engine.ghosts, "keep_s", 0.2)
    async with talking(alone.url, events=1) as peer:
        cut(peer)
        await eventually(lambda: not alone.engine.sessions)
    assert (await refused(alone, resume=ready_of(peer)["resume"]))[0].startswith("gone: ")
    ended = 'personaplex_conversations_ended_total{reason="dropped"}'
    assert ended in alone.engine.metrics.text().decode()
    async with talking(alone.url):
        pass


async def test_where_nothing_is_kept_there_is_no_secret_and_a_drop_is_the_end(alone, monkeypatch):
    monkeypatch.setattr(alone.engine.ghosts, "keep_s", 0.0)
    async with talking(alone.url, events=1) as peer:
        cut(peer)
        await eventually(lambda: not alone.engine.sessions)
    assert "resume" not in ready_of(peer)


async def test_a_client_that_was_told_no_secret_leaves_nothing_behind(alone):
    async with talking(alone.url) as peer:
        cut(peer)
        await eventually(lambda: not alone.engine.sessions)
    assert not len(alone.engine.ghosts)


@pytest.mark.parametrize("fault", ["bad audio", "unmasked"])
async def test_who_breaks_the_rules_has_nothing_to_come_back_to(alone, fault):
    async with raw(alone.url) as peer:
        await peer.upgrade("/api?format=pcm16&events=1")
        ready = json.loads((await peer.until(2, b"\x04"))[1:])
        if fault == "unmasked":
            await peer.send(b"\x82\x02\x06\x00")
        else:
            await peer.send(b"\x82\x82\0\0\0\0\x01x")
        assert await peer.is_closed()
    await eventually(lambda: not alone.engine.sessions)
    assert (await refused(alone, resume=ready["resume"]))[0].startswith("gone: ")


async def test_the_longest_conversation_is_not_made_longer_by_drops(serve, monkeypatch):
    monkeypatch.setattr(session, "WATCH_SECONDS", 0.05)
    short = serve(slots=1, limits=Limits(session_s=300.0))
    secret = await drop_one(short)
    (dropped_one,) = short.engine.sessions
    dropped_one._started -= 300.0
    async with connected(short.url, resume=secret) as after:
        text, code = await after.end()
    assert text.startswith("time limit: ")
    assert code == 1000


async def test_a_server_that_stops_waits_for_nobody_and_says_so():
    with ApiServer(slots=2) as server:
        secret = await drop_one(server)
        began = time.monotonic()
        await asyncio.to_thread(server.run, server.engine.drain(15.0))
        assert time.monotonic() - began < 10.0, "it waited for a ghost"
        assert not server.engine.sessions
        text, code = await refused(server, resume=secret)
    assert text.startswith("closing: ")
    assert code == 1001


async def test_the_access_token_is_still_asked_for(serve):
    guarded = serve(slots=1, token="open sesame")
    secret = await drop_one(guarded, token="open sesame")
    assert (await refused(guarded, resume=secret))[0].startswith("unauthorized: ")
    async with resumed(guarded, secret, token="open sesame"):
        pass


@pytest.mark.parametrize("heard", ["-1", "nan", "inf", "soon", "1e9"])
async def test_a_count_that_is_none_is_refused_and_the_conversation_still_waits(alone, heard):
    secret = await drop_one(alone)
    text, code = await refused(alone, resume=secret, heard=heard)
    assert text.startswith("bad parameter: heard is ")
    assert code == 1008
    async with resumed(alone, secret):
        pass


async def test_no_secret_is_ever_logged_or_counted(alone, caplog):
    caplog.set_level(logging.DEBUG)
    secret = await drop_one(alone)
    async with resumed(alone, secret) as after:
        await refused(alone, resume=secret)
        metrics = alone.engine.metrics.text().decode()
    await eventually(lambda: "lines lost: 1" in caplog.text)
    for hidden in (secret, ready_of(after)["resume"]):
        assert len(hidden) >= 40
        assert hidden not in caplog.text
        assert hidden not in metrics
    assert "personaplex_conversations_resumed_total" in metrics


# -- a newcomer needs the slot ---------------------------------------------------------------------


async def test_a_newcomer_waits_for_a_ghost_no_longer_than_its_time_and_the_oldest_goes(
    serve, monkeypatch
):
    monkeypatch.setattr(resume, "GHOST_SECONDS", 0.8)
    monkeypatch.setattr("engine.dialogue.service.GHOST_SECONDS", 0.8)
    full = serve(slots=2)
    oldest = await drop_one(full)
    async with talking(full.url, events=1) as second:
        cut(second)
        await dropped(full, 2)
    async with aiohttp.ClientSession() as http, http.get(full.url + "/healthz") as answer:
        health = await answer.json()
    assert health["free"] == 2
    assert "personaplex_conversations_dropped 2.0" in full.engine.metrics.text().decode()
    (line, _second) = full.engine.ghosts._dropped
    async with talking(full.url):
        assert 0.8 <= time.monotonic() - line.dropped_at < full.engine.ghosts.keep_s
        assert (await refused(full, resume=oldest))[0].startswith("gone: ")
        async with resumed(full, ready_of(second)["resume"]):
            pass


async def test_a_newcomer_has_the_slot_at_once_when_its_owner_says_goodbye(alone, monkeypatch):
    """... and not only after the ghost's five seconds."""
    secret = await drop_one(alone)
    monkeypatch.setattr(resume, "GHOST_SECONDS", 60.0)
    monkeypatch.setattr("engine.dialogue.service.GHOST_SECONDS", 60.0)
    async with connected(alone.url, format="pcm16") as newcomer:
        await eventually(lambda: alone.engine.ghosts._newcomers == 1)
        async with resumed(alone, secret):
            pass
        await newcomer.until(Kind.HANDSHAKE)


async def test_more_newcomers_than_ghosts_are_told_that_it_is_busy(alone, monkeypatch):
    await drop_one(alone)
    monkeypatch.setattr("engine.dialogue.service.GHOST_SECONDS", 0.5)
    async with connected(alone.url) as first:
        await eventually(lambda: alone.engine.ghosts._newcomers == 1)
        assert (await refused(alone))[0].startswith("busy: ")
        await first.until(Kind.HANDSHAKE)


async def test_where_nobody_is_waited_for_busy_comes_at_once(alone):
    async with talking(alone.url, events=1):
        assert (await refused(alone))[0].startswith("busy: ")


# -- dead lines ------------------------------------------------------------------------------------


@pytest.fixture
def quick_looks(monkeypatch):
    monkeypatch.setattr(conversation, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(conversation, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(conversation, "DEAD_SECONDS", 15.0)


async def test_a_line_on_which_nothing_comes_is_dropped_and_kept(alone, quick_looks, monkeypatch):
    monkeypatch.setattr(conversation, "DEAD_SECONDS", 0.3)
    async with raw(alone.url) as peer:  # it answers no ping
        await peer.upgrade("/api?format=pcm16&events=1")
        ready = json.loads((await peer.until(2, b"\x04"))[1:])
        await peer.until(PING)
        assert await peer.is_closed()
        await dropped(alone)
    async with resumed(alone, ready["resume"]):
        pass


async def test_a_client_that_only_answers_pings_stays(alone, quick_looks):
    async with raw(alone.url) as peer:
        await peer.upgrade("/api?format=pcm16")
        for _ in range(5):
            asked = await peer.until(PING)
            await peer.send(bytes([0x80 | PONG, 0x80 | len(asked)]) + bytes(4) + asked)
        await peer.send(b"\x82\x81\0\0\0\0\x06")
        assert await peer.until(2, b"\x06") == b"\x06"


async def test_a_public_client_without_audio_stays(alone, quick_looks, monkeypatch):
    asked = []
    ping = conversation.ChatSocket._ping
    note = lambda self, payload=b"": asked.append(payload) or ping(self, payload)  # noqa: E731
    monkeypatch.setattr(conversation.ChatSocket, "_ping", note)
    async with talking(alone.url) as peer:
        reading = asyncio.create_task(peer.end())
        await eventually(lambda: len(asked) >= 5)
        assert not reading.done()
        await peer.ws.close()
        await reading


async def test_the_kernel_looks_after_idle_lines_too(alone):
    seen = []
    probe = conversation.ChatSocket.run

    async def look(self):
        line = self.connection.transport.get_extra_info("socket")
        seen.append(line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        seen.append(line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
        return await probe(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation.ChatSocket, "run", look)
        async with talking(alone.url):
            pass
    assert seen == [1, 15]


# -- many drops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["embedded", str(TINY)], ids=["embedded", "tiny"])
async def test_lines_drop_and_every_conversation_goes_on_as_if_none_had(model):
    figures = await drop_lines(model, drops=6, talks=2, seed=3)
    assert figures["drops"] >= 6
    assert figures["frames heard"] > 20


# -- our own client --------------------------------------------------------------------------------


async def test_our_terminal_client_goes_on_over_a_cut_wire(alone):
    """`engine talk` hears the whole sentence, though its line is cut in the midst of it."""
    wire = Wire(int(alone.url.rpartition(":")[2]))
    heard, texts = 0, []
    async with (
        asyncio.timeout(30),
        wire.laid() as url,
        Client(url, returns=True, voice_prompt="NATM1") as client,
    ):
        await client.say(SENTENCE)
        async for message in client.messages():
            if message.kind is Kind.TEXT:
                texts.append(message.text)
                if message.text in (" two", " six") and texts.count(message.text) == 1:
                    wire.cut("ended" if message.text == " two" else "reset")
            if message.kind is Kind.AUDIO:
                heard += len(message.pcm)
            if message.data.get("state") == "done":
                break
    words = "".join(texts).split()
    assert list(dict.fromkeys(words)) == SENTENCE.split()
    assert len(words) <= len(SENTENCE.split()) + 2  # a word at the cut may come twice
    assert heard / 24_000 > 1.5


def test_our_client_counts_half_a_frame_that_comes_again_once():
    """Else it is ahead after two such cuts, and a frame that it never had is left out."""
    client = Client("http://127.0.0.1:9", fmt="opus", returns=True)
    for _ in range(3):  # lines, each cut in the midst of a frame
        writer = make_codec("opus")
        pages = writer.split(writer.encode(np.zeros(1920, np.float32)))
        for part in pages[:-1]:
            client._message(bytes([Kind.AUDIO]) + part)
        assert client._heard == 960
        client._message(encode_metadata("ready", 0.0, resume="secret", resumed=True))
        client._codec = make_codec("opus")


async def test_our_client_does_not_come_back_to_a_conversation_that_has_ended(alone):
    async with asyncio.timeout(30), Client(alone.url, returns=True) as client:
        async for message in client.messages():
            if message.kind is Kind.HANDSHAKE:
                await client.send(Kind.AUDIO, b"x")
    assert client.close_code == 1003
