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
import html
import logging
import mimetypes
import re
from dataclasses import dataclass
from pathlib import Path

import httpx

from demo.page.bundle import ASSETS, make_bundle
from demo.page.ui import SAMPLES, STATIC, TITLE, PageConfig, build_page, mount

HERE = Path(__file__).parent
PICTURES = HERE.parents[1] / "assets" / "page"  # the icon, and what a link's preview shows
DESCRIPTION = (
    "Talk with PersonaPlex as with a person: it hears you while it speaks, and you may interrupt."
)

# Gradio writes the address that it was asked by into the page. Behind a proxy that is not the
# browser's, so an expression stands there instead: the browser knows best where it got the page.
ASKED_BY = "http://page.invalid"
OWN_ADDRESS = 'new URL(".", document.baseURI).href.slice(0, -1)'

ASK_AGAIN = "no-cache"  # a kept file must not meet a newer page
KEEP = "public, max-age=31536000, immutable"  # the name holds a hash of what is in it
SMALL, QUICK = 9, 1  # gzip's levels: 19 MB become 6.3 MB in 0.8 s or 7.1 MB in 0.25 s

CONFIG = re.compile(r"<script>window\.gradio_config = .*?</script>.*?</script>", re.DOTALL)
INLINE_SCRIPT = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)


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

    def __init__(self, config: PageConfig, address: str = "") -> None:
        self._config = config
        self._address = address  # where the page is seen, for previews of links; empty: unknown
        self._files: dict[str, PageFile] = {}
        self.script_hashes: list[str] = []  # of the page's inline scripts, for its policy

    def find(self, path: str) -> PageFile | None:
        return self._files.get(path)

    async def render(self) -> None:
        """Make them all. Raises RuntimeError if Gradio's part would not suit every visitor."""
        ours = {f"/pp/{path.name}": path for path in (*STATIC.iterdir(), *PICTURES.iterdir())}
        for path in SAMPLES.glob("*/*.opus"):
            ours[f"/pp/voices/{path.parent.name}/{path.name}"] = path
        self._files = pack_frontend() | {name: read(p, ASK_AGAIN) for name, p in ours.items()}
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would tell of these requests
        page = build_page(self._config)
        transport = httpx.ASGITransport(mount(page))
        async with httpx.AsyncClient(transport=transport, base_url=ASKED_BY) as client:
            theme = (await client.get("/theme.css")).raise_for_status()
            shell = (await client.get("/")).raise_for_status().text
        self._files["/favicon.ico"] = self._files["/pp/icon.png"]  # who asks without reading
        self._files["/theme.css"] = pack(theme.content, "text/css", KEEP)
        components = {component["type"] for component in page.config["components"]}
        bundle = make_bundle(shell, components, STATIC)
        names = {
            "script": self._keep(bundle.script, "js", "text/javascript"),
            "style": self._keep(bundle.style, "css", "text/css"),
            "theme": f"theme.css?v={page.theme_hash}",
        }
        self._files["/"] = pack(self._finish(shell, names), "text/html; charset=utf-8", ASK_AGAIN)

    def _keep(self, text: str, ending: str, kind: str) -> str:
        """Offer a text under a name that holds its hash; the name, below the page."""
        body = text.encode()
        path = f"/pp/page-{hashlib.sha256(body).hexdigest()[:16]}.{ending}"
        self._files[path] = pack(body, f"{kind}; charset=utf-8", KEEP)
        return path[1:]

    def _finish(self, shell: str, names: dict[str, str]) -> bytes:
        """Our own page, with what Gradio's page says of the components."""
        config = CONFIG.search(shell)
        if config is None:
            raise RuntimeError("Gradio's page has no config; adapt demo/page/files.py")
        page = (HERE / "html" / "page.html").read_text(encoding="utf-8")
        texts = names | {
            "title": html.escape(TITLE),
            "description": html.escape(DESCRIPTION),
            "address": html.escape(self._address),
            # Chromium asks for an address again when a call begins; this it has.
            "icon": base64.b64encode((PICTURES / "icon.svg").read_bytes()).decode(),
            "config": config[0].replace(f'"{ASKED_BY}"', OWN_ADDRESS),
        }
        page = re.sub(r"\{\{(\w+)\}\}", lambda name: texts[name[1]], page)
        if ASKED_BY in page:
            raise RuntimeError("the page links to a file of Gradio's; put it into demo/page/static")
        hashes = (hashlib.sha256(script.encode()) for script in INLINE_SCRIPT.findall(page))
        self.script_hashes = [base64.b64encode(one.digest()).decode() for one in hashes]
        return page.encode()


@functools.cache
def pack_frontend() -> dict[str, PageFile]:
    """Gradio's browser code, all 19 MB of it, for what the bundle has overlooked.

    It takes 0.4 s: packed quickly, for it is hardly ever asked for. Packed on demand, the first
    visitor would make the others' sockets wait.
    """
    return {f"/assets/{path.name}": read(path, KEEP, QUICK) for path in ASSETS.iterdir()}


def read(path: Path, cache: str, level: int = SMALL) -> PageFile:
    known = "audio/ogg" if path.suffix == ".opus" else mimetypes.guess_type(path.name)[0]
    kind = known or "application/octet-stream"
    return pack(path.read_bytes(), kind, cache, level)


def pack(body: bytes, content_type: str, cache: str, level: int = SMALL) -> PageFile:
    etag = hashlib.sha256(body).hexdigest()[:32]
    return PageFile(body, gzip.compress(body, level, mtime=0), content_type, cache, etag)
