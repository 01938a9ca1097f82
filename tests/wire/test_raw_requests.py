"""Requests that no browser sends, to a whole server with its page: what its log holds then."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.planted import PLANTED, SWEEP

ROOT = Path(__file__).parents[2]
TOKEN, PERSONA = "sk-very-secret", "You+are+Zebulon+who+plays+the+xylophone"
QUERY = f"token={TOKEN}&text_prompt={PERSONA}&voice=zanzibarine"
PATIENCE_SECONDS = 60.0
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
REQUESTS = {
    "an address that is too long": f"GET /api?{QUERY}{'x' * 20_000} HTTP/1.1\r\nHost: a\r\n\r\n",
    "a header that is too long": f"GET /?{QUERY} HTTP/1.1\r\nCookie: {TOKEN * 2000}\r\n\r\n",
    "raw bytes in the address": f"GET /api?{QUERY}\xff\xfe\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "raw bytes for a request": f"\x16\x03\x01{TOKEN}\xff\x00{PERSONA}\r\n\r\n",
    "control characters in Cookie": f"GET / HTTP/1.1\r\nHost: a\r\nCookie: a={TOKEN}\x01\r\n\r\n",
    "control characters in Authorization": (
        f"GET /api?{QUERY} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\x00\x7f\r\n\r\n"
    ),
    "a header without a colon": f"GET / HTTP/1.1\r\nHost: a\r\nzanzibarine {TOKEN}\r\n\r\n",
    "a bad length": f"POST /{PERSONA}?{QUERY} HTTP/1.1\r\nContent-Length: {TOKEN}\r\n\r\n",
    "bad chunks": f"POST /x?{QUERY} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    f"zanzibarine\r\n{PERSONA}\r\n\r\n",
    "a whole address": f"GET http://x/{PERSONA}?{QUERY} HTTP/1.1\r\nHost: a\r\n\r\n",
    "no version": f"GET /api?{QUERY}\r\n\r\n",
    "a bad upgrade": f"GET /api?{QUERY} HTTP/1.1\r\nHost: a\r\n{UPGRADE}"
    f"Sec-WebSocket-Key: {TOKEN}\r\n\r\n",
    "a page that is not there": f"GET /{PERSONA}?{QUERY} HTTP/1.1\r\nHost: a\r\n\r\n",
    "the page's server": f"GET /gradio_api/info?{QUERY} HTTP/1.1\r\nHost: a\r\n\r\n",
    "json that is none": f"POST /gradio_api/queue/join?{QUERY} HTTP/1.1\r\nHost: a\r\n"
    f"Content-Type: application/json\r\nContent-Length: {len(PERSONA)}\r\n\r\n{PERSONA}",
}  # fmt: skip


# It says which of Gradio's stubs for editors it opens.
DEMO = """
import sys
def note(event, args):
    if event == "open" and str(args[0]).endswith(".pyi"):
        sys.stderr.write(f"stub {args[0]}\\n")
sys.addaudithook(note)
from demo.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


class PageProcess:
    """`python -m demo` on a free port, as `make run` starts it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = folder / "output.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DEMO, "--model", "embedded", "--host", "127.0.0.1",
                 "--port", str(self.port), "--drain-s", "0", "--slots", "2"],
                stdout=log, stderr=log, cwd=ROOT,
                env={**os.environ, "PERSONAPLEX_TOKEN": TOKEN},
            )  # fmt: skip

    def wait_until_ready(self) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5).close()
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5).close()
            except OSError as error:
                if getattr(error, "code", 0) == 401:  # the page is there, too
                    return
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.log.read_text()[-2000:]}")

    def send(self, request: str) -> bytes:
        """Send a request as it is, hang up as far as we go, and read what comes."""
        address, answer = ("127.0.0.1", self.port), b""
        with socket.create_connection(address, timeout=PATIENCE_SECONDS) as raw:
            raw.sendall(request.encode("latin-1"))
            with suppress(OSError):  # a server that has hung up by now left nothing to shut
                raw.shutdown(socket.SHUT_WR)
            try:
                while part := raw.recv(65536):
                    answer += part
            except ConnectionError:
                pass
            return answer

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_SECONDS)
        return self.log.read_text(errors="replace")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The whole output of a server that got every one of these requests, some of them often."""
    server = PageProcess(tmp_path_factory.mktemp("page"))
    try:
        server.wait_until_ready()
        for request in REQUESTS.values():
            server.send(request)
        for _ in range(200):
            server.send(REQUESTS["control characters in Cookie"])
        return server.stop()
    finally:
        server.process.kill()
        server.process.wait()


def test_no_request_leaves_its_token_or_its_words_in_the_log(output):
    assert "listening on" in output
    assert SWEEP.search(output) == []
    assert not any(word.lower() in output.lower() for word in PLANTED)


def test_the_log_of_odd_requests_is_short_and_without_tracebacks(output):
    assert "Traceback" not in output
    assert len(output.splitlines()) < 120  # 60 of one line of code, and few others
    assert max(map(len, output.splitlines())) < 2000


def test_a_server_starts_without_gradios_stubs_for_editors(output):
    """Reading and writing them took a third of the seconds until the page was there."""
    assert "stub " not in output
