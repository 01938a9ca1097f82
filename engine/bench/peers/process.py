"""The process that a peer runs in: started, asked line by line, ended. Knows no torch."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, ModelError

HOW = (
    "get one with `pip install --no-deps --target PATH moshi==0.2.13 einops` (--moshi PATH), or "
    "check NVIDIA's PersonaPlex repository out (--reference PATH)"
)
ENDING_SECONDS = 30
WORKER = (sys.executable, "-m", "engine.bench.peers.worker")


def package_at(option: str, path: str) -> Path:
    """The folder to import `moshi` from: PATH or PATH/moshi. Raises ConfigError."""
    places = [Path(path), Path(path) / "moshi"]
    for place in places:
        if (place / "moshi" / "__init__.py").is_file():
            return place.resolve()
    looked = " and ".join(str(place / "moshi" / "__init__.py") for place in places)
    raise ConfigError(f"{option} {path} holds no package moshi (looked for {looked}); {HOW}")


class PeerProcess:
    """A peer that answers one json line to each; a context manager. Raises ModelError."""

    def __init__(self, package: Path, compiled: bool, command: Sequence[str] = WORKER) -> None:
        self.package, self.command = package, [*command, str(package)]
        self.compiled = compiled
        self.environ = os.environ | ({} if compiled else {"NO_TORCH_COMPILE": "1"})

    def __enter__(self) -> "PeerProcess":
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self.command, env=self.environ, stdin=pipe, stdout=pipe, text=True
        )
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended on its own
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, verb: str, **values: Any) -> Any:
        """One request, one answer."""
        try:
            self._process.stdin.write(json.dumps({"do": verb} | values) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait(ENDING_SECONDS)
            hint = "; without a C compiler use --no-compile" if self.compiled else ""
            raise ModelError(
                f"the peer at {self.package} ended with code {code} when asked to {verb}; "
                f"its own words are above{hint}"
            )
        return json.loads(line)
