"""A stand-in for the Hugging Face hub: it serves a checkpoint, or refuses as the real one does."""

import hashlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from engine.weights import hub

COMMIT = "c0ffee".ljust(40, "0")
REFUSALS = {  # what -> status, error code, words
    "gated": (403, "GatedRepo", "Access to this model is restricted"),
    "no token": (401, "GatedRepo", "You must be authenticated to access it"),
    "bad token": (401, "", "Invalid credentials in Authorization header"),
    "limited": (429, "", "We had to rate limit your IP"),
    "down": (500, "", "Internal Error"),
}
BODY_FAULTS = ("cut", "wrong size", "slow")  # of the largest file


def make_files(size: int = 300_000) -> dict[str, bytes]:
    """Contents that are nothing but of the right names."""
    return {name: name.encode() * 10 for name in hub.FILES[:-1]} | {hub.LM_FILE: b"w" * size}


class FakeHub:
    """`with FakeHub("gated") as hub:` … `hub.url` for HF_ENDPOINT; no fault: it serves.

    `slow`: half of the largest file comes, then nothing until `go` is set; `entered` tells.
    """

    def __init__(self, fault: str = "", files: dict[str, bytes] | None = None) -> None:
        assert not fault or fault in (*REFUSALS, *BODY_FAULTS)
        self.files = files or make_files()
        self.fetched: Counter[str] = Counter()  # bodies that were asked for
        self.go, self.entered = threading.Event(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, send_body: bool) -> None:
                if fault in REFUSALS:
                    return self.refuse(*REFUSALS[fault])
                if self.path.startswith("/api/"):
                    return self.reply(b"{}", {}, send_body)
                name = unquote(self.path).rpartition("/")[2]
                body = outer.files[name]
                etag = hashlib.sha256(body).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
                if not send_body:
                    return self.reply(body, headers, False)
                outer.fetched[name] += 1
                if name != hub.LM_FILE or fault not in BODY_FAULTS:
                    return self.reply(body, headers, True)
                if fault == "wrong size":
                    return self.reply(body[:-1], headers, True)
                self.reply(body, headers, False)
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                outer.entered.set()
                if fault == "slow":
                    outer.go.wait(60)
                    self.wfile.write(body[len(body) // 2 :])
                self.close_connection = True

            def refuse(self, status: int, code: str, words: str) -> None:
                self.send_response(status)
                if code:
                    self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", words)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def reply(self, body: bytes, headers: dict[str, str], send_body: bool) -> None:
                self.send_response(200)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if send_body:
                    self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.answer(send_body=False)

            def do_GET(self) -> None:
                self.answer(send_body=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.go.set()
        self._server.shutdown()
        self._server.server_close()
