"""What one client may take: the arithmetic on a clock of its own, then real sockets."""

import asyncio
import contextlib
import itertools
import logging
import socket
import threading
import time

import aiohttp
import numpy as np
import pytest
import sphn
from aiohttp import web

from engine.bench.clients import voice
from engine.config import SAMPLE_RATE, ConfigError, ServerConfig
from engine.dialogue.session import Session
from engine.errors import TooFastError
from engine.wire import limits
from engine.wire import server as routes
from engine.wire import socket as conversation
from engine.wire.audio import OpusCodec, PageReader
from engine.wire.limits import AddressBuckets, MinuteLog, find_address, parse_networks
from engine.wire.protocol import Kind
from engine.wire.socket import (
    RESTART_COST,
    Alive,
    Bucket,
    ClientPace,
    Silence,
    Unread,
    find_cost,
)
from tests.wire.ogg import packets, page
from tests.wire.peer import connected, eventually, talking
from tests.wire.raw import BINARY, CLOSE, PING, UPGRADE, frame, raw, request

TONE = np.sin(np.arange(SAMPLE_RATE) / 9).astype(np.float32) / 2


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


# -- the arithmetic --------------------------------------------------------------------------------


def test_a_bucket_gives_its_burst_and_then_its_rate(clock):
    bucket = Bucket(10, 5, clock)
    assert [bucket.take(1) for _ in range(6)] == [0, 0, 0, 0, 0, pytest.approx(0.1)]
    clock.now += 0.1
    assert bucket.take(1) == pytest.approx(0.1)
    clock.now += 1000
    assert bucket.level == 5


def play(clock, messages, lost=()):
    """Seconds in which messages (time of arrival, cost, samples) were handled one by one.

    lost: (begin, end) of times in which the loop of the server stood still. Raises TooFastError.
    """
    began = clock.now
    still = [0.0]
    lost = list(lost)
    pace = ClientPace(clock, lambda: still[0])
    for at, cost, samples in messages:
        clock.now = max(clock.now, began + at)
        while lost and clock.now >= began + lost[0][0]:
            begin, end = lost.pop(0)
            still[0] += end - begin
            clock.now = max(clock.now, began + end)
        clock.now += pace.take(cost, samples)
    return clock.now - began


def steadily(per_second, seconds, cost=1, samples=0, start=0.0):
    return [(start + n / per_second, cost, samples) for n in range(int(per_second * seconds))]


def at_once(count, at=0.0, cost=1, samples=0):
    return [(at, cost, samples)] * count


# Each is made when its test runs: every worker collects the tests, and has no use for the messages.
LEGAL = {
    "audio in pieces of 1 ms": lambda: steadily(1000, 60, samples=24),
    "audio in pieces of 10 ms, pings and stats": lambda: sorted(
        steadily(100, 60, samples=240) + steadily(20, 60)
    ),
    "30 s of audio in pieces of 10 ms at once": lambda: (
        at_once(3000, samples=240) + steadily(100, 60, samples=240)
    ),
    "30 s of audio in pieces of 1 ms at once": lambda: (
        at_once(30_000, samples=24) + steadily(1000, 60, samples=24)
    ),
    "30 s of audio in one message": lambda: [(0, 1440, 720_000)],
    "a network that stalls for 3 s, again and again": lambda: [
        (3.0 * (1 + int(at / 3.0)), cost, samples)
        for at, cost, samples in steadily(1000, 60, samples=24)
    ],
    "ten long texts and a restart": lambda: at_once(10, cost=50) + at_once(1, cost=RESTART_COST),
    "a restart every second": lambda: steadily(1, 60, cost=RESTART_COST),
    "a slider that is dragged": lambda: steadily(60, 60, cost=11),
}
FLOODS = {
    "pings": lambda: steadily(20_000, 40),
    "settings": lambda: steadily(2_000, 40, cost=11),
    "restarts": lambda: steadily(100, 40, cost=RESTART_COST),
    "long texts": lambda: steadily(500, 40, cost=170),
    "audio without a sample": lambda: steadily(5000, 40),
    "audio of one sample each": lambda: steadily(20_000, 40, samples=1),
    "pings between audio in real time": lambda: sorted(
        steadily(5000, 40) + steadily(50, 40, samples=480)
    ),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_client_is_never_blamed(clock, name):
    play(clock, LEGAL[name]())


@pytest.mark.parametrize("name", ["audio in pieces of 1 ms", "a slider that is dragged"])
def test_a_client_in_real_time_never_waits(clock, name):
    messages = LEGAL[name]()
    assert play(clock, messages) == pytest.approx(messages[-1][0])


@pytest.mark.parametrize("name", FLOODS)
def test_who_stays_above_the_rate_is_sent_away_and_not_before_5_s(clock, name):
    began = clock.now
    with pytest.raises(TooFastError):
        play(clock, FLOODS[name]())
    assert 5 < clock.now - began < 12


def test_who_is_above_the_rate_for_less_than_5_s_is_only_slowed_down(clock):
    at_most = conversation.MESSAGES_AT_ONCE + 4.5 * conversation.MESSAGES_PER_SECOND
    assert play(clock, at_once(int(at_most))) == pytest.approx(4.5, abs=0.05)


@pytest.mark.parametrize(("per_second", "seconds"), [(1400, 6.0), (1400, 20.0), (200, 54.0)])
def test_what_came_while_our_loop_stood_still_blames_nobody(clock, per_second, seconds):
    play(clock, steadily(per_second, 120), lost=[(10.0, 10.0 + seconds)])


def test_a_pause_of_ours_does_not_excuse_a_flood_for_ever(clock):
    with pytest.raises(TooFastError):
        play(clock, steadily(20_000, 60), lost=[(1.0, 3.0)])


def test_the_oldest_byte_that_is_not_taken_dates_what_is_unread(clock):
    unread = Unread(clock)
    for second in range(10):  # everything is taken within a second
        unread.written += 1000
        assert unread.look(unsent=900) <= 1, second
        clock.now += 1
    taken = unread.written
    waiting = []
    for _ in range(10):  # nothing any more
        unread.written += 1000
        waiting.append(unread.look(unread.written - taken))
        clock.now += 1
    assert waiting == pytest.approx(range(10))
    assert unread.look(unsent=0) == 0


def test_a_client_that_reads_slowly_but_reads_is_as_late_as_its_oldest_byte(clock):
    unread = Unread(clock)
    for _ in range(60):  # 3 s of sound are always under way
        unread.written += 1000
        assert unread.look(min(unread.written, 3000)) <= 3
        clock.now += 1


def test_ten_wrong_tokens_a_minute_may_be_tried_from_one_address(clock):
    guesses = AddressBuckets(10 / 60, 10, clock)
    tried = 0
    for _ in range(600):  # five minutes
        if guesses.may_take("a"):
            guesses.take("a")
            tried += 1
        assert guesses.may_take("b")
        clock.now += 0.5
    assert 55 <= tried <= 61


def test_the_addresses_of_wrong_tokens_are_not_kept_without_end(clock, monkeypatch):
    monkeypatch.setattr(limits, "MOST_ADDRESSES", 3)
    guesses = AddressBuckets(10 / 60, 10, clock)
    for _ in range(10):
        guesses.take("a")
    for address in "bc":
        guesses.take(address)
    assert not guesses.may_take("a")
    guesses.take("d")
    assert guesses.may_take("a")  # forgotten: it was the oldest


def test_one_line_a_minute_tells_what_happened_a_thousand_times(clock, caplog):
    log = MinuteLog(clock)
    for _ in range(500):
        log.note("a door was shut")
        clock.now += 0.25
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert "a door was shut (240 times" in lines[1]


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("203.0.113.9", "198.51.100.7", "203.0.113.9"),  # who is no proxy may write anything
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("127.0.0.1", "10.0.0.1, 198.51.100.7", "198.51.100.7"),  # the first is the client's word
        ("127.0.0.1", "nonsense", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.7, ", "127.0.0.1"),
        ("::1", "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("::ffff:127.0.0.1", "::ffff:198.51.100.7", "198.51.100.7"),
        ("fe80::1%eth0", "", "fe80::/64"),
        ("", "198.51.100.7", ""),
    ],
)
def test_only_a_proxy_that_we_trust_says_who_asks(peer, forwarded, found):
    assert find_address(peer, forwarded, parse_networks(ServerConfig().trusted_proxies)) == found


def test_a_proxy_that_is_no_network_is_refused():
    with pytest.raises(ConfigError, match=r"trusted_proxies has 'nginx'; use addresses"):
        ServerConfig(trusted_proxies=("nginx",))


@pytest.mark.parametrize(
    ("message", "cost"),
    [
        (b"", 1),
        (b"\x01" + bytes(1920), 1),
        (b"\x06", 1),
        (b"\x63", 1),
        (b"\x07" + b"x" * 2000, 50),
        (b'\x04{"type":"cancel"}', 10),
        (b"\x03\x03", 300),
        (b"\x03\x01", 10),
    ],
)
def test_a_message_counts_for_what_it_costs(message, cost):
    assert find_cost(message) == cost


# -- silence ---------------------------------------------------------------------------------------


def looks(clock, silence, seconds, lag=0.0):
    """A look a second, for so long."""
    seen = []
    for _ in range(seconds):
        clock.now += 1.0 + lag
        seen.append(silence.look(lag))
    return seen


def test_who_sends_nothing_is_asked_once_and_has_15_s_to_answer(clock):
    seen = looks(clock, Silence(clock), 22)
    assert seen.index(Alive.UNKNOWN) == 5
    assert seen.count(Alive.UNKNOWN) == 1
    assert seen.index(Alive.NO) == 5 + 16
    assert set(seen[6:21]) == {Alive.YES}


def test_who_answers_stays_and_is_asked_again(clock):
    silence = Silence(clock)
    for _ in range(30):
        seen = looks(clock, silence, 18)
        assert Alive.NO not in seen
        assert Alive.UNKNOWN in seen
        silence.note()


def test_who_sends_audio_is_never_asked(clock):
    silence = Silence(clock)
    for _ in range(100):
        silence.note()
        assert looks(clock, silence, 1) == [Alive.YES]


def test_nobody_is_dead_because_this_server_stood_still(clock):
    silence = Silence(clock)
    assert Alive.UNKNOWN in looks(clock, silence, 8)
    assert looks(clock, silence, 1, lag=60.0) == [Alive.YES]  # his answer is not read yet
    silence.note()
    assert looks(clock, silence, 5) == [Alive.YES] * 5


def test_nobody_is_dead_because_this_server_rests_from_reading_him(clock):
    silence = Silence(clock)
    silence.note(rest=30.0)
    assert looks(clock, silence, 30) == [Alive.YES] * 30
    assert Alive.NO in looks(clock, silence, 22)


# -- floods on real sockets ------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch):
    """Limits that a flood reaches at once."""
    monkeypatch.setattr(conversation, "MESSAGES_PER_SECOND", 100.0)
    monkeypatch.setattr(conversation, "MESSAGES_AT_ONCE", 50.0)
    monkeypatch.setattr(conversation, "CALM_MESSAGES", 10.0)
    monkeypatch.setattr(conversation, "TOO_FAST_SECONDS", 0.5)


KINDS = {
    "pings": frame(b"\x06"),
    "empty messages": frame(b""),
    "unknown kinds": frame(b"\x63abc"),
    "text": frame(b"hello", 1),
    "pings of the protocol below": frame(b"", PING),
    "restart": frame(b"\x03\x03"),
    "set": frame(b'\x04{"type":"set","text_topk":9}'),
    "routing": frame(b'\x04{"type":"set","routing":0}'),
    "cancel": frame(b'\x04{"type":"cancel"}'),
    "hard text": frame(b"\x07" + "²⁰₃①".encode() * 500),
}


async def pour(line, data):
    """Send until the server hangs up."""
    with contextlib.suppress(ConnectionError):
        while True:
            await line.send(data * 500)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_flood_is_told_once_and_ended_while_the_server_stops_reading_it(
    serve, narrow, monkeypatch, kind
):
    paused = []
    pause = limits.Connection.pause_reading
    monkeypatch.setattr(limits.Connection, "pause_reading", lambda self: paused.append(pause(self)))
    served = serve(slots=1)
    async with raw(served.url) as line:
        await line.upgrade()
        await line.until(BINARY, b"\0")
        pouring = asyncio.create_task(pour(line, KINDS[kind]))
        complaints = []
        while True:
            opcode, payload = await line.next()
            if opcode == CLOSE:
                break
            if payload.startswith(b"\5too fast"):
                complaints.append(payload)
        await line.is_closed()
        await pouring
    assert len(complaints) == 1
    assert payload[:2] == (1008).to_bytes(2, "big")
    assert paused
    await eventually(lambda: served.engine.free == 1)


@contextlib.contextmanager
def turns_of(served):
    """The turns of the server's loop since the block began, one entry each."""
    turns = []

    async def tick():
        while True:
            turns.append(None)
            await asyncio.sleep(0)

    ticking = asyncio.run_coroutine_threadsafe(tick(), served._served.loop)
    try:
        yield turns
    finally:
        ticking.cancel()


@contextlib.contextmanager
def turns_with_pieces(served, monkeypatch, owner, name):
    """Those turns of the server's loop in which a generator of `owner` has given a piece."""
    taken, generate = set(), getattr(owner, name)
    with turns_of(served) as turns:

        def noted(self, data):
            for piece in generate(self, data):
                taken.add(len(turns))
                yield piece

        monkeypatch.setattr(owner, name, noted)
        yield taken


@contextlib.contextmanager
def counting_turns(served, monkeypatch, method):
    """How often one conversation's method began, turn by turn of the server's loop."""
    counts, original = {}, method.__get__
    with turns_of(served) as turns:

        async def counted(self, *args):
            counts[len(turns)] = counts.get(len(turns), 0) + 1
            return await original(self)(*args)

        monkeypatch.setattr(conversation.ChatSocket, method.__name__, counted)
        yield counts


async def test_one_client_has_one_message_in_a_turn_however_many_have_come(server, monkeypatch):
    with counting_turns(server, monkeypatch, conversation.ChatSocket._handle) as counts:
        async with raw(server.url) as line:
            await line.upgrade()
            await line.until(BINARY, b"\0")
            await line.send(frame(b"") * 2000 + frame(b"\x06last"))
            await line.until(BINARY, b"\x06last")
    assert sum(counts.values()) == 2001
    assert max(counts.values()) == 1


async def test_audio_that_has_come_is_taken_in_one_turn(server, monkeypatch):
    """Else a client whose pieces are shorter than a round of the loop is heard ever later."""
    monkeypatch.setattr(conversation, "TURN_SECONDS", 60.0)
    with counting_turns(server, monkeypatch, conversation.ChatSocket._handle) as counts:
        async with raw(server.url) as line:
            await line.upgrade()
            await line.until(BINARY, b"\0")
            await line.send(frame(b"\x01" + bytes(48)) * 100 + frame(b"\x06last"))
            await line.until(BINARY, b"\x06last")
    assert sum(counts.values()) == 101
    assert max(counts.values()) > 20


async def test_pings_of_the_protocol_below_leave_the_others_their_turns(server):
    async with raw(server.url) as line:
        await line.upgrade()
        await line.until(BINARY, b"\0")
        with turns_of(server) as turns:
            await line.send(frame(b"", PING) * 2000 + frame(b"\x06last"))
            await line.until(BINARY, b"\x06last")
    assert len(turns) >= 2000


async def test_pings_before_the_first_message_leave_the_others_their_turns_too(server):
    async with raw(server.url) as line:
        await line.upgrade("/api?open=1&format=pcm16")
        with turns_of(server) as turns:
            await line.send(frame(b"", PING) * 200 + frame(b'\x04{"type":"open"}'))
            await line.until(BINARY, b"\0")
    assert len(turns) >= 200


async def test_of_empty_messages_no_more_wait_than_of_others(server, monkeypatch):
    # What counted payloads only kept a hundred thousand of them. Looking through so many for
    # garbage held every thread of the process for 0.1 s, again and again.
    paused, blocked = threading.Event(), asyncio.Event()
    pause, feed, read = limits.Connection.pause_reading, conversation.FrameGuard.feed_data, []

    def note_pause(connection):
        pause(connection)
        paused.set()

    def note_data(guard, data):
        read.append(len(data))
        return feed(guard, data)

    async def handle_nothing(_socket, _data):
        await blocked.wait()

    monkeypatch.setattr(limits.Connection, "pause_reading", note_pause)
    monkeypatch.setattr(conversation.FrameGuard, "feed_data", note_data)
    monkeypatch.setattr(conversation.ChatSocket, "_handle", handle_nothing)
    async with raw(server.url) as line:
        await line.upgrade()
        line.writer.write(frame(b"") * 60_000)
        await eventually(paused.is_set)
    assert sum(read) // len(frame(b"")) < 6_000


async def test_half_a_minute_of_opus_in_one_message_is_decoded_in_many_turns(server, monkeypatch):
    monkeypatch.setattr(conversation, "TURN_SECONDS", 0.0)
    writer = sphn.OpusStreamWriter(SAMPLE_RATE)
    silence = np.zeros(1920, np.float32)
    opus = b"".join(writer.append_pcm(silence) for _ in range(int(25 / 0.08)))
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        with turns_of(server) as turns:
            await peer.send(Kind.AUDIO, opus)
            assert await peer.is_alive()
    assert len(turns) >= opus.count(b"OggS") // 2


async def test_one_page_of_4_s_is_decoded_in_many_turns(server, monkeypatch):
    monkeypatch.setattr(conversation, "TURN_SECONDS", 0.0)
    noise = np.random.default_rng(0).standard_normal(4 * SAMPLE_RATE).astype(np.float32) / 10
    identity, comment, *audio = packets(sphn.OpusStreamWriter(SAMPLE_RATE).append_pcm(noise))
    taken, push = set(), Session.push_audio
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        await peer.send(Kind.AUDIO, page([identity], 2, 0, 0) + page([comment], 0, 0, 1))
        with turns_of(server) as turns:

            def note(session, pcm):
                taken.add(len(turns))
                return push(session, pcm)

            monkeypatch.setattr(Session, "push_audio", note)
            await peer.send(Kind.AUDIO, page(audio, 0, 0, 2))
            assert await peer.is_alive()
    assert len(taken) >= 0.9 * len(audio) > 80


async def test_pages_without_audio_are_looked_at_in_many_turns(server, monkeypatch):
    """A message of them takes 80 ms to go through, and brings nothing that a client could hear."""
    monkeypatch.setattr(conversation, "TURN_SECONDS", 0.0)
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        with turns_with_pieces(server, monkeypatch, PageReader, "feed") as taken:
            await peer.send(Kind.AUDIO, page([b""] * 255, 0, 0, 2) * 200)
            assert await peer.is_alive()
    assert len(taken) >= 0.9 * 200


def test_speech_never_waits_for_its_decoding(clock):
    """Though a slow machine takes 2 ms for 80 ms of it, and a network brings them in lumps."""
    decoding = Bucket(conversation.DECODE_SHARE, conversation.DECODE_SECONDS, clock)
    for _ in range(1000):
        assert decoding.take(0.002) == decoding.take(0.002) == 0
        clock.now += 0.16


async def test_who_sends_packets_that_take_long_is_decoded_slowly(server, monkeypatch):
    """Else four such clients keep the loop, and the frames' thread, from everybody."""
    worked = itertools.count()
    monkeypatch.setattr(conversation.time, "thread_time", lambda: next(worked) // 2 * 0.004)
    identity, comment, *audio = packets(sphn.OpusStreamWriter(SAMPLE_RATE).append_pcm(TONE))
    async with connected(server.url) as peer:
        await peer.until(Kind.HANDSHAKE)
        await peer.send(Kind.AUDIO, page([identity], 2, 0, 0) + page([comment], 0, 0, 1))
        began = time.monotonic()
        await peer.send(Kind.AUDIO, page(audio[:10], 0, 0, 2))
        assert await peer.is_alive()
    seconds = 10 * 0.004 - conversation.DECODE_SECONDS
    assert time.monotonic() - began > 0.9 * seconds / conversation.DECODE_SHARE


async def test_two_restarts_with_nothing_between_them_are_one(server, monkeypatch):
    restarts = []
    monkeypatch.setattr(
        "engine.dialogue.session.Session.restart", lambda session: restarts.append(session)
    )
    async with talking(server.url) as peer:
        for _ in range(3):
            await peer.send(Kind.CONTROL, b"\x03")
        assert await peer.is_alive()
        assert len(restarts) == 1
        await peer.say("and now there is something to drop")
        await peer.send(Kind.CONTROL, b"\x03")
        assert await peer.is_alive()
    assert len(restarts) == 2


async def test_a_client_that_does_not_take_what_it_is_sent_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr(conversation, "UNREAD_SECONDS", 0.2)
    monkeypatch.setattr(conversation, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(conversation, "CLOSE_SECONDS", 0.05)
    served = serve(slots=1)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.to_thread(deaf.connect, ("127.0.0.1", served._served.port))
        deaf.sendall(request("/api?format=pcm16", **UPGRADE) + frame(b"\x06" + bytes(30_000)) * 5)
        await eventually(lambda: served.engine.free == 0)  # it has its slot, and reads nothing
        await eventually(lambda: served.engine.free == 1)


async def test_75_s_of_audio_that_nobody_reads_are_noticed_before_they_are_over(
    serve, monkeypatch, clock
):
    """The kernels' buffers hold much of it: what is in ours counts. A look takes a second here."""
    looks = []

    class Watched(Unread):
        def __init__(self):
            super().__init__(clock)

        def look(self, unsent):
            clock.now += 1
            looks.append((self.written, unsent))
            return super().look(unsent)

    monkeypatch.setattr(conversation, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(conversation, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(conversation, "Unread", Watched)
    codec, spoken = OpusCodec(), voice(75.0)
    audio = [codec.encode(spoken[at : at + 1920]) for at in range(0, len(spoken), 1920)]
    echoed = b"".join(frame(b"\x06" + one) for one in audio)  # it comes back as it is
    served = serve(slots=1)
    with socket.socket() as deaf:  # with the buffers that a system gives
        await asyncio.to_thread(deaf.connect, ("127.0.0.1", served._served.port))
        deaf.sendall(request("/api?format=opus", **UPGRADE))
        await eventually(lambda: served.engine.free == 0)
        await asyncio.to_thread(deaf.sendall, echoed)
        await eventually(lambda: served.engine.free == 1)
    stood_still = [unsent for _written, unsent in looks if unsent]
    assert conversation.UNREAD_SECONDS < len(stood_still) < 75


# -- requests that do not end, and too many connections --------------------------------------------


@contextlib.asynccontextmanager
async def small(**config):
    """The URL of an application that reads a body, with its own limits, in this loop."""
    app = web.Application()

    async def read(request):
        return web.Response(text=str(len(await request.read())))

    app.router.add_route("*", "/read", read)
    app.middlewares.append(routes.note_request)
    app[routes.DOORS] = limits.Doors(ServerConfig(**config))
    async with routes.listening(app, "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


async def test_requests_that_come_together_begin_a_few_in_each_round_of_the_loop(monkeypatch):
    """Else all sockets wait for 180 answers while 30 pages load, or somebody floods."""
    answered, per_round = [], []
    monkeypatch.setattr(limits.Connection, "end", lambda self: answered.append(self))
    async with small() as url, contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(raw(url)) for _ in range(60)]
        for line in lines:  # every line is known to the server before the flood begins
            await line.send(request("/read"))
            await line.read_head()
        answered.clear()
        for line in lines:
            line.writer.write(request("/read"))
        async with asyncio.timeout(60):
            while sum(per_round) < len(lines):
                before = len(answered)
                await asyncio.sleep(0)
                per_round.append(len(answered) - before)
    assert max(per_round) <= 2 * limits.TURNS


async def test_what_takes_long_to_make_is_not_made_at_full_speed(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    doors = limits.Doors(ServerConfig())
    monkeypatch.setattr(doors._reports, "_clock", Clock())
    doors._reports._at = doors._reports._clock()
    monkeypatch.setattr(limits.asyncio, "sleep", sleep)
    for _ in range(3):
        await doors.take_report()
    assert slept == pytest.approx([0, limits.REPORT_SECONDS, 2 * limits.REPORT_SECONDS])


async def drip(line, data):
    with contextlib.suppress(ConnectionError):
        for byte in data:
            await line.send(bytes([byte]))
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /re",
        b"POST /read HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n",
        b"POST /read HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n",
        b"GET /read HTTP/1.1\r\nHost: here\r\n\r\nGET /re",
    ],
    ids=["nothing", "headers", "body", "chunks", "the second headers"],
)
async def test_a_request_that_does_not_end_is_closed_even_if_bytes_still_come(
    monkeypatch, caplog, begun
):
    monkeypatch.setattr(limits, "REQUEST_SECONDS", 0.15)
    async with small() as url:
        for _ in range(2):
            async with raw(url) as line:
                await line.send(begun)
                dripping = asyncio.create_task(drip(line, b"x" * 1000 if begun else b""))
                assert await line.is_closed()
                dripping.cancel()
    assert len([r for r in caplog.records if "did not end in" in r.getMessage()]) == 1


async def test_a_kept_connection_that_asks_nothing_more_is_closed(monkeypatch):
    monkeypatch.setattr(routes, "IDLE_SECONDS", 0.1)
    async with small() as url, raw(url) as line:
        await line.send(request("/read"))
        assert b"200 OK" in await line.read_head()
        assert await line.is_closed()


async def test_a_quick_request_leaves_its_connection_open_for_the_next(monkeypatch):
    monkeypatch.setattr(limits, "REQUEST_SECONDS", 0.05)
    async with small() as url, raw(url) as line:
        for _ in range(3):
            await line.send(request("/read", "POST", Content_Length="3") + b"abc")
            assert b"200 OK" in await line.read_head()
            assert await line.reader.readexactly(1) == b"3"
            await asyncio.sleep(0.1)  # longer than a request may take: there is none


async def begin(url, stack, address):
    """A line of which a request has begun, and waits for its body."""
    line = await stack.enter_async_context(raw(url))
    headers = {"X_Forwarded_For": address, "Content_Length": "1", "Expect": "100-continue"}
    await line.send(request("/read", "POST", **headers))
    assert b"100 Continue" in await line.read_head()


async def status(url, **headers):
    async with aiohttp.ClientSession() as http, http.get(url + "/read", headers=headers) as answer:
        return answer.status


async def test_one_address_has_so_many_connections_and_no_more(caplog):
    async with small(max_sockets_per_address=3) as url, contextlib.AsyncExitStack() as lines:
        for _ in range(2):
            await lines.enter_async_context(raw(url))
        async with raw(url):
            for _ in range(3):
                assert await status(url) == 503
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while await status(url) != 200:
                pass
    [line] = [r for r in caplog.records if "refused" in r.getMessage()]
    assert "3 are open from its address" in line.getMessage()
    assert "127.0.0.1" not in line.getMessage()


async def test_clients_of_one_proxy_are_counted_by_their_own_addresses():
    async with small(max_sockets_per_address=2) as url, contextlib.AsyncExitStack() as lines:
        for n in (1, 1, 2, 2, 3):
            await begin(url, lines, f"198.51.100.{n}")
        assert await status(url, **{"X-Forwarded-For": "198.51.100.1"}) == 503
        assert await status(url, **{"X-Forwarded-For": "198.51.100.3"}) == 200


async def test_all_addresses_together_have_so_many_connections_and_no_more():
    async with small(max_sockets_total=4) as url, contextlib.AsyncExitStack() as lines:
        for n in range(4):
            await begin(url, lines, f"198.51.100.{n}")
        assert await status(url) == 503


async def ask(line, **headers):
    await line.send(request("/read", **headers))
    return b"200 OK" in await line.read_head()


async def test_an_idle_connection_of_an_address_makes_room_the_oldest_first():
    """Browsers keep six for each page, and thirty people may sit behind one address."""
    async with small(max_sockets_per_address=3) as url, contextlib.AsyncExitStack() as stack:
        first, second, third = [await stack.enter_async_context(raw(url)) for _ in range(3)]
        for line in (first, second, third, first):
            assert await ask(line)
        fourth = await stack.enter_async_context(raw(url))
        assert await ask(fourth)
        assert await second.is_closed()
        for line in (first, third, fourth):
            assert await ask(line)


async def test_an_idle_connection_of_any_address_makes_room_where_all_have_too_many():
    async with small(max_sockets_total=3) as url, contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(raw(url)) for _ in range(3)]
        for n, line in enumerate(lines):
            assert await ask(line, X_Forwarded_For=f"198.51.100.{n}")
        assert await status(url) == 200
        assert await lines[0].is_closed()
        assert await ask(lines[1], X_Forwarded_For="198.51.100.1")


async def test_an_answer_that_is_not_read_is_not_cut_to_make_room(monkeypatch):
    monkeypatch.setattr(limits, "count_unsent", lambda transport: 1)
    async with small(max_sockets_per_address=1) as url, raw(url) as line:
        assert await ask(line)
        assert await status(url) == 503
        assert await ask(line)


async def test_a_connection_whose_request_has_begun_makes_no_room():
    async with small(max_sockets_per_address=1) as url, raw(url) as line:
        assert await ask(line)
        whole = request("/read")
        await line.send(whole[:10])
        for _ in range(20):  # the server, in this same loop, reads it
            await asyncio.sleep(0)
        assert await status(url) == 503
        await line.send(whole[10:])
        assert b"200 OK" in await line.read_head()


def test_thirty_pages_at_once_and_then_one_a_second_may_come_from_one_address(clock):
    requests = AddressBuckets(limits.REQUESTS_PER_SECOND, limits.REQUESTS_AT_ONCE, clock)

    def load_page():
        taken = 0
        for _ in range(100):
            if requests.may_take("a"):
                requests.take("a")
                taken += 1
        return taken

    assert [load_page() for _ in range(30)] == [100] * 30
    for _ in range(120):
        clock.now += 1
        assert load_page() == 100
    assert sum(load_page() for _ in range(100)) < 2000  # and it ends


@pytest.fixture
def few_requests(monkeypatch):
    """Twenty at once of one address, then next to none."""
    monkeypatch.setattr(limits, "REQUESTS_AT_ONCE", 20)
    monkeypatch.setattr(limits, "REQUESTS_PER_SECOND", 0.001)


async def test_a_flood_of_requests_is_refused_and_other_addresses_notice_nothing(
    few_requests, caplog
):
    async with small() as url, aiohttp.ClientSession() as http:
        found = []
        for _ in range(50):
            async with http.get(url + "/read") as answer:
                found.append(answer.status)
                said = await answer.text()
        assert found == [200] * 20 + [429] * 30
        assert answer.headers["Retry-After"] == "1"
        assert "too many requests" in said
        assert await status(url, **{"X-Forwarded-For": "198.51.100.3"}) == 200
    [line] = [r for r in caplog.records if "a request was refused" in r.getMessage()]
    assert "127.0.0.1" not in line.getMessage()


async def test_requests_behind_a_proxy_are_counted_by_their_own_addresses(few_requests):
    async with small() as url, aiohttp.ClientSession() as http:  # one connection of the proxy's
        found = {1: [], 2: []}
        for n in (1,) * 25 + (2,) * 5 + (1,) * 2:
            headers = {"X-Forwarded-For": f"10.1.1.1, 198.51.100.{n}"}
            async with http.get(url + "/read", headers=headers) as answer:
                found[n].append(answer.status)
    assert found == {1: [200] * 20 + [429] * 7, 2: [200] * 5}


async def test_what_cannot_be_read_counts_too_and_is_one_line_a_minute(few_requests, caplog):
    answers = []
    async with small() as url:
        for _ in range(30):
            async with raw(url) as line:
                await line.send(b"GET /zanzibarine HTTP/1.1\r\nHost: a\r\nzanzibarine\r\n\r\n")
                answers.append(int((await line.read_head()).split()[1]))
    assert answers == [400] * 20 + [429] * 10
    lines = [r.getMessage() for r in caplog.records if "could not be read" in r.getMessage()]
    assert len(lines) == 1
    assert not any(word in caplog.text for word in ("zanzibarine", "127.0.0.1", "Error handling"))


async def test_a_connection_finds_its_address_once_and_no_network_is_parsed_again(monkeypatch):
    async with small() as url, aiohttp.ClientSession() as http:
        asked = []
        find = limits.Doors.find_address
        monkeypatch.setattr(limits.Doors, "find_address", lambda *a: asked.append(a) or find(*a))
        parse = limits.ipaddress.ip_network
        parsed = []
        monkeypatch.setattr(
            limits.ipaddress, "ip_network", lambda *a, **k: parsed.append(a) or parse(*a, **k)
        )
        for _ in range(5):
            headers = {"X-Forwarded-For": "198.51.100.1"}
            async with http.get(url + "/read", headers=headers) as answer:
                assert answer.status == 200
    assert len(asked) == 2  # of the proxy's own, and of its client
    assert parsed == []


async def test_a_conversation_keeps_its_connection_counted_until_it_ends(serve):
    served = serve(slots=2, max_sockets_per_address=2)
    async with (
        talking(served.url),
        talking(served.url),
        aiohttp.ClientSession() as http,
        http.get(served.url + "/healthz") as answer,
    ):
        assert answer.status == 503
    async with talking(served.url) as peer:
        assert await peer.is_alive()


def test_the_log_names_no_address(caplog):
    caplog.set_level(logging.DEBUG)
    doors = limits.Doors(ServerConfig(max_sockets_per_address=1))
    assert doors.enter("203.0.113.77")
    assert not doors.enter("203.0.113.77")
    assert "203.0.113.77" not in caplog.text
