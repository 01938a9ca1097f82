"""The page's routes: our scripts under /pp/, and Gradio behind the bridge for all other paths."""

from aiohttp import web

from demo.bridge import Bridge
from demo.page.login import require_token
from demo.page.ui import STATIC, PageConfig, build_page, mount

SCRIPTS = "/pp"


def add_page(app: web.Application, config: PageConfig, token: str = "") -> None:
    """Add the page to `app`. Call it last: it answers every path that is still free."""
    bridge = Bridge(mount(build_page(config)))
    app.cleanup_ctx.append(bridge.lifespan)
    app.on_response_prepare.append(revalidate_scripts)
    app.router.add_static(SCRIPTS, STATIC)
    app.router.add_route("*", "/{path:.*}", require_token(bridge.handle, token))


async def revalidate_scripts(request: web.Request, response: web.StreamResponse) -> None:
    """Make browsers ask before they use a kept script: an old one must not meet a new one."""
    if request.path.startswith(f"{SCRIPTS}/"):
        response.headers["Cache-Control"] = "no-cache"
