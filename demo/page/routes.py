"""The page's own routes: our scripts under /pp/, Gradio behind the bridge for all the rest."""

from pathlib import Path

from aiohttp import web

from demo.bridge import Bridge
from demo.page.login import gated
from demo.page.ui import PageConfig, build_page, mount

STATIC = Path(__file__).parent / "static"
SCRIPTS = "/pp"


def add_page(app: web.Application, config: PageConfig, token: str = "") -> None:
    """Add the page to `app`. Call it last: it answers every path that nobody else does."""
    bridge = Bridge(mount(build_page(config)))
    app.cleanup_ctx.append(bridge.lifespan)
    app.on_response_prepare.append(always_ask_for_scripts)
    app.router.add_static(SCRIPTS, STATIC)
    app.router.add_route("*", "/{path:.*}", gated(bridge.handle, token))


async def always_ask_for_scripts(request: web.Request, response: web.StreamResponse) -> None:
    """Browsers ask each time before they use a kept script: no old one meets a new one."""
    if request.path.startswith(f"{SCRIPTS}/"):
        response.headers["Cache-Control"] = "no-cache"
