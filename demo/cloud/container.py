"""The life of one container: open the port at once, wake the model behind it, drain, end.

It knows nothing of Modal. What it needs of the platform comes in as callables, so that tests run it
in a plain process. The server has a thread and an event loop of its own.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from demo.app import build_app
from demo.cloud.growing import Growing, KeepSpares, autoscale
from demo.cloud.volume import (
    Commit,
    container_config,
    fetch,
    keep_int8,
    pin_to_local,
    set_compile_cache,
)
from engine.commands.serve import Stop, build_service, request_stop, serve_until
from engine.dialogue.service import Progress, Service
from engine.errors import EngineError
from engine.logs import LOG_FORMAT, set_up_logs

logger = logging.getLogger(__name__)

OPEN_SECONDS = 60.0  # from start to an open port
STOP_SECONDS = 25.0  # the platform kills after 30


class Container:
    """One server in this process. The platform calls `start`, `resume` and `stop` once each."""

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        port: int = 8998,
        cache: Path | None = None,
        commit: Commit = lambda: None,
        spares: KeepSpares | None = None,
        snapshot: bool = False,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self._environ, self._port, self._cache = environ, port, cache
        self._commit, self._spares, self._leave = commit, spares, leave
        self._snapshot = snapshot  # `start` ends warm and without a socket: to be frozen
        self._service: Service | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Stop | None = None
        self._opened, self._ended = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._stopping = False

    # -- the platform's three calls ----------------------------------------------------------------

    def start(self) -> None:
        """Return when the port answers. For a snapshot: when the model is warm."""
        task = self._environ.get("MODAL_TASK_ID", "")  # the platform mixes the lines of all
        log_format = f"{LOG_FORMAT} [{task}]" if task else LOG_FORMAT
        set_up_logs(log_format)
        try:
            self._config = container_config(self._environ, self._port)
            if self._cache:
                set_compile_cache(os.environ, self._cache)
            local = pin_to_local(self._config)

            def prepare(progress: Progress) -> None:
                fetch(local, progress, self._save)
                keep_int8(local, progress, self._save)

            self._service = build_service(local, self._died, prepare)
            if self._snapshot:
                self._service.start()
                self._service.wait()
            else:
                self._open()
        except EngineError as error:
            self._die(str(error))

    def resume(self) -> None:
        """Open the port of a thawed container, whose sockets, loop and clock all begin here."""
        if self._snapshot:
            self._open()

    def stop(self) -> None:
        """Say goodbye to live conversations and end the server, within STOP_SECONDS."""
        self._stopping = True
        if self._loop is None or self._ended.is_set():
            return
        self._loop.call_soon_threadsafe(request_stop, self._stop)
        if not self._ended.wait(STOP_SECONDS):
            logger.warning("the server did not end in %.0f s; leaving it", STOP_SECONDS)

    # -- the server's thread -----------------------------------------------------------------------

    def _open(self) -> None:
        threading.Thread(target=self._run, name="server", daemon=True).start()
        if not self._opened.wait(OPEN_SECONDS):
            self._die(f"port {self._port} did not open in {OPEN_SECONDS:.0f} s")

    def _run(self) -> None:
        try:
            code = asyncio.run(self._serve())
        except EngineError as error:
            return self._die(str(error))
        except BaseException as error:  # the thread's boundary: no server, no container
            logger.exception("the server broke")
            return self._die(f"the server broke: {error}")
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
        if self._spares and self._environ.get("PERSONAPLEX_AUTOSCALE") != "0":
            base = int(self._environ.get("PERSONAPLEX_BUFFER_CONTAINERS") or 0)
            app.cleanup_ctx.append(autoscale(self._service, Growing(self._spares, base)))
        return await serve_until(self._stop, app, self._service, self._config, self._opened.set)

    def _died(self, error: BaseException) -> None:
        """End the server, and the process too if that hangs. Called in the thread that died."""
        self._failure = error
        if self._loop is None:
            return  # no server yet: `start` or `_serve` sees the failure
        last = threading.Timer(STOP_SECONDS, self._die, [f"{error}; the server would not end"])
        last.daemon = True
        last.start()
        self._loop.call_soon_threadsafe(request_stop, self._stop, error)

    def _save(self) -> None:
        """Commit the volume. A failure only costs the next container a download."""
        try:
            self._commit()
        except Exception as error:  # the platform's boundary
            logger.warning("the volume was not committed: %s", error)

    def _die(self, why: str, code: int = 1) -> None:
        """End the process at once. The platform then replaces the container."""
        if why:
            print(f"error: {why}", flush=True)
        sys.stdout.flush()
        sys.stderr.flush()
        self._leave(code)
