"""`python -m engine serve`: `/api` without the page, and what every server of ours shares."""

import argparse
import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import fields

from aiohttp import web

from engine.config import ServerConfig, parse_setting
from engine.dialogue.persona import load_personas
from engine.dialogue.service import Progress, Service
from engine.dialogue.session import Limits
from engine.errors import ConfigError
from engine.lookup.routing import build_answers
from engine.runtime.backend import Backend
from engine.runtime.choose import choose_model, load_backend
from engine.weights.voices import Voices
from engine.wire.server import add_routes

Stop = asyncio.Future[BaseException | None]  # done: why the server ends; None: it was asked to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option per field of ServerConfig; each is also an environment variable."""
    for entry in fields(ServerConfig):
        parser.add_argument(
            f"--{entry.name.replace('_', '-')}",
            dest=entry.name,
            metavar="VALUE",
            default=None,
            help=f"{entry.metadata['help']} (${entry.metadata['env']}, default {entry.default!r})",
        )


def server_config(args: argparse.Namespace) -> ServerConfig:
    """The options given, then the environment, then the defaults. Raises ConfigError."""
    given = {}
    for entry in fields(ServerConfig):
        text = getattr(args, entry.name)
        if text is not None:
            name = f"--{entry.name.replace('_', '-')}"
            given[entry.name] = parse_setting(name, text, entry.default)
    return ServerConfig.from_environment(os.environ, **given)


def build_service(
    config: ServerConfig,
    on_death: Callable[[BaseException], None] | None = None,
    prepare: Callable[[Progress], None] = lambda progress: None,
) -> Service:
    """A service for this configuration; `start` it to load the model.

    `prepare` runs before the load, in the loader's thread. What it raises ends the service.
    """
    source, why = choose_model(config.model)
    print(f"model: {source} ({why})", flush=True)

    def load(progress: Progress) -> Backend:
        prepare(progress)
        return load_backend(config, progress, Voices)

    personas = load_personas()
    folders = {persona.facts for persona in personas if persona.facts}
    service = Service(
        load,
        model=source,
        limits=Limits(config.idle_s, config.silence_s, config.session_s),
        on_death=on_death,
        personas=personas,
        answers=build_answers(config, os.environ, folders),
    )
    service.default_voice = config.voice
    return service


async def run_app(app: web.Application, service: Service, config: ServerConfig) -> int:
    """Serve until SIGINT or SIGTERM, or until the service dies; the exit code. Main thread only."""
    loop = asyncio.get_running_loop()
    stop: Stop = loop.create_future()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, request_stop, stop)
    service.on_death = lambda error: loop.call_soon_threadsafe(request_stop, stop, error)
    return await serve_until(stop, app, service, config)


async def serve_until(
    stop: Stop,
    app: web.Application,
    service: Service,
    config: ServerConfig,
    opened: Callable[[], None] = lambda: None,
) -> int:
    """Serve until `stop` is done; the exit code, 1 if an error ended the service.

    The port opens at once, and `opened` is called. The model loads behind it. Any thread's loop.
    """
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=2)
    await runner.setup()
    try:
        await web.TCPSite(runner, config.host, config.port).start()
    except OSError as error:
        await runner.cleanup()
        why = os.strerror(error.errno or 0)
        where = f"{config.host}:{config.port}"
        raise ConfigError(f"cannot listen on {where}: {why}; use another --port") from None
    print(f"listening on http://localhost:{config.port}", flush=True)
    opened()
    service.start()
    error = await stop
    if error is not None:
        print(f"error: {error}", flush=True)
    await service.drain(config.drain_s)
    await runner.cleanup()
    service.stop()
    return 0 if error is None else 1


def request_stop(stop: Stop, error: BaseException | None = None) -> None:
    """End `serve_until`. The first call counts. In the future's loop only."""
    if not stop.done():
        stop.set_result(error)


def run(args: argparse.Namespace) -> int:
    config = server_config(args)
    service = build_service(config)
    app = web.Application()
    add_routes(app, service, config)
    return asyncio.run(run_app(app, service, config))
