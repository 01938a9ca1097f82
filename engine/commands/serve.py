"""`python -m engine serve`: `/api` without the page, and what every server of ours shares."""

import argparse
import asyncio
import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from socket import AF_INET, AF_INET6
from typing import NoReturn, TextIO

from aiohttp import web

from engine.cli import silence
from engine.config import VOICE_NAMES, ServerConfig, parse_setting
from engine.dialogue.persona import load_personas
from engine.dialogue.service import Progress, Service
from engine.dialogue.session import Limits
from engine.errors import ConfigError, describe_end
from engine.logs import guard_faults
from engine.lookup.routing import build_answers
from engine.runtime.backend import Backend
from engine.runtime.choose import choose_model, load_backend, load_ears
from engine.runtime.ears import Ears
from engine.runtime.scheduler import wait_fairly
from engine.weights.hub import DEFAULT_REPOSITORY, find_folder
from engine.weights.voices import check_default
from engine.wire.server import add_routes, listening
from engine.wire.tls import list_addresses, make_context

HOT_WORDS = 12  # of the facts' names, that the ears are told
END_SECONDS = 6.5  # from the end of the grace until everything has ended, or hangs
LAST_SECONDS = 2.0  # for what is to be done last
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
ALL_HOSTS = {"0.0.0.0": (AF_INET,), "::": (AF_INET, AF_INET6)}
OPEN_TO_ALL = (
    "warning: whoever reaches this port may talk; "
    "set PERSONAPLEX_TOKEN, or use --host 127.0.0.1 for this machine only"
)
NO_MICROPHONE = "(browsers give its page no microphone without https: see --tls self)"
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


def tell(line: str, stream: TextIO | None = None) -> None:
    """Print a line for the operator, to stdout or `stream`; in one go, as threads do so at once.

    Raises ConfigError where it cannot be written.
    """
    stream = stream or sys.stdout
    try:
        stream.write(f"{line}\n")
        stream.flush()
    except OSError as error:
        silence(stream)
        why = os.strerror(error.errno or 0)
        raise ConfigError(f"{stream.name} cannot be written ({why}); send it elsewhere") from None


def tell_end(why: str) -> None:
    """Say why the process ends, if anybody reads: nothing may keep it from ending."""
    with contextlib.suppress(ConfigError):
        tell(f"error: {why}")


def check_output() -> None:
    """Raises ConfigError if stdout or stderr is closed, or stderr full.

    What a server has to say would be lost, and its first socket would be taken for the closed one.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            raise ConfigError(f"{name} is closed; send it to a file or to /dev/null")
    tell(f"process {os.getpid()} starts", sys.stderr)


def build_service(
    config: ServerConfig,
    on_death: Callable[[BaseException], None] | None = None,
    prepare: Callable[[Progress], None] = lambda progress: None,
) -> Service:
    """A service for this configuration; `start` it to load the model.

    `prepare` runs before the load, in the loader's thread. What it raises ends the service.
    """
    check_output()
    source, why = choose_model(config.model)
    if source != "embedded":  # else whoever mistypes it is sent for PyTorch first
        find_folder(source, "model", DEFAULT_REPOSITORY)
    tell(f"model: {source} ({why})")

    def load(progress: Progress) -> Backend:
        prepare(progress)
        backend = load_backend(config, progress)
        service.default_voice = check_default(config.voice, backend.voices)
        gc.collect()
        gc.freeze()  # what is here stays: a collection over all of it would hold every thread
        return backend

    personas = load_personas()
    folders = {persona.facts for persona in personas if persona.facts}
    answers = build_answers(config, os.environ, folders)

    def open_ears(progress: Progress, backend: Backend) -> tuple[Ears | None, str]:
        names = " ".join(answers.router.knowledge.names.words[:HOT_WORDS])
        return load_ears(config, backend, names, progress)

    service = Service(
        load,
        model=source,
        limits=Limits(config.idle_s, config.silence_s, config.session_s),
        on_death=on_death,
        personas=personas,
        answers=answers,
        load_ears=open_ears,
        hang_s=config.hang_s,
        load_hang_s=config.load_hang_s,
        resume_s=config.resume_s,
    )
    if source == "embedded":  # its voices are known before it is loaded
        check_default(config.voice, VOICE_NAMES)
    return service


def describe_addresses(config: ServerConfig, port: int) -> list[str]:
    """Where the server can be opened: on this machine, and from others."""
    scheme = "https" if config.tls or config.tls_cert else "http"
    everywhere = ALL_HOSTS.get(config.host, ())
    own = "localhost" if everywhere or config.host == "127.0.0.1" else bracket(config.host)
    lines = [f"listening on {scheme}://{own}:{port}"]
    for address in list_addresses(everywhere):
        line = f"from other machines: {scheme}://{bracket(address)}:{port}"
        lines.append(line if scheme == "https" else f"{line} {NO_MICROPHONE}")
    return lines


def bracket(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


async def run_app(app: web.Application, service: Service, config: ServerConfig) -> NoReturn:
    """Serve until SIGINT or SIGTERM, or until the service dies; then end the process.

    Main thread only.
    """
    loop = asyncio.get_running_loop()
    stop: Stop = loop.create_future()
    ended = threading.Event()

    def end(error: BaseException | None = None) -> None:
        hangs = "something hangs; the process ends"
        leave_later(config.drain_s + END_SECONDS, 1, hangs, unless=ended)
        loop.call_soon_threadsafe(request_stop, stop, error)

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, end)
    service.on_death = end
    code = await serve_until(stop, app, service, config)
    ended.set()
    leave_later(LAST_SECONDS, code)
    atexit._run_exitfuncs()  # temporary files go
    # At its own end the interpreter would wait for threads that hang, or that do what nobody needs
    # any more, and some libraries complain there about what they still hold.
    leave(code)


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
    guard_faults(asyncio.get_running_loop())
    async with contextlib.AsyncExitStack() as stack:
        try:
            tls = make_context(config)
            port = await stack.enter_async_context(listening(app, config.host, config.port, tls))
        except OSError as error:
            why = os.strerror(error.errno or 0)
            where = f"{config.host}:{config.port}"
            raise ConfigError(f"cannot listen on {where}: {why}; use another --port") from None
        for line in describe_addresses(config, port):
            tell(line)
        if not config.token and config.host not in LOCAL_HOSTS:
            tell(OPEN_TO_ALL)
        opened()
        service.start()
        error = await stop
        if error is not None:
            tell_end(describe_end(error))
        await service.drain(config.drain_s)
    service.stop()
    if service.hung and error is None:
        tell_end("the model's thread hangs and is left behind")
    return int(error is not None or service.hung)


def leave_later(
    seconds: float, code: int, why: str = "", unless: threading.Event | None = None
) -> None:
    """End the process, whatever hangs in it, unless it ends by itself before, or `unless` is set.

    It may take longer where the machine is busy with others' work (`wait_fairly`).
    """
    unless = unless or threading.Event()

    def watch() -> None:
        if not wait_fairly(unless.wait, seconds):
            leave(code, why)

    threading.Thread(target=watch, name="deadline", daemon=True).start()


def leave(code: int, why: str = "") -> NoReturn:
    """End the process at once."""
    try:
        if why:
            tell_end(why)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError, ValueError):  # nobody may be there to read
                stream.flush()
    finally:
        os._exit(code)


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
