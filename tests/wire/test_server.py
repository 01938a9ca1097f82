"""Who may talk, and what a server does with requests that no library of today would send."""

import asyncio

import aiohttp
import pytest

from engine.wire.protocol import Kind
from tests.wire.peer import connected
from tests.wire.raw import BINARY, PING, PONG, UPGRADE, frame, raw, request

TOKEN = "open-sesame"


@pytest.fixture
def guarded(serve):
    """A new one for each test: wrong tokens are remembered."""
    return serve(slots=2, token=TOKEN)


async def get(url, path, **headers):
    """(status, text) of a request with these headers."""
    async with aiohttp.ClientSession() as http, http.get(url + path, headers=headers) as answer:
        return answer.status, await answer.text()


# -- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [TOKEN, f"Basic {TOKEN}", f"Bearer{TOKEN}", f"Token {TOKEN}"])
async def test_a_token_without_the_scheme_bearer_is_refused(guarded, header):
    async with connected(guarded.url, headers={"Authorization": header}) as peer:
        text, code = await peer.end()
    assert text.startswith("unauthorized: ")
    assert code == 1008


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_may_be_written_in_any_case(guarded, scheme):
    async with connected(guarded.url, headers={"Authorization": f"{scheme} {TOKEN}"}) as peer:
        assert await peer.until(Kind.HANDSHAKE) == b""


@pytest.mark.parametrize("origin", ["*", "null", "http://[", "https://", "https://*"])
async def test_an_origin_that_is_none_may_not_use_the_cookie(guarded, origin):
    headers = {"Cookie": f"personaplex_token={TOKEN}", "Origin": origin}
    async with connected(guarded.url, headers=headers) as peer:
        text, code = await peer.end()
    assert text.startswith("unauthorized: this page's origin")
    assert code == 1008


async def test_the_eleventh_wrong_token_of_a_minute_is_not_looked_at(guarded):
    for n in range(10):
        async with connected(guarded.url, token=f"guess {n}") as peer:
            text, _code = await peer.end()
        assert text.startswith("unauthorized: the token is wrong")
    for token in ("guess 11", TOKEN):
        async with connected(guarded.url, token=token) as peer:
            text, code = await peer.end()
        assert text.startswith("unauthorized: too many wrong tokens")
        assert code == 1008
        status, _text = await get(guarded.url, "/metrics", Authorization=f"Bearer {token}")
        assert status == 429


async def test_who_guesses_does_not_lock_out_another_address(guarded):
    guesser = {"X-Forwarded-For": "198.51.100.7", "Authorization": "Bearer guess"}
    for _ in range(11):
        status, _text = await get(guarded.url, "/metrics", **guesser)
    assert status == 429
    other = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9", "Authorization": f"Bearer {TOKEN}"}
    assert (await get(guarded.url, "/metrics", **other))[0] == 200


async def test_a_missing_token_is_no_guess(guarded):
    for _ in range(12):
        assert (await get(guarded.url, "/metrics"))[0] == 401
    status, _text = await get(guarded.url, "/metrics", Authorization=f"Bearer {TOKEN}")
    assert status == 200


async def test_with_a_token_only_health_and_voices_stay_open(guarded, serve):
    assert (await get(guarded.url, "/healthz"))[0] == 200
    assert (await get(guarded.url, "/voices"))[0] == 200
    status, text = await get(guarded.url, "/metrics")
    assert status == 401
    assert "personaplex_" not in text
    opened = serve(slots=1, token=TOKEN, open_metrics=True)
    status, text = await get(opened.url, "/metrics")
    assert status == 200
    assert "personaplex_ticks_total" in text


# -- requests and frames ---------------------------------------------------------------------------


async def test_a_head_request_opens_no_conversation(server):
    async with raw(server.url) as line:
        await line.send(request("/api", method="HEAD", **UPGRADE))
        assert (await line.read_head()).startswith(b"HTTP/1.1 426")
    assert not server.engine.sessions


@pytest.mark.parametrize(  # no control frame is longer than 125
    ("opcode", "size"),
    [
        *((BINARY, size) for size in (0, 1, 125, 126, 70_000)),
        *((PING, size) for size in (0, 1, 125)),
    ],
)
async def test_an_unmasked_frame_closes_the_socket(server, size, opcode):
    async with raw(server.url) as line:
        await line.upgrade()
        await line.send(frame(b"\6fine"))
        assert await line.until(BINARY, b"\6") == b"\6fine"
        await line.send(frame(bytes([6]) * size, opcode, masked=False))
        assert await line.close_code() == 1002


@pytest.mark.parametrize("cut", range(1, 8))
async def test_an_unmasked_frame_is_noticed_wherever_tcp_cuts_it(server, cut):
    async with raw(server.url) as line:
        await line.upgrade()
        await line.send(frame(b"\6" + b"x" * 300))
        await line.until(BINARY, b"\6")
        data = frame(b"\6" + b"y" * 130) + frame(b"\6z", masked=False)
        at = len(data) - cut if cut < 4 else cut - 3
        await line.send(data[:at])
        await asyncio.sleep(0.01)  # so that it is a read of its own; both ways it must hold
        await line.send(data[at:])
        assert await line.until(BINARY, b"\6y")
        assert await line.close_code() == 1002


async def test_masked_frames_arrive_whole_wherever_tcp_cuts_them(server):
    payloads = [
        b"\6" + bytes([65 + n]) * size for n, size in enumerate((0, 1, 124, 125, 300, 70000))
    ]
    data = b"".join(frame(payload) for payload in payloads)
    async with raw(server.url) as line:
        await line.upgrade()
        for at in range(20):
            await line.send(data[at : at + 1])
            await asyncio.sleep(0)
        await line.send(data[20:])
        for payload in payloads:
            assert await line.until(BINARY, b"\6") == payload


async def test_a_message_in_endless_pieces_closes_the_socket(server):
    async with raw(server.url) as line:
        await line.upgrade()
        await line.send(frame(b"\6", BINARY, fin=False) + frame(b"x", 0, fin=False) * 2000)
        assert await line.close_code() == 1002


async def test_a_message_in_pieces_with_a_ping_between_them_is_one_message(server):
    async with raw(server.url) as line:
        await line.upgrade()
        await line.send(frame(b"\6a", BINARY, fin=False) + frame(b"now", PING))
        await line.send(frame(b"b", 0, fin=False) * 900 + frame(b"c", 0))
        assert await line.until(PONG) == b"now"
        assert await line.until(BINARY, b"\6") == b"\6a" + b"b" * 900 + b"c"
