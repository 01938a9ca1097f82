"""A server process of our own, and what can be read of it from outside.

It measures nothing: `server`, `capacity` and `soak` talk to it and judge what they see.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from engine.errors import EngineError

SERVE = (sys.executable, "-m", "engine", "serve")
READY_SECONDS = 400  # to read a full checkpoint, quantise it, compile kernels and time ticks
LOG_LINES = 5  # of a server that ended, to find out why
LOG_BYTES = 1 << 20  # of a start, at most
PRECISION = re.compile(r"slots: .*\(weights (\w+), KV (\w+)")  # as the start logs it
EMPTY_SECONDS = 10.0  # until all slots are free when all clients have left
OPERATORS = ("PERSONAPLEX_", "DEEPSEEK_")  # settings, by how their names begin
ROOT = Path(__file__).parents[2]


def find_ourselves() -> dict[str, str]:
    """Our environment, in which a process of our own finds `engine` from any folder."""
    known = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), known)))}


@dataclass
class Server:
    """`with Server(["--model", …]) as server:` on a free port, without our own settings."""

    options: list[str]
    command: list[str] = field(default_factory=lambda: list(SERVE))
    settings: dict[str, str] = field(default_factory=dict)  # environment variables
    ready_seconds: float = 0.0

    def __enter__(self) -> "Server":
        started = time.monotonic()
        self.port = find_free_port()
        arguments = ["--port", str(self.port), "--host", "127.0.0.1", *self.options]
        # a setting of the operator's must not change what is measured
        kept = {
            k: v for k, v in find_ourselves().items() if not k.startswith(OPERATORS)
        } | self.settings
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [*self.command, *arguments], stdout=self.log, stderr=self.log, env=kept
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self.__exit__)
            self._wait_until_ready(started)
            undo.pop_all()
        self.ready_seconds = time.monotonic() - started
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def _wait_until_ready(self, started: float) -> None:
        while True:
            with contextlib.suppress(OSError):  # nobody listens yet, or 503: it is waking up
                self.health()
                if self._has_page():
                    return
            self.check_alive()
            if time.monotonic() - started > READY_SECONDS:
                raise EngineError(f"the server is not ready after {READY_SECONDS} s{self._tail()}")
            time.sleep(0.02)

    def _has_page(self) -> bool:
        """Whether no page is still being made: that costs a core for seconds."""
        try:
            self._read("/")
        except urllib.error.HTTPError as error:
            return error.code != 503
        return True

    def precision(self) -> tuple[str, str] | None:
        """What `auto` came to, of weights and of keys and values, as the start logged it."""
        # not by seek: the server would write there
        log = os.pread(self.log.fileno(), LOG_BYTES, 0).decode(errors="replace")
        found = PRECISION.search(log)
        return (found[1], found[2]) if found else None

    def check_alive(self) -> None:
        """Raises EngineError with the server's last words if it has ended."""
        if self.process.poll() is not None:
            raise EngineError(f"the server ended with {self.process.returncode}{self._tail()}")

    def _tail(self) -> str:
        self.log.seek(0)
        return ":\n" + "".join(self.log.readlines()[-LOG_LINES:])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _read(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=5) as answer:
            return answer.read().decode()

    def health(self) -> dict:
        """What /healthz says of a server that is ready: model, slots, free."""
        return json.loads(self._read("/healthz"))

    def wait_until_empty(self) -> int:
        """Conversations still open when all clients have left: 0 within a moment, or lost ones."""
        deadline = time.monotonic() + EMPTY_SECONDS
        while True:
            taken = self.counts().live
            if not taken or time.monotonic() > deadline:
                return taken
            time.sleep(0.05)

    def counts(self) -> "Counts":
        return Counts.of(self._read("/metrics"))

    def sizes(self) -> dict[str, float]:
        """Megabytes resident, of them its own (no mapped files); files; threads; its log."""
        folder = f"/proc/{self.process.pid}"
        with open(f"{folder}/status", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        return {
            "rss_mb": int(lines["VmRSS"].split()[0]) / 1024,
            "own_mb": int(lines["RssAnon"].split()[0]) / 1024,
            "files": len(os.listdir(f"{folder}/fd")),
            "threads": len(os.listdir(f"{folder}/task")),
            "log_bytes": os.fstat(self.log.fileno()).st_size,
        }


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


TICK, STAGE = "personaplex_step_seconds_bucket", "personaplex_frame_seconds"
ENDED = "personaplex_conversations_ended_total"


@dataclass(frozen=True)
class Counts:
    """A server's counters at one moment; the difference of two is what happened in between."""

    live: int  # conversations that are open at that moment
    late: int  # frames sent > 120 ms after their user frame was complete
    dropped: int  # user frames given up in overload
    ended: int  # conversations
    renewals: int  # calls whose memory was made anew before it was full
    stages: Mapping[tuple[str, str], float]  # (quantile, stage) -> seconds, of the last minute
    ticks: Counter[float]  # bound in seconds -> ticks that took at most that

    @classmethod
    def of(cls, text: str) -> "Counts":
        """From a Prometheus exposition."""
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        return cls(
            live=int(found["personaplex_conversations",]),
            late=int(found["personaplex_late_frames_total",]),
            dropped=int(found["personaplex_dropped_user_frames_total", "overload"]),
            ended=sum(int(n) for (name, *_), n in found.items() if name == ENDED),
            renewals=int(found["personaplex_renewals_total",]),
            stages={
                (label[0], label[1]): n for (name, *label), n in found.items() if name == STAGE
            },
            ticks=Counter(
                {
                    float(labels[0]): int(value)
                    for (name, *labels), value in found.items()
                    if name == TICK
                }
            ),
        )

    def since(self, before: "Counts") -> "Counts":
        return replace(
            self,
            late=self.late - before.late,
            dropped=self.dropped - before.dropped,
            ended=self.ended - before.ended,
            renewals=self.renewals - before.renewals,
            ticks=Counter({le: n - before.ticks[le] for le, n in self.ticks.items()}),
        )

    def stage_ms(self, stage: str, quantile: float) -> float | None:
        """Milliseconds of a stage in the last minute; None where it brought no frame."""
        seconds = self.stages.get((f"{quantile:g}", stage))
        return None if seconds is None else seconds * 1e3

    def share_within(self, seconds: float) -> float:
        """The share of ticks that took no longer than a bound of the histogram; 1 if none ran."""
        whole = self.ticks[float("inf")]
        return self.ticks[seconds] / whole if whole else 1.0

    def tick_ms(self, percent: float) -> float:
        """A percentile of the ticks, straight within its bucket; 0 if none ran."""
        wanted = self.ticks[float("inf")] * percent / 100
        low, below = 0.0, 0
        for bound, count in sorted(self.ticks.items()):
            if count >= wanted and count > below:
                if bound == float("inf"):
                    return low * 1e3  # at least that: nothing finer is known
                return (low + (bound - low) * (wanted - below) / (count - below)) * 1e3
            low, below = bound, count
        return 0.0
