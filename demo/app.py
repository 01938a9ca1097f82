"""The web application of port 8998: the engine's routes first, the page for all other paths."""

from aiohttp import web

from demo.page.routes import add_page
from demo.page.ui import PageConfig
from engine.config import ServerConfig
from engine.dialogue.service import Service
from engine.weights.voices import choose_voice
from engine.wire.server import add_routes

NO_KEY = "Nothing can be looked up: this server has no key for it."


def build_app(service: Service, config: ServerConfig) -> web.Application:
    """`/api`, `/healthz` and the others natively, then the page."""
    app = web.Application()
    add_routes(app, service, config)
    voice = choose_voice(None, config.voice, service.voices)
    answers = service.answers
    routing = answers.on if answers else None
    why_not = "" if answers and answers.answerer.has_key else NO_KEY
    page = PageConfig(service.voices, service.personas, voice, routing, why_not)
    add_page(app, page, config)
    return app
