"""Who may talk, and what a server does with requests that no library of today would send."""

import asyncio
import gc
import json
import socket
import warnings

import aiohttp
import pytest
from aiohttp import web

from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.errors import ModelError
from engine.runtime.embedded import EmbeddedBackend
from engine.wire.protocol import Kind
from engine.wire.server import add_routes, listening
from tests.wire.peer import connected, eventually
from tests.wire.raw import BINARY, CLOSE, PING, PONG, UPGRADE, frame, raw, request

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


PATHS = {
    **dict.fromkeys(("/api", "/api/chat", "/v1/realtime"), "a WebSocket"),
    **dict.fromkeys(("/healthz", "/voices", "/metrics"), "GET"),
}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(("path", "how"), PATHS.items())
async def test_another_method_is_told_which_one_to_use(server, path, how, method):
    async with raw(server.url) as line:
        await line.send(request(path, method))
        head = await line.read_head()
        body = await line.reader.readexactly(int(field(head, "Content-Length")))
    assert head.startswith(b"HTTP/1.1 405")
    assert field(head, "Allow") == "GET, HEAD"
    assert body.decode() == f"405: {path} is no place for {method}; use {how}\n"


@pytest.mark.parametrize("asks", [{}, {"Expect": "100-continue"}])
async def test_a_body_is_refused_before_it_has_come(server, asks):
    async with raw(server.url) as line:
        await line.send(request("/api", "POST", Content_Length="10000000", **asks) + b'{"a": ')
        assert (await line.read_head()).startswith(b"HTTP/1.1 405")
        assert await line.is_closed()


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


# -- addresses that clients try --------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/ws", "/ws/chat", "/api/", "/api/chat/", "/healthz", "/x"])
async def test_a_socket_at_a_wrong_path_is_told_the_right_one(server, path):
    async with raw(server.url) as line:
        await line.send(request(path, **UPGRADE))
        head = await line.read_head()
        body = json.loads(await line.reader.readexactly(int(field(head, "Content-Length"))))
    assert head.startswith(b"HTTP/1.1 404")
    assert field(head, "Content-Type").startswith("application/json")
    assert body["socket"] == "/api"
    assert "connect to /api" in body["error"]


@pytest.mark.parametrize("path", ["/realtime", "/v1/realtime/", "/openai/realtime"])
async def test_a_realtime_client_at_a_wrong_path_is_told_its_own(server, path):
    _status, body = await ask_for_socket(server.url, path)
    assert body["socket"] == "/v1/realtime"


def field(head, name):
    lines = (line.partition(": ") for line in head.decode().split("\r\n"))
    return next(value for key, _, value in lines if key.lower() == name.lower())


async def test_a_wrong_path_is_in_the_log_without_its_words(serve, caplog):
    async with raw(serve(slots=1).url) as line:
        await line.send(request("/zanzibarine", **UPGRADE))
        await line.read_head()
    assert "a WebSocket was asked for at a path that has none" in caplog.text


async def test_prefixes_that_a_client_makes_up_are_one_line_in_the_log_and_not_named(serve, caplog):
    url = serve(slots=1).url
    for n in range(5):
        await ask_for_socket(url, "/ws", X_Forwarded_Prefix=f"/zanzibarine{n}")
    assert caplog.text.count("a WebSocket was asked for") == 1
    assert "zanzibarine" not in caplog.text


async def test_a_server_under_a_path_answers_there_and_at_its_own_root(serve):
    under = serve(slots=1, root_path="voice/")
    for root in ("", "/voice"):
        assert (await get(under.url, f"{root}/healthz"))[0] == 200
        assert (await get(under.url, f"{root}/voices"))[0] == 200
        async with connected(under.url, f"{root}/api") as peer:
            await peer.until(Kind.HANDSHAKE)
    status, body = await ask_for_socket(under.url, "/voice/ws")
    assert (status, body["socket"]) == (404, "/voice/api")


@pytest.mark.parametrize(
    ("prefix", "told"),
    [
        ("/voice", "/voice/api"),
        ("/voice/", "/voice/api"),
        ("//evil.example", "/api"),
        ("/a b", "/api"),
    ],
)
async def test_a_proxy_says_under_which_path_it_shows_us(serve, prefix, told):
    server = serve(slots=1)
    _status, body = await ask_for_socket(server.url, "/ws", X_Forwarded_Prefix=prefix)
    assert body["socket"] == told


async def ask_for_socket(url, path, **headers):
    async with raw(url) as line:
        await line.send(request(path, **UPGRADE, **headers))
        head = await line.read_head()
        body = await line.reader.readexactly(int(field(head, "Content-Length")))
        return int(head.split()[1]), json.loads(body)


# -- how sockets begin and end ---------------------------------------------------------------------


@pytest.mark.parametrize("offered", ["chat", "a.b, second", "openai-insecure-api-key.x"])
async def test_the_first_sub_protocol_is_answered(server, offered):
    async with raw(server.url) as line:
        await line.send(request("/api", **UPGRADE, Sec_WebSocket_Protocol=offered))
        head = await line.read_head()
    assert field(head, "Sec-WebSocket-Protocol") == offered.split(",")[0]


@pytest.mark.parametrize(
    ("payload", "answered"),
    [(b"\x03\xe8", 1000), (b"\x03\xe9bye", 1001), (b"\x0f\xa1", 4001), (b"", 1000)],
)
async def test_a_clients_close_code_comes_back(server, payload, answered):
    async with raw(server.url) as line:
        await line.upgrade()
        await line.until(BINARY, b"\0")
        await line.send(frame(payload, CLOSE))
        assert await line.close_code() == answered


@pytest.mark.parametrize("size", [(4 << 20) + 1, 6 << 20])
async def test_a_message_over_4_mib_gets_a_reason_and_1009(server, size):
    async with connected(server.url, format="pcm16") as peer:
        await peer.until(Kind.HANDSHAKE)
        await peer.send(Kind.AUDIO, bytes(size))
        text, code = await peer.end()
    assert text == "too fast: a message has more than 4 MiB; send at most 256 KiB"
    assert code == 1009


# -- personas of any script ------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["漢", "😀", "ب", "a", " "])
async def test_a_persona_of_4000_characters_of_any_script_fits_into_an_address(server, character):
    async with connected(server.url, text_prompt=character * 4000, events=1) as peer:
        await peer.until(Kind.HANDSHAKE)


async def test_a_long_persona_may_come_in_the_first_message(server):
    async with connected(server.url, open=1, events=0) as peer:
        await peer.tell(
            type="open", text_prompt="😀" * 4000, voice="natm1.pt", format="pcm16", events=True
        )
        ready = await peer.event("ready")
        await peer.until(Kind.HANDSHAKE)
    assert (ready["voice"], ready["format"]) == ("NATM1", "pcm16")


async def test_without_an_opening_message_its_absence_is_explained(server, monkeypatch):
    monkeypatch.setattr("engine.wire.server.OPEN_SECONDS", 0.1)
    async with connected(server.url, open=1) as peer:
        text, code = await peer.end()
    assert text.startswith("bad parameter: no message came in 0 s; send {")
    assert code == 1008


@pytest.mark.parametrize("first", [b"", b"\1OggS", b"\7hello", b"\x63"])
async def test_another_message_before_the_opening_one_is_explained(server, first):
    async with connected(server.url, open=1) as peer:
        await peer.ws.send_bytes(first)
        text, code = await peer.end()
    assert text.startswith("bad parameter: another message came first; send {")
    assert code == 1008


async def test_a_client_that_pings_or_leaves_before_its_opening_message_is_no_fault(server, caplog):
    async with connected(server.url, open=1) as peer:
        await peer.ws.ping(b"there?")
        await peer.tell(type="open")
        await peer.until(Kind.HANDSHAKE)
    async with connected(server.url, open=1):
        pass
    await eventually(lambda: not server.engine.sessions)
    assert "error" not in caplog.text.lower()


# -- voices whose file went bad --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (ModelError("/models/v/x.wav: a voice of 0.08 s is too short"), "x.wav: a voice of 0.08 s"),
        (FileNotFoundError(2, "No such file or directory", "/models/v/x.pt"), "No such file"),
    ],
)
async def test_a_voice_that_cannot_be_read_reaches_its_client_with_the_cause(serve, fault, told):
    class Unreadable(EmbeddedBackend):
        def prepare(self, opening):
            raise fault

    async with connected(serve(load=lambda _progress: Unreadable(1)).url) as peer:
        text, code = await peer.end()
    assert text.startswith("bad parameter: voice NATF2 cannot be used: ")
    assert told in text
    assert "/models" not in text
    assert code == 1008


@pytest.mark.parametrize("turns", range(6))
async def test_who_comes_while_a_server_closes_leaves_no_socket_behind(turns):
    """turns: of the event loop between the connects and the end."""
    app = web.Application()
    add_routes(app, Service(lambda _progress: EmbeddedBackend(1)), ServerConfig())
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        async with listening(app, "127.0.0.1", 0) as port:
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
            for _ in range(turns):
                await asyncio.sleep(0)
        for client in clients:
            client.close()
        gc.collect()
    assert [str(one.message) for one in noted if one.category is ResourceWarning] == []
