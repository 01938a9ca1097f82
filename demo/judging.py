"""Runs the benches that say whether int8 is good, over one model's folder.

It measures nothing itself: each bench is a process of its own, which gives the GPU's memory back.
Results and verdict lie in the model's folder, where every later start looks for the verdict.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo.volume import Commit
from engine.config import ServerConfig
from engine.errors import ModelError
from engine.runtime.verdict import VERDICT, precise

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
        """How far int8 drifts (rows), and what is allowed (limits); the verdict is kept.

        Raises ModelError, and then the verdict is what it was.
        """
        options = ["--frames", str(self._effort.frames), "--verdict", *self._heard()]
        result = self._run("drift", "drift", options, "the verdict is what it was")
        self._commit()  # whatever becomes of the rest
        return result

    def capacities(self) -> dict[Mode, Capacity]:
        """What the device holds in bf16, and in what the verdict allows.

        int8 stays allowed only if it runs here and holds somebody, and no fewer. Raises ModelError.
        """
        allowed = precise(AUTO, self._folder)
        try:
            held = {mode: self._capacity(mode) for mode in dict.fromkeys((FAITHFUL, allowed))}
        except ModelError:
            self._withdraw()
            raise
        if allowed != FAITHFUL and held[allowed].held < max(1, held[FAITHFUL].held):
            self._withdraw()
        self._commit()
        return held

    def _capacity(self, mode: Mode) -> Capacity:
        weights, kv = mode
        options = ["--weights", weights, "--kv", kv, "--seconds", f"{self._effort.seconds:g}"]
        options += ["--step-seconds", f"{self._effort.step_seconds:g}", *self._heard()]
        name, otherwise = f"capacity-{weights}-{kv}", "there is no verdict now, so bf16 stays"
        (server,) = self._run("capacity", name, options, otherwise)["servers"]
        return Capacity(server["held"], server["slots"])

    def _heard(self) -> list[str]:
        """The recogniser, where it is turned on: it has weights too, and takes its share."""
        return ["--transcribe", self._config.transcribe] if self._config.transcribe else []

    def _run(self, subject: str, name: str, options: list[str], otherwise: str) -> dict:
        path = self.results / f"{name}.json"
        print(f"\nbench {subject} {' '.join(options)}", flush=True)
        options = [*options, "--model", str(self._folder), "--device", self._config.device]
        if code := self._bench([subject, *options, "--json", str(path)]):
            raise ModelError(
                f"bench {subject} ended with exit code {code}, what it said is above; {otherwise}"
            )
        return json.loads(path.read_text(encoding="utf-8"))

    def _withdraw(self) -> None:
        """Without a verdict every start is bf16."""
        (self._folder / VERDICT).unlink(missing_ok=True)
        self._commit()
