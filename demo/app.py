"""The whole web application of port 8998: the engine's routes first, the page for all the rest."""

from aiohttp import web

from demo.page.routes import add_page
from demo.page.ui import PageConfig
from engine.commands.serve import run_app
from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.wire.server import add_routes


def build_app(engine: Service, config: ServerConfig) -> web.Application:
    """`/api`, `/healthz` and the others natively, then the page."""
    app = web.Application()
    add_routes(app, engine, config)
    voice = config.voice if config.voice in engine.voices else engine.voices[0]
    routing = engine.answers.on if engine.answers else None
    add_page(app, PageConfig(engine.voices, engine.personas, voice, routing), config.token)
    return app


async def serve(engine: Service, config: ServerConfig) -> int:
    """Serve page and socket until a signal, or until the engine dies; the exit code."""
    return await run_app(build_app(engine, config), engine, config)
