"""`modal deploy` and a container, rehearsed offline: the real client and the real runtime."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from modal_proto import api_pb2

from tests.modal.platform import Platform
from tests.planted import SWEEP

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"huggingface-secret": ["HF_TOKEN"], "deepseek-secret": ["DEEPSEEK_API_KEY"]}
SECONDS = 250  # of a machine with other things to do


def clean(home: Path, **environ: str) -> dict[str, str]:
    """An environment with nothing of this machine but the path to its programs."""
    own = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}  # one is quicker on a busy machine
    return {**own, "HOME": str(home), "PYTHONUNBUFFERED": "1", **environ}


def deploy(platform: Platform, home: Path, file: Path = ROOT / "modal_app.py", **environ: str):
    """`modal deploy FILE` from an unrelated folder."""
    return modal(platform, home, "deploy", str(file), **environ)


def modal(platform: Platform, home: Path, *arguments: str, **environ: str):
    """Any command of Modal's command line, against the stand-in."""
    return subprocess.run(
        [sys.executable, "-m", "modal", *arguments],
        env=clean(home, **platform.environ, **environ),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def definition(platform: Platform, name: str = "PersonaPlexServer.*") -> Any:
    """The Function that was created under this name."""
    for told in platform.requests("FunctionCreate"):
        for function in (
            told.function,
            *(one.function for one in told.function_data.ranked_functions),
        ):
            if function.function_name == name:
                return function
    raise AssertionError(f"no function {name} was created")


def image_lines(platform: Platform) -> list[str]:
    """Every line of every layer of the image."""
    told = platform.requests("ImageGetOrCreate")
    return [line for request in told for line in request.image.dockerfile_commands]


def anonymous_secret(platform: Platform) -> dict[str, str]:
    """What travels in the secret that has no name."""
    told = platform.requests("SecretGetOrCreate")
    return {k: v for one in told if not one.deployment_name for k, v in one.env_dict.items()}


def container_arguments(platform: Platform) -> bytes:
    """What Modal's worker hands to a container of the class that was deployed."""
    function, published = definition(platform), platform.requests("AppPublish")[-1]
    handles = [
        api_pb2.Object(
            object_id=object_id,
            function_handle_metadata=api_pb2.FunctionHandleMetadata(function_name=name),
        )
        for name, object_id in published.function_ids.items()
    ]
    classes = [
        api_pb2.Object(object_id=object_id, class_handle_metadata=api_pb2.ClassHandleMetadata())
        for object_id in published.class_ids.values()
    ]
    others = [api_pb2.Object(object_id=one.object_id) for one in function.object_dependencies]
    layout = api_pb2.AppLayout(
        objects=[*handles, *classes, *others],
        function_ids=dict(published.function_ids),
        class_ids=dict(published.class_ids),
    )
    return api_pb2.ContainerArguments(
        task_id="ta-1",
        function_id=published.function_ids[function.function_name],
        app_id="ap-1",
        function_def=function,
        app_layout=layout,
    ).SerializeToString()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A server in a process of its own, whose output is kept. `with Process(...) as process:`."""

    def __init__(self, arguments: list[str], port: int, cwd: Path, environ: dict[str, str]) -> None:
        self.port, self._cwd, self._environ = port, cwd, environ
        self._arguments = [sys.executable, *arguments]
        self._log = cwd / f"output-{port}.txt"

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def code(self) -> int | None:
        """Its exit code; None: it runs."""
        return self._process.poll()

    @property
    def lines(self) -> list[str]:
        """The lines that begin with `error:`."""
        return [line for line in self.output.splitlines() if line.startswith("error:")]

    def __enter__(self) -> "Process":
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._arguments,
                env=self._environ,
                cwd=self._cwd,
                stdout=log,
                stderr=log,
                # A shell that runs tests in the background has told its children to ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
        assert SWEEP.search(self.output) == [], "the server's output holds planted words"

    def wait_until_ready(self) -> None:
        """Until /healthz says 200."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError(f"not ready: {self.output[-2000:]}")

    def wait_until_said(self, words: str) -> None:
        """Until its output holds these words."""
        end = time.monotonic() + SECONDS
        while words not in self.output:
            over = time.monotonic() > end or self.code is not None
            assert not over, self.output[-2000:]
            time.sleep(0.05)

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def wait(self, seconds: float = SECONDS) -> int:
        """Its exit code."""
        return self._process.wait(seconds)


def life(folder: Path, fault: str = "", **environ: str) -> Process:
    """`tests.modal.life` on a free port: a container without Modal."""
    port = free_port()
    arguments = ["-m", "tests.modal.life", str(port), *([fault] if fault else [])]
    return Process(arguments, port, folder, clean(folder, PYTHONPATH=str(ROOT), **environ))
