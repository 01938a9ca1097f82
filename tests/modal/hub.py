"""A stand-in for the Hugging Face hub that refuses, as the real one does."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REFUSALS = {  # token sent or not -> status, error code
    "gated": (403, "GatedRepo", "Access to this model is restricted"),
    "no token": (401, "GatedRepo", "You must be authenticated to access it"),
}


class RefusingHub:
    """`with RefusingHub("gated") as hub:` … `hub.url` for HF_ENDPOINT."""

    def __init__(self, why: str) -> None:
        status, code, words = REFUSALS[why]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", words)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "RefusingHub":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
