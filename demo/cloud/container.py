"""The life of one container: open the port at once, wake the model behind it, drain, end.

It knows nothing of Modal. What it needs of the platform comes in as callables, so that tests run it
in a plain process. The server has a thread and an event loop of its own.
"""

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path

from demo.app import build_app
from demo.cloud.growing import Fleet, autoscale, choose_growing
from demo.cloud.remedies import describe_for_modal
from demo.cloud.settings import check_growth, container_config, tidy
from demo.cloud.volume import Commit, fetch, keep_int8, pin_to_local, set_compile_cache
from engine.commands.serve import (
    Stop,
    build_service,
    request_stop,
    serve_until,
    tell,
    tell_end,
)
from engine.config import ServerConfig
from engine.dialogue.service import Load, Progress, Service
from engine.errors import EngineError, ModelError, describe_end, describe_fault
from engine.logs import LOG_FORMAT, set_up_logs
from engine.runtime.backend import Backend
from engine.runtime.choose import cuda_device_name

logger = logging.getLogger(__name__)

OPEN_SECONDS = 60.0  # from start to an open port
STOP_SECONDS = 25.0  # the platform kills after 30


class Container:
    """One server in this process. The platform calls `start`, `resume` and `stop` once each.

    A fault that a new machine would have, too (a setting, the licence, the hub, a model that does
    not fit) ends nothing: the platform starts whatever ends anew, and each start is paid. The
    server then stays up without a model and says why, until the platform puts it to sleep.
    """

    def __init__(
        self,
        environ: MutableMapping[str, str] = os.environ,
        port: int = 8998,
        cache: Path | None = None,
        commit: Commit = lambda: None,
        reload: Commit = lambda: None,
        fleet: Fleet | None = None,
        snapshot: bool = False,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self._environ, self._port, self._cache = environ, port, cache
        self._commit, self._reload, self._fleet, self._leave = commit, reload, fleet, leave
        self._snapshot = snapshot  # `start` ends warm and without a socket: to be frozen
        self._service: Service | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Stop | None = None
        self._opened, self._ended = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._is_usable = False  # whether the settings can be read
        self._stopping = False

    # -- the platform's three calls ----------------------------------------------------------------

    def start(self) -> None:
        """Return when the port answers. For a snapshot: when the model is warm."""
        task = self._environ.get("MODAL_TASK_ID", "")  # the platform mixes the lines of all
        log_format = f"{LOG_FORMAT} [{task}]" if task else LOG_FORMAT
        set_up_logs(log_format)
        self._prepare()
        if not self._snapshot:
            return self._open()
        self._service.start()
        with contextlib.suppress(EngineError):  # `resume` tries once more, and says it then
            self._service.wait()

    def resume(self) -> None:
        """Open the port of a thawed container, whose sockets, loop and clock all begin here."""
        if not self._snapshot:
            return
        if self._service.failed:  # a frozen failure must not last until the next deployment
            self._prepare()
        self._open()

    def stop(self) -> None:
        """Say goodbye to live conversations and end the server, within STOP_SECONDS."""
        self._stopping = True
        if self._loop is None or self._ended.is_set():
            return
        self._loop.call_soon_threadsafe(request_stop, self._stop)
        if not self._ended.wait(STOP_SECONDS):
            logger.warning("the server did not end in %.0f s; leaving it", STOP_SECONDS)

    def _prepare(self) -> None:
        """Read the settings and make the service; one that has failed where that is impossible."""
        for line in tidy(self._environ):
            tell(line)
        try:
            self._config = container_config(self._environ, self._port)
            check_growth(self._environ)
            if self._cache:
                set_compile_cache(os.environ, self._cache)
            local = pin_to_local(self._config)

            def prepare(progress: Progress) -> None:
                check_gpu(local)
                fetch(local, progress, self._save, self._reload)
                keep_int8(local, progress, self._save)

            self._service = build_service(local, self._died, prepare)
            self._is_usable = True
        except (EngineError, OSError, ValueError) as error:  # settings and files: no machine's
            if not isinstance(error, EngineError):
                why = f"the start broke: {describe_fault(error)}"
                error = ModelError(f"{why}; see the settings and what lies on the volume")
            token = self._environ.get("PERSONAPLEX_TOKEN", "")
            self._config = ServerConfig(host="0.0.0.0", port=self._port, token=token)
            self._service = Service(make_failure(error), model="", on_death=self._died)

    # -- the server's thread -----------------------------------------------------------------------

    def _open(self) -> None:
        threading.Thread(target=self._run, name="server", daemon=True).start()
        if not self._opened.wait(OPEN_SECONDS):
            self._die(f"port {self._port} did not open in {OPEN_SECONDS:.0f} s")

    def _run(self) -> None:
        try:
            code = asyncio.run(self._serve())
        except EngineError as error:
            return self._die(describe_end(error))
        except BaseException as error:  # the thread's boundary: no server, no container
            logger.exception("the server broke")
            return self._die(f"the server broke: {describe_fault(error)}")
        self._ended.set()
        if not self._stopping:
            self._die("the server has ended by itself" if code == 0 else "", code or 1)

    async def _serve(self) -> int:
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        self._loop = loop  # last: `stop` and `_died` look at it first
        if self._failure:
            request_stop(self._stop, self._failure)
        app = build_app(self._service, self._config)
        fleet = self._fleet if self._is_usable else None
        if growing := choose_growing(self._environ, fleet, self._config.slots):
            app.cleanup_ctx.append(autoscale(self._service, growing))
        return await serve_until(self._stop, app, self._service, self._config, self._opened.set)

    def _died(self, error: BaseException) -> None:
        """End the server, and the process too if that hangs. Called in the thread that died.

        A load that failed for a reason that we know ends nothing.
        """
        service = self._service
        known = isinstance(error, EngineError) and not isinstance(error, MachineError)
        if service and service.waking and not service.hung and known:
            return self._fail(service, error)
        self._failure = error
        if self._loop is None:
            return  # no server yet: `_serve` sees the failure
        why = f"{describe_end(error)}; the server would not end"
        last = threading.Timer(STOP_SECONDS, self._die, [why])
        last.daemon = True
        last.start()
        self._loop.call_soon_threadsafe(request_stop, self._stop, error)

    def _fail(self, service: Service, error: EngineError) -> None:
        """Stay up and say why there is no model."""
        service.failed = describe_for_modal(error)
        tell_end(service.failed)

    def _save(self) -> None:
        """Commit the volume. A failure only costs the next container a download."""
        try:
            self._commit()
        except Exception as error:  # the platform's boundary
            logger.warning("the volume was not committed: %s", error)

    def _die(self, why: str, code: int = 1) -> None:
        """End the process at once. The platform then replaces the container."""
        if why:
            tell_end(why)
        sys.stdout.flush()
        sys.stderr.flush()
        self._leave(code)


class MachineError(ModelError):
    """A fault of this machine alone: it ends the process, because a new machine cures it."""


def check_gpu(config: ServerConfig) -> None:
    """Raises MachineError where the machine's GPU is gone."""
    if config.model != "embedded" and config.device == "cuda" and not cuda_device_name():
        raise MachineError("this machine's GPU does not answer; another machine has to do it")


def make_failure(error: EngineError) -> Load:
    """A load that fails: the service then says why."""

    def load(_progress: Progress) -> Backend:
        raise error

    return load
