"""The page's routes: GET and HEAD of its files. Every other path and method is closed.

A request's body is never read. Whoever sends one gets the answer at once, and then the line is cut.
"""

import gc

from aiohttp import web

from demo.page.files import PageFile, PageFiles
from demo.page.login import ask_for_token, hand_out_cookie
from demo.page.ui import PageConfig
from engine.config import ServerConfig
from engine.wire.server import expect_nothing, send_unread

METHODS = ("GET", "HEAD")

POLICY = (  # Content-Security-Policy
    "default-src 'self'",  # the socket, too: 'self' is wss: on https and ws: on http
    # Gradio's page has inline scripts, known by their hashes, and it makes functions of the
    # text of our js= listeners, which is eval.
    # It takes its modules out of one file, by addresses in its own memory (static/modules.js).
    "script-src 'self' blob: 'unsafe-eval' {hashes}",
    "style-src 'self' 'unsafe-inline'",  # Gradio's components set styles
    "img-src 'self' data:",  # check marks in Gradio's theme
    "media-src 'self' blob:",  # a voice's sample, and the recording
    "object-src 'none'",
    "base-uri 'self'",
    "form-action 'self'",  # the token's form
    "frame-ancestors {ancestors}",
)


def add_page(app: web.Application, page: PageConfig, config: ServerConfig | None = None) -> None:
    """Add the page to `app`. Call it last: it answers every path that is still free."""
    routes = PageRoutes(page, config or ServerConfig())
    app.on_startup.append(routes.start)
    app.on_response_prepare.append(routes.protect)
    app.router.add_route("*", "/{path:.*}", routes.handle, expect_handler=expect_nothing)


class PageRoutes:
    def __init__(self, page: PageConfig, config: ServerConfig) -> None:
        address = f"{config.root_path.rstrip('/')}/" if "://" in config.root_path else ""
        self._files, self._config = PageFiles(page, address), config
        self._headers: dict[str, str] = {}

    async def start(self, _: web.Application) -> None:
        await self._files.render()
        hashes = " ".join(f"'sha256-{one}'" for one in self._files.script_hashes)
        policy = "; ".join(POLICY).format(hashes=hashes, ancestors=self._config.frame_ancestors)
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        # Gradio leaves half a million objects. Looking through them for garbage takes 0.2 s, in
        # the middle of everybody's talk, so the collector is told to leave them alone.
        gc.collect()
        gc.freeze()

    async def protect(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._headers)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        return await send_unread(request, self._answer(request))

    def _answer(self, request: web.Request) -> web.Response:
        path = request.path
        if path and path == self._config.base_path:  # the page's own links begin below it
            query = request.rel_url.raw_query_string
            found = {"Location": f"{path}/?{query}" if query else f"{path}/"}
            return web.Response(status=308, headers=found | {"Cache-Control": "no-store"})
        if self._config.base_path and path.startswith(f"{self._config.base_path}/"):
            path = path.removeprefix(self._config.base_path)
        file = self._files.find(path)
        if file is None:
            return web.Response(status=404, text="404: there is no such page; use /\n")
        if request.method not in METHODS:
            headers = {"Allow": ", ".join(METHODS)}
            return web.Response(status=405, text="405: use GET\n", headers=headers)
        if not self._config.token or path != "/":  # its scripts are no secret
            return send_file(request, file)
        return ask_for_token(request) or hand_out_cookie(send_file(request, file), request)


def send_file(request: web.Request, file: PageFile) -> web.Response:
    """The file, packed if the browser can unpack it, or 304 if it has it already."""
    response = web.Response(headers={"Cache-Control": file.cache, "Vary": "Accept-Encoding"})
    response.etag = file.etag
    if any(tag.value in (file.etag, "*") for tag in request.if_none_match or ()):
        response.set_status(304)
        return response
    response.headers["Content-Type"] = file.content_type
    packed = "gzip" in request.headers.get("Accept-Encoding", "")
    if packed:
        response.headers["Content-Encoding"] = "gzip"
    response.body = file.packed if packed else file.body
    return response
