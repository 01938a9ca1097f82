"""Every point that a bridge gets wrong, on small ASGI applications."""

import asyncio
import logging

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from demo.bridge import Bridge


class App:
    """An ASGI application whose HTTP answer is the test's own function."""

    def __init__(self, http=None, startup="complete"):
        self.http = http
        self.startup = startup
        self.scopes = []
        self.life = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        self.scopes.append(scope)
        await self.http(receive, send)

    async def _live(self, receive, send):
        for phase in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{phase}"
            self.life.append(phase)
            result = self.startup if phase == "startup" else "complete"
            await send({"type": f"lifespan.{phase}.{result}", "message": "no luck"})


@pytest.fixture
async def serve():
    clients = []

    async def start(asgi):
        bridge = Bridge(asgi)
        app = web.Application()
        app.cleanup_ctx.append(bridge.lifespan)
        app.router.add_route("*", "/{path:.*}", bridge.handle)
        client = TestClient(TestServer(app))
        await client.start_server()
        clients.append(client)
        return client

    yield start
    for client in clients:
        await client.close()


def answer(body=b"", status=200, headers=()):
    async def http(_receive, send):
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    return http


async def test_the_scope_is_what_starlette_reads(serve):
    app = App(answer(b"x"))
    client = await serve(app)
    await client.get("/a%20b/c%2Fd?q=%C3%A9&q=2", headers={"X-Thing": "One"})
    (scope,) = app.scopes
    assert scope["type"] == "http"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert scope["method"] == "GET"
    assert scope["path"] == "/a b/c/d"
    assert scope["raw_path"] == b"/a%20b/c%2Fd"
    assert scope["query_string"] == b"q=%C3%A9&q=2"
    assert scope["root_path"] == ""
    assert scope["scheme"] == "http"
    assert (b"x-thing", b"One") in scope["headers"]
    assert scope["client"][0] == "127.0.0.1"
    assert scope["server"] == ("127.0.0.1", client.port)


@pytest.mark.parametrize(
    ("forwarded", "scheme"), [("https", "https"), ("https,http", "https"), ("gopher", "http")]
)
async def test_a_proxy_is_believed_about_https_and_nothing_else(serve, forwarded, scheme):
    app = App(answer())
    await (await serve(app)).get("/", headers={"X-Forwarded-Proto": forwarded})
    assert app.scopes[0]["scheme"] == scheme


async def test_a_body_arrives_whole_in_pieces(serve):
    sizes = []

    async def http(receive, send):
        more, body = True, b""
        while more:
            message = await receive()
            body += message["body"]
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await answer(body[-3:] + str(len(body)).encode())(receive, send)

    client = await serve(App(http))
    response = await client.post("/", data=b"a" * 500_000 + b"end")
    assert await response.text() == "end500003"
    assert len(sizes) > 1


async def test_after_the_body_receive_waits_until_the_response_has_ended(serve):
    told = []

    async def http(receive, send):
        await receive()
        waiting = asyncio.create_task(receive())
        await asyncio.sleep(0)
        assert not waiting.done()
        await answer(b"done")(receive, send)
        told.append((await waiting)["type"])

    client = await serve(App(http))
    assert await (await client.get("/")).text() == "done"
    assert told == ["http.disconnect"]


async def test_equal_named_headers_all_arrive(serve):
    cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    response = await (await serve(App(answer(b"", 200, cookies)))).get("/")
    assert response.headers.getall("Set-Cookie") == ["a=1", "b=2"]


async def test_a_head_request_gets_no_body_and_the_connection_stays_good(serve):
    headers = [(b"content-length", b"22")]  # as Gradio does: 405, and a body all the same
    client = await serve(App(answer(b'{"detail":"not here"}\n', 405, headers)))
    async with client.head("/") as response:
        assert response.status == 405
        assert await response.read() == b""
    async with client.get("/") as response:
        assert await response.text() == '{"detail":"not here"}\n'


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_are_not_chunked(serve, status):
    client = await serve(App(answer(b"", status)))
    for _ in range(2):  # a stray chunk end would break the second one
        async with client.get("/") as response:
            assert response.status == status
            assert "Transfer-Encoding" not in response.headers


async def test_a_length_is_kept_and_else_the_answer_is_chunked(serve):
    client = await serve(App(answer(b"abc", 200, [(b"content-length", b"3")])))
    async with client.get("/") as response:
        assert response.headers["Content-Length"] == "3"
    client = await serve(App(answer(b"abc")))
    async with client.get("/") as response:
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert await response.text() == "abc"


async def test_a_stream_arrives_piece_by_piece(serve):
    go_on = asyncio.Event()

    async def http(_receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async with (await serve(App(http))).get("/") as response:
        assert await response.content.readany() == b"one"
        go_on.set()
        assert await response.content.read() == b"two"


async def test_a_client_that_leaves_a_talking_stream_shows_as_os_error(serve, caplog):
    over = asyncio.Event()

    async def http(_receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 9999, "more_body": True})
                await asyncio.sleep(0)
        except OSError:
            over.set()
            raise
        finally:
            over.set()

    client = await serve(App(http))
    response = await client.get("/")
    response.close()
    await asyncio.wait_for(over.wait(), 10)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_leaves_a_silent_stream_ends_it(serve, caplog):
    ended = asyncio.Event()

    async def http(_receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        try:
            await asyncio.Event().wait()  # like an SSE with nothing to tell
        finally:
            ended.set()

    client = await serve(App(http))
    response = await client.get("/")
    assert await response.content.readany() == b"hello"
    response.close()
    await asyncio.wait_for(ended.wait(), 10)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_startup_and_shutdown_run_once_each():
    app = App(answer(b"ok"))
    bridge = Bridge(app)
    server = web.Application()
    server.cleanup_ctx.append(bridge.lifespan)
    async with TestClient(TestServer(server)):
        assert app.life == ["startup"]
    assert app.life == ["startup", "shutdown"]


async def test_an_application_that_cannot_start_stops_the_server():
    server = web.Application()
    server.cleanup_ctx.append(Bridge(App(startup="failed")).lifespan)
    client = TestClient(TestServer(server))
    with pytest.raises(RuntimeError, match="startup failed: no luck"):
        await client.start_server()
    await client.close()


async def test_an_application_that_breaks_at_the_start_names_the_cause():
    async def broken(_scope, _receive, _send):
        raise ValueError("wires crossed")

    server = web.Application()
    server.cleanup_ctx.append(Bridge(broken).lifespan)
    client = TestClient(TestServer(server))
    with pytest.raises(RuntimeError, match="startup gave no answer") as caught:
        await client.start_server()
    assert "wires crossed" in str(caught.value.__cause__)
    await client.close()
