"""What of the page can be reached: its own files. All that Gradio mounts beside them is closed."""

import asyncio
import re
import socket
import time

import pytest
from aiohttp import web

from tests.browser.serving import Served
from tests.demo import lazy_page

PATIENCE = 30  # seconds for an answer, on a machine of whatever speed
LOOP_SECONDS = 0.05  # of processor time that one refused request may cost the sockets' loop
OPEN = {"/", "/theme.css", "/favicon.ico", "/assets/{path:path}", "/static/{path:path}"}


def list_routes() -> list[tuple[str, str]]:
    """(method, path) of every route that this version of Gradio and FastAPI mounts."""

    async def build():  # outside of a running loop Gradio leaves loops open
        return lazy_page.mount(lazy_page.build_page(lazy_page.page_config()))

    def walk(routes, prefix):
        for route in routes:
            path = prefix + getattr(route, "path", "").removesuffix("/") or "/"
            if getattr(route, "methods", None):
                yield from ((method, path) for method in sorted(route.methods))
            original = getattr(route, "original_router", None)  # FastAPI's included routers
            inner = getattr(route, "routes", None) or getattr(original, "routes", None) or ()
            yield from walk(inner, path.removesuffix("/"))

    return sorted(set(walk(asyncio.run(build()).routes, "")))


@pytest.fixture(scope="module")
def routes():
    return list_routes()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page alone. `answers` counts what it has sent, `uploads` is where Gradio keeps files."""
    uploads = tmp_path_factory.mktemp("gradio")

    def make():
        app = web.Application()
        lazy_page.add_page(app, lazy_page.page_config())

        async def count(_request, _response):
            served.answers += 1

        app.on_response_prepare.append(count)
        return app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        with Served(make) as served:
            served.answers, served.uploads = 0, uploads
            yield served


def send(server, head: str, body: bytes = b"") -> tuple[int, str, bytes]:
    """One request on a connection of its own: status, head and body of the answer, to its end."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as line:
        line.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        data = b""
        while piece := line.recv(1 << 16):
            data += piece
    answer, _, content = data.partition(b"\r\n\r\n")
    return int(answer.split()[1]), answer.decode(), content


def ask(server, path: str, method: str = "GET", *headers: str, body: bytes = b""):
    lines = [f"{method} {path} HTTP/1.1", "Host: h", "Connection: close", *headers]
    return send(server, "\n".join(lines), body)


def loop_seconds(server) -> float:
    """Processor time that the thread of the sockets has used so far."""

    async def look():
        return time.thread_time()

    return asyncio.run_coroutine_threadsafe(look(), server.loop).result(PATIENCE)


# -- what Gradio mounts ----------------------------------------------------------------------------


def test_the_walk_sees_the_routes_that_did_harm(routes):
    paths = {path for _, path in routes}
    harmful = ("cancel", "queue/join", "queue/data", "upload", "process_recording", "dev/reload")
    assert {f"/gradio_api/{name}" for name in harmful} <= paths
    assert len(paths) > 50
    assert paths >= OPEN


def test_of_gradios_routes_only_the_pages_files_are_open(server, routes):
    wrong = []
    for method, path in routes:
        status, _, body = ask(server, re.sub(r"\{[^}]*\}", "x", path), method)
        if "{" not in path and path in OPEN:
            is_right = status == (200 if method in lazy_page.METHODS else 405)
        else:
            is_right = status == 404 and b"radio" not in body
        if not is_right:
            wrong.append((method, path, status))
    assert wrong == []


def test_the_pages_files_are_read_with_get_and_head_and_nothing_else(server):
    asset = next(lazy_page.FRONTEND.glob("assets/index-*.js")).name
    for path in ("/", f"/assets/{asset}", "/pp/main.js", "/theme.css?v=1", "/favicon.ico"):
        status, head, body = ask(server, path)
        assert (status, bool(body)) == (200, True)
        head_status, head_only, nothing = ask(server, path, "HEAD")
        assert (head_status, nothing) == (200, b"")
        length = re.search(r"Content-Length: \d+", head)[0]
        assert length in head_only
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            status, head, _ = ask(server, path, method)
            assert status == 405
            assert "Allow: GET, HEAD" in head


# -- hostile requests ------------------------------------------------------------------------------

MEGABYTE = 1 << 20
BODIES = [
    ("/gradio_api/cancel", "application/json", 10, 404),
    ("/gradio_api/queue/join", "application/json", 50, 404),
    ("/gradio_api/upload", "multipart/form-data; boundary=x", 200, 404),
    ("/gradio_api/process_recording", "multipart/form-data; boundary=x", 200, 404),
    ("/gradio_api/run/predict", "application/json", 50, 404),
    ("/login", "application/x-www-form-urlencoded", 10, 404),  # no token, so no login
    ("/", "application/json", 10, 405),
    ("/pp/main.js", "application/json", 10, 405),
    ("/nowhere", "application/octet-stream", 10_000, 404),
]


@pytest.mark.parametrize(("path", "kind", "megabytes", "status"), BODIES)
@pytest.mark.parametrize(
    "first", [b"", b'{"event_id": "', b"--x\r\nContent-Disposition: form-data"]
)
def test_a_body_is_refused_before_it_has_come(server, path, kind, megabytes, status, first):
    """The answer comes, and then the end of the line, though most of the body was never sent."""
    before = loop_seconds(server)
    headers = (f"Content-Type: {kind}", f"Content-Length: {megabytes * MEGABYTE}")
    assert ask(server, path, "POST", *headers, body=first)[0] == status
    assert loop_seconds(server) - before < LOOP_SECONDS
    assert list(server.uploads.iterdir()) == []


@pytest.mark.parametrize(("path", "status"), [("/gradio_api/upload", 404), ("/", 200)])
def test_a_chunked_body_without_end_is_refused_at_once(server, path, status):
    method = "GET" if status == 200 else "POST"
    assert (
        ask(server, path, method, "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n")[0] == status
    )


def test_who_asks_before_sending_a_body_is_not_told_to_go_on(server):
    headers = ("Expect: 100-continue", f"Content-Length: {50 * MEGABYTE}")
    assert ask(server, "/gradio_api/upload", "POST", *headers)[0] == 404


def test_a_client_that_sends_its_whole_body_is_cut_off(server):
    before = loop_seconds(server)
    body = b"x" * 64 * MEGABYTE  # more than the kernel's buffers hold
    head = ("POST /gradio_api/cancel HTTP/1.1", "Host: h", f"Content-Length: {len(body)}")
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as line:
        line.sendall("\r\n".join((*head, "\r\n")).encode())
        with pytest.raises(ConnectionError):
            line.sendall(body)
    assert loop_seconds(server) - before < LOOP_SECONDS


CLOSED = [
    "/gradio_api/heartbeat/abc",
    "/gradio_api/queue/data?session_hash=abc",
    "/gradio_api/dev/reload",
    "/gradio_api/startup-events",
    "/gradio_api/openapi.json",
    "/gradio_api/info",
    "/openapi.json",
    "/docs",
    "/config",
    "/manifest.json",
    "/monitoring",
    "/gradio_api/file=/etc/passwd",
    "/file=/etc/passwd",
    "/gradio_api/proxy=http://127.0.0.1:8998/healthz",
    "/gradio_api/file/etc/passwd",
    "/static/fonts/Ubuntu/Ubuntu-Bold.woff2",
    "/assets/",
    "/assets",
    "/pp",
    "/pp/",
    "/pp/.",
    "//",
    "/index.html",
    "/svelte/svelte.js",
]
UP = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%252f", "..\\", "..%5c", "%c0%ae%c0%ae/", "....//"]
UP += ["..;/", "%2e%2e%5c", "%u002e%u002e/", "\xe0\x80\xae./"]
CLOSED += [
    f"/{folder}/{up * 3}{target}"
    for folder in ("pp", "assets", "static/js")
    for up in UP
    for target in ("ui.py", "etc/passwd", "index.html")
]
CLOSED += ["/pp/main.js%00", "/pp/main.js%00.css", "/%00", "/pp/main.js/", "/pp//etc/passwd"]
CLOSED += ["/" + "a" * 7000, "/pp/" + "../" * 2000, "/" + "%61" * 2000, "/pp/MAIN.JS"]


@pytest.mark.parametrize("path", CLOSED, ids=lambda path: path[:60])
def test_every_other_path_is_closed(server, path):
    before = loop_seconds(server)
    status, _, body = ask(server, path)
    assert status == (404 if path.isascii() else 400)  # raw bytes are not even an HTTP request
    assert b"root:" not in body
    assert b"gradio" not in body
    assert loop_seconds(server) - before < LOOP_SECONDS


def test_a_path_beyond_all_measure_is_no_request(server):
    # not more than is read at once: a longer one may be reset before its answer is read
    assert ask(server, "/" + "a" * 8000)[0] == 404
    assert ask(server, "/" + "a" * 9000)[0] == 404


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://elsewhere.example/gradio_api/info", 404),
        ("http://elsewhere.example/", 200),  # our page: there is no other
        ("http://user:password@127.0.0.1/config", 404),
        ("*", 400),  # not even an HTTP request
        ("elsewhere.example:443", 400),
    ],
)
def test_an_address_in_full_reaches_nothing_else(server, target, status):
    got, _, body = ask(server, target)
    assert got == status
    assert status == 400 or b"elsewhere" not in body  # the parser names what it could not read


def test_a_tunnel_is_not_opened(server):
    assert ask(server, "elsewhere.example:443", "CONNECT")[0] == 404


@pytest.mark.parametrize(
    "header", ["X-Forwarded-Host", "Host", "X-Gradio-Server", "X-Forwarded-Proto"]
)
def test_the_page_repeats_nothing_of_the_request(server, header):
    """Else a cache in between would hand one visitor's header to the next."""
    lines = ["GET / HTTP/1.1", f"{header}: evil.example", "Connection: close"]
    status, head, body = send(server, "\n".join(lines + ([] if header == "Host" else ["Host: h"])))
    assert status == 200
    assert "evil" not in head
    assert b"evil" not in body


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/pp/main.js", "/theme.css", "/favicon.ico", "/nowhere"])
def test_every_answer_of_the_page_has_its_security_headers(server, path):
    for method in ("GET", "HEAD", "POST"):
        head = ask(server, path, method)[1]
        assert "X-Content-Type-Options: nosniff" in head
        assert "Referrer-Policy: no-referrer" in head
        policy = re.search("Content-Security-Policy: (.*)", head)[1]
        assert "frame-ancestors 'self'" in policy
        assert "object-src 'none'" in policy
        scripts = re.search("script-src ([^;]*)", policy)[1]
        assert "'unsafe-inline'" not in scripts
        assert not re.search(r"\*|https?:", scripts)
        assert not re.search(r"aiohttp|Python|\d\.\d", re.search("Server: (.*)", head)[1])


def test_an_answer_to_what_is_not_http_names_no_versions(server):
    status, head, _ = send(server, "GET\x01/ nonsense")
    assert status == 400
    assert "aiohttp" not in head


def test_what_the_browser_has_already_is_not_sent_again(server):
    for path in ("/", "/pp/main.js", "/theme.css"):
        etag = re.search("Etag: (.*)", ask(server, path)[1])[1].strip()
        for given in (etag, f'"other", W/{etag}', "*"):
            status, head, body = ask(server, path, "GET", f"If-None-Match: {given}")
            assert (status, body) == (304, b"")
            assert "Content-Security-Policy" in head
        assert ask(server, path, "GET", 'If-None-Match: "other"')[0] == 200
