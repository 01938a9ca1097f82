"""Is int8 good enough here? `modal run modal_app.py::gates`, on the server's own GPU and weights.

Nothing is measured in this file. Two benches run, each in a process of its own, because its end
gives the GPU's memory back. A drift that is too large is a result, and bf16 stays. The verdict
first lies among the results. Only when capacity has passed too does it move beside the weights,
where every later start looks for it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from demo.cloud.preflight import make_progress_printer
from demo.cloud.volume import (
    Commit,
    container_config,
    device_name,
    fetch,
    pin_to_local,
    set_compile_caches,
)
from engine.config import ServerConfig
from engine.errors import ConfigError, EngineError, ModelError
from engine.runtime.choose import has_cuda
from engine.weights import hub
from engine.weights.verdict import (
    VERDICT,
    apply_recogniser_verdict,
    apply_verdict,
    choose_precision,
    choose_recogniser_precision,
    publish,
    read,
)

CODE = Path(__file__).resolve().parents[2]  # where `python -m engine` is found
RESULTS = "gates"  # folder of the json results, beside the weights

Mode = tuple[str, str]  # of the weights, of keys and values
FAITHFUL: Mode = ("bf16", "bf16")
AUTO: Mode = ("auto", "auto")

Bench = Callable[[list[str]], int]  # subject and options -> exit code


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many conversations one server holds in time, and how many places it has."""

    held: int
    slots: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What the device holds in bf16, and in the int8 that drift allowed (None: it allowed none)."""

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
    """How much is measured. Tests measure less."""

    frames: int = 1500  # two minutes of conversation for drift to compare
    seconds: float = 180.0  # how long conversations must be held
    step_seconds: float = 10.0  # how long each smaller number of them is tried before


WHOLE = Effort()


def run_bench(words: list[str]) -> int:
    """Run `python -m engine bench …` and let it print; its exit code."""
    command = [sys.executable, "-m", "engine", "bench", *words]
    return subprocess.run(command, cwd=CODE, check=False).returncode


@contextmanager
def model_with_verdict(folder: Path, verdict: Path) -> Iterator[Path]:
    """A folder of links to the same model with another verdict, for this run's own servers."""
    with tempfile.TemporaryDirectory(prefix="gates-") as scratch:
        model = Path(scratch) / folder.name
        model.mkdir()
        for path in folder.iterdir():
            if path.name != VERDICT:
                (model / path.name).symlink_to(path.absolute())
        (model / VERDICT).symlink_to(verdict.absolute())
        yield model


class Judge:
    """One run of the benches. Call `drift` once, then `capacities` once."""

    def __init__(
        self,
        folder: Path,
        config: ServerConfig,
        commit: Commit,
        effort: Effort = WHOLE,
        bench: Bench = run_bench,
    ) -> None:
        self._folder, self._config, self._effort = folder, config, effort
        self._commit, self._bench = commit, bench
        self.results = folder / RESULTS / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.results.mkdir(parents=True, exist_ok=True)

    def drift(self) -> dict:
        """Measure how far int8 drifts (rows) and what is allowed (limits). No start obeys it yet.

        Raises ModelError, and then the verdict is what it was.
        """
        options = ["--frames", str(self._effort.frames), "--verdict", str(self.results)]
        result = self._run("drift", "drift", options, self._folder, "the verdict is what it was")
        self._commit()  # capacity may still fail
        return result

    def capacities(self) -> Measured:
        """Measure what the device holds, and publish drift's verdict if its int8 is worth it here.

        int8 must run here, hold somebody, and hold no fewer than bf16. Raises ModelError.
        """
        known = read(self.results)
        mode, recogniser = apply_verdict(AUTO, known), apply_recogniser_verdict("auto", known)
        with model_with_verdict(self._folder, self.results / VERDICT) as model:
            plain, int8 = self._capacity(FAITHFUL, model, "nothing is changed"), None
            if (mode, recogniser) != (FAITHFUL, "bf16"):
                try:  # everything as the next start will take it
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

    def _capacity(self, mode: Mode, model: Path, consequence: str) -> Capacity:
        weights, kv = mode
        options = ["--weights", weights, "--kv", kv, "--seconds", f"{self._effort.seconds:g}"]
        options += ["--step-seconds", f"{self._effort.step_seconds:g}"]
        name = f"capacity-{weights}-{kv}"
        (server,) = self._run("capacity", name, options, model, consequence)["servers"]
        return Capacity(server["held"], server["slots"])

    def _run(
        self, subject: str, name: str, options: list[str], model: Path, consequence: str
    ) -> dict:
        if self._config.transcribe:  # the recogniser has weights too, and takes its share
            options = [*options, "--transcribe", self._config.transcribe]
        path = self.results / f"{name}.json"
        print(f"\nbench {subject} {' '.join(options)}", flush=True)
        options = [*options, "--model", str(model), "--device", self._config.device]
        if code := self._bench([subject, *options, "--json", str(path)]):
            raise ModelError(
                f"bench {subject} ended with exit code {code}, what it said is above; {consequence}"
            )
        return json.loads(path.read_text(encoding="utf-8"))

    def _withdraw(self) -> None:
        """Delete the verdict: without one every start is bf16."""
        (self._folder / VERDICT).unlink(missing_ok=True)
        self._commit()


def judge_int8(
    cache: Path,
    volume: str,
    commit: Commit,
    effort: Effort = WHOLE,
    bench: Bench = run_bench,
) -> None:
    """Fetch what is missing, measure, keep the verdict, and print what it means.

    Raises SystemExit in one clear line if no verdict could be reached.
    """
    started = time.monotonic()
    try:
        config = judged_config()
        fetch(config, make_progress_printer(), commit)
        set_compile_caches(os.environ, cache)
        local = pin_to_local(config)
        folder = hub.find(local.model, local.revision or None, make_progress_printer())
        judge = Judge(folder, config, commit, effort, bench)
        drift, measured = judge.drift(), judge.capacities()
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
    taken = f"{effort.frames} frames, {time.monotonic() - started:.0f} s"
    print(f"\ngates of {config.model} on {device_name()}: {taken}")
    for line in [
        *describe_drift(drift),
        *describe_capacity(measured),
        *describe_verdict(config, folder, measured),
        f"results     {volume_command('get', judge.results, cache, volume)}",
        *advise(measured, volume_command("rm", folder / VERDICT, cache, volume)),
    ]:
        print(line, flush=True)


def judged_config() -> ServerConfig:
    """The server's settings. Raises ConfigError if there is nothing to judge, or no GPU."""
    if os.environ.get("PERSONAPLEX_GPU", "").lower() == "none":
        raise ConfigError(
            "PERSONAPLEX_GPU is none, but the gates measure on the server's GPU; "
            "run them with the one that you deploy with, such as PERSONAPLEX_GPU=A10G"
        )
    config = container_config(os.environ, port=8998)
    if config.model == "embedded":
        raise ConfigError(
            "PERSONAPLEX_MODEL is embedded, which has no weights to judge; unset it, or name "
            f"a model such as {hub.DEFAULT_REPOSITORY}"
        )
    if config.device == "auto":
        config = replace(config, device="cuda")
    if config.device == "cuda" and not has_cuda():
        raise ConfigError(
            "there is no GPU here, and the gates measure on the server's; "
            "run them by: modal run modal_app.py::gates"
        )
    return config


# -- what the operator reads -----------------------------------------------------------------------


def describe_drift(drift: dict) -> Iterator[str]:
    """One line for each part that was compared with bf16, then what was asked of it."""
    yield "\ncompared with bf16    same first choice        KL   its rise   in doubt by"
    for row in drift["rows"]:
        numbers = f"{row['top1']:17.2%}  {row['kl']:8.5f}  {row['kl_rise']:+9.5f}"
        doubt, good = f"{row['kl_rise_error']:8.5f}", "good" if row["good"] else "TOO MUCH"
        yield f"{row['what']:<20}  {numbers}      {doubt}  {good}"
    most = drift["limits"]
    yield (
        f"asked for: the same in {most['top1']:.0%} of the frames, {most['words top1']:.0%} of "
        f"those with words, a KL of at most {most['kl']:g}, a rise of at most "
        f"{most['rise of mean']:g} of KL, or {most['rise']:g},\nor {most['rise of error']:g} times "
        f"what it is in doubt by; {drift['spoken']:.0%} of the frames have text"
    )


def describe_capacity(measured: Measured) -> Iterator[str]:
    yield "\nconversations held in time"
    held = {describe_mode(FAITHFUL): measured.plain}
    if measured.int8:
        beside = ", recogniser int8" if measured.recogniser == "int8" else ""
        held[describe_mode(measured.mode) + beside] = measured.int8
    for mode, capacity in held.items():
        yield f"{mode:<40}  {capacity.held:2} of {capacity.slots} places"


def describe_verdict(config: ServerConfig, folder: Path, measured: Measured) -> Iterator[str]:
    """What is allowed now, and what the next start takes: a setting may have fixed it.

    The recogniser's part only where it is turned on.
    """
    asked = config.weights, config.kv
    lost = ""
    if measured.lost:
        lost = f", for int8 holds {'fewer' if measured.int8.held else 'nobody'}"
    yield f"\nverdict     {describe_mode(choose_precision(AUTO, folder, config.device))}{lost}"
    forced = "" if asked == AUTO else ", as PERSONAPLEX_WEIGHTS and PERSONAPLEX_KV say"
    yield f"next start  {describe_mode(choose_precision(asked, folder, config.device))}{forced}"
    if config.transcribe:
        from engine.weights.loading import download_recogniser  # brings torch along

        found = download_recogniser(config.transcribe)
        weights = choose_recogniser_precision(config.weights, folder, found, config.device)
        yield f"recogniser  weights {weights}"


def advise(measured: Measured, remove: str) -> Iterator[str]:
    """Say what there is to do, with the commands."""
    if measured.int8 is None or measured.lost:
        yield "\nNothing to do: bf16 stays."
        return
    yield "\nNothing to do: `auto` obeys. What runs keeps its mode until it ends, sooner with"
    yield "  modal app rollover personaplex"
    yield "Listen to it before you rely on it. To use bf16 all the same, deploy with"
    yield "  PERSONAPLEX_WEIGHTS=bf16 PERSONAPLEX_KV=bf16 modal deploy modal_app.py"
    yield "To withdraw the verdict, delete it:"
    yield f"  {remove}"


def volume_command(verb: str, path: Path, cache: Path, volume: str) -> str:
    """The `modal volume` command for a path of the volume; for another path, the path itself."""
    inside = path.is_relative_to(cache)
    return f"modal volume {verb} {volume} {path.relative_to(cache)}" if inside else str(path)


def describe_mode(mode: Mode) -> str:
    return "weights {}, keys and values {}".format(*mode)
