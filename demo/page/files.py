"""The files of the page as bytes: all that may be asked for, and nothing else.

Gradio renders the page and its theme once, when the server starts, and takes no request after that.
Nothing is lost by it: every listener is JavaScript, and the page keeps no state on the server. So
none of Gradio's routes can be reached (uploads, queues, event streams), and a page that loads costs
the loop that serves the sockets a few bytes. The other ways were measured: docs/internals.md.
"""

import base64
import functools
import gzip
import hashlib
import logging
import mimetypes
import re
from dataclasses import dataclass
from pathlib import Path

import gradio
import httpx

from demo.page.ui import STATIC, PageConfig, build_page, mount

FRONTEND = Path(gradio.__file__).parent / "templates" / "frontend"
RENDERED = ("/", "/theme.css", "/favicon.ico")  # by Gradio's application
RESIZER = "/static/js/iframeResizer.contentWindow.min.js"  # the page loads no other static file

# Gradio writes the address that it was asked by into the page. Behind a proxy that is not the
# browser's, so an expression stands there instead: the browser knows best where it got the page.
ASKED_BY = "http://page.invalid"
OWN_ADDRESS = 'new URL(".", location.href).href.slice(0, -1)'

ASK_AGAIN = "no-cache"  # a kept script must not meet a newer page
KEEP = "public, max-age=31536000, immutable"  # the name holds a hash of what is in it

INLINE_SCRIPT = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
MANIFEST = re.compile(r'<link rel="manifest"[^>]*>')  # of an app to install, which this is not
ICON = '<link rel="icon" href="favicon.ico">'  # else browsers ask the host's own /favicon.ico


@dataclass(frozen=True, slots=True)
class PageFile:
    """One answer, ready to be sent."""

    body: bytes
    packed: bytes  # by gzip
    content_type: str
    cache: str
    etag: str


class PageFiles:
    """Every path of the page. `render` it before `find`."""

    def __init__(self, config: PageConfig) -> None:
        self._config = config
        self._files: dict[str, PageFile] = {}
        self.script_hashes: list[str] = []  # of the page's inline scripts, for its policy

    def find(self, path: str) -> PageFile | None:
        return self._files.get(path)

    async def render(self) -> None:
        """Make them all. Raises RuntimeError if Gradio's part would not suit every visitor."""
        ours = {f"/pp/{path.name}": read(path, ASK_AGAIN) for path in STATIC.iterdir()}
        self._files = {**pack_frontend(), **ours}
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would tell of these requests
        transport = httpx.ASGITransport(mount(build_page(self._config)))
        async with httpx.AsyncClient(transport=transport, base_url=ASKED_BY) as client:
            for path in RENDERED:
                answer = (await client.get(path)).raise_for_status()
                body = self._finish(answer.text) if path == "/" else answer.content
                self._files[path] = pack(body, answer.headers["Content-Type"], ASK_AGAIN)

    def _finish(self, html: str) -> bytes:
        html = MANIFEST.sub(ICON, html.replace(f'"{ASKED_BY}"', OWN_ADDRESS))
        if ASKED_BY in html:
            raise RuntimeError("the page links to a file of Gradio's; put it into demo/page/static")
        hashes = (hashlib.sha256(script.encode()) for script in INLINE_SCRIPT.findall(html))
        self.script_hashes = [base64.b64encode(one.digest()).decode() for one in hashes]
        return html.encode()


@functools.cache
def pack_frontend() -> dict[str, PageFile]:
    """Gradio's browser code, all 19 MB of it: which parts a page loads, only the browser knows.

    It takes 0.7 s. Packed on demand, the first visitor would make the others' sockets wait.
    """
    paths = [f"/assets/{path.name}" for path in FRONTEND.glob("assets/*")]
    return {path: read(FRONTEND / path[1:], KEEP) for path in (*paths, RESIZER)}


def read(path: Path, cache: str) -> PageFile:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return pack(path.read_bytes(), kind, cache)


def pack(body: bytes, content_type: str, cache: str) -> PageFile:
    etag = hashlib.sha256(body).hexdigest()[:32]
    return PageFile(body, gzip.compress(body, mtime=0), content_type, cache, etag)
