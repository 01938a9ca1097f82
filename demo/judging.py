"""Runs the benches that say whether int8 is good, over one model's folder.

It measures nothing itself: each bench is a process of its own, which gives the GPU's memory back.
Results lie in a folder of the model's, and so does a verdict until capacity has passed: only then
it lies beside the weights, where every later start looks for it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.volume import Commit
from engine.config import ServerConfig
from engine.errors import ModelError
from engine.runtime.verdict import VERDICT, allowed, allowed_recogniser, publish, read

CODE = Path(__file__).resolve().parents[1]  # where `python -m engine` is found
RESULTS = "gates"  # folder of the json results, beside the weights

Mode = tuple[str, str]  # of the weights, of keys and values
FAITHFUL: Mode = ("bf16", "bf16")
AUTO: Mode = ("auto", "auto")

Bench = Callable[[list[str]], int]  # subject and options -> exit code


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of one server: conversations that it holds in time, of the places that it has."""

    held: int
    slots: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What the device holds in bf16, and in what drift allowed; None where it allowed no int8."""

    plain: Capacity
    int8: Capacity | None
    mode: Mode  # of the model in the second
    recogniser: str  # weights of the recogniser in the second

    @property
    def lost(self) -> bool:
        """Whether int8 holds nobody, or fewer than bf16."""
        return self.int8 is not None and self.int8.held < max(1, self.plain.held)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: less of it is for tests."""

    frames: int = 1500  # of the conversation that drift compares, two minutes
    seconds: float = 180.0  # for which conversations must be held
    step_seconds: float = 10.0  # of each number of them that is tried before


WHOLE = Effort()


def in_a_process(words: list[str]) -> int:
    """`python -m engine bench …`, its lines beside ours; the exit code."""
    command = [sys.executable, "-m", "engine", "bench", *words]
    return subprocess.run(command, cwd=CODE, check=False).returncode


@contextmanager
def trial(folder: Path, verdict: Path) -> Iterator[Path]:
    """The same model with another verdict, for this run's own servers: a folder of links."""
    with tempfile.TemporaryDirectory(prefix="gates-") as scratch:
        model = Path(scratch) / folder.name
        model.mkdir()
        for path in folder.iterdir():
            if path.name != VERDICT:
                (model / path.name).symlink_to(path.absolute())
        (model / VERDICT).symlink_to(verdict.absolute())
        yield model


class Judge:
    """One run of the gates. `drift`, then `capacities`, once."""

    def __init__(
        self,
        folder: Path,
        config: ServerConfig,
        commit: Commit,
        effort: Effort = WHOLE,
        bench: Bench = in_a_process,
    ) -> None:
        self._folder, self._config, self._effort = folder, config, effort
        self._commit, self._bench = commit, bench
        self.results = folder / RESULTS / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.results.mkdir(parents=True, exist_ok=True)

    def drift(self) -> dict:
        """How far int8 drifts (rows), and what is allowed (limits); no start obeys it yet.

        Raises ModelError, and then the verdict is what it was.
        """
        options = ["--frames", str(self._effort.frames), "--verdict", str(self.results)]
        otherwise = "the verdict is what it was"
        result = self._run("drift", "drift", [*options, *self._heard()], self._folder, otherwise)
        self._commit()  # whatever becomes of the rest
        return result

    def capacities(self) -> Measured:
        """What the device holds; drift's verdict takes effect if its int8 is worth it here.

        int8 is allowed only if it runs here and holds somebody, and no fewer. Raises ModelError.
        """
        known = read(self.results)
        mode, recogniser = allowed(AUTO, known), allowed_recogniser("auto", known)
        with trial(self._folder, self.results / VERDICT) as model:
            plain, int8 = self._capacity(FAITHFUL, model, "nothing is changed"), None
            if (mode, recogniser) != (FAITHFUL, "bf16"):
                try:  # as a start will take it, all of it
                    int8 = self._capacity(AUTO, model, "there is no verdict now, so bf16 stays")
                except ModelError:
                    self._withdraw()
                    raise
        measured = Measured(plain, int8, mode, recogniser)
        if measured.lost:
            self._withdraw()
        else:
            publish(self.results / VERDICT, self._folder)
            self._commit()
        return measured

    def _capacity(self, mode: Mode, model: Path, otherwise: str) -> Capacity:
        weights, kv = mode
        options = ["--weights", weights, "--kv", kv, "--seconds", f"{self._effort.seconds:g}"]
        options += ["--step-seconds", f"{self._effort.step_seconds:g}", *self._heard()]
        name = f"capacity-{weights}-{kv}"
        (server,) = self._run("capacity", name, options, model, otherwise)["servers"]
        return Capacity(server["held"], server["slots"])

    def _heard(self) -> list[str]:
        """The recogniser, where it is turned on: it has weights too, and takes its share."""
        return ["--transcribe", self._config.transcribe] if self._config.transcribe else []

    def _run(
        self, subject: str, name: str, options: list[str], model: Path, otherwise: str
    ) -> dict:
        path = self.results / f"{name}.json"
        print(f"\nbench {subject} {' '.join(options)}", flush=True)
        options = [*options, "--model", str(model), "--device", self._config.device]
        if code := self._bench([subject, *options, "--json", str(path)]):
            raise ModelError(
                f"bench {subject} ended with exit code {code}, what it said is above; {otherwise}"
            )
        return json.loads(path.read_text(encoding="utf-8"))

    def _withdraw(self) -> None:
        """Without a verdict every start is bf16."""
        (self._folder / VERDICT).unlink(missing_ok=True)
        self._commit()
