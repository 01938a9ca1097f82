"""Is int8 good enough here? `modal run modal_app.py::gates`, on the server's own GPU and weights.

Nothing is measured in this file. Two benches run and print what they find, each in a process of its
own, because its end gives the GPU's memory back. A drift that is too large is a result. The verdict
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
from demo.cloud.remedies import describe_for_modal
from demo.cloud.settings import container_config, tidy
from demo.cloud.volume import Commit, fetch, pin_to_local, set_compile_cache
from engine.config import ServerConfig, choose_recogniser
from engine.errors import ConfigError, EngineError, ModelError
from engine.runtime.choose import cuda_device_name, has_cuda
from engine.weights import hub
from engine.weights.verdict import (
    VERDICT,
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

    frames: int = 3000  # four minutes of conversation for drift to compare
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


def measure(
    folder: Path, config: ServerConfig, commit: Commit, effort: Effort, bench: Bench
) -> tuple[Measured, Path]:
    """Run the benches, and publish the verdict if int8 holds somebody, and no fewer than bf16.

    Until then no start obeys it. The second value is the folder of the results. Raises ModelError.
    """
    results = folder / RESULTS / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    results.mkdir(parents=True, exist_ok=True)

    def run(subject: str, name: str, options: list[str], model: Path, consequence: str) -> dict:
        if source := choose_recogniser(config, os.environ):  # it takes its share
            options = [*options, "--transcribe", source]
        path = results / f"{name}.json"
        print(f"\nbench {subject} {' '.join(options)}", flush=True)
        options = [*options, "--model", str(model), "--device", config.device]
        if code := bench([subject, *options, "--json", str(path)]):
            raise ModelError(
                f"bench {subject} ended with exit code {code}, what it said is above; {consequence}"
            )
        return json.loads(path.read_text(encoding="utf-8"))

    def capacity(weights: str, kv: str, model: Path, consequence: str) -> Capacity:
        options = ["--weights", weights, "--kv", kv, "--seconds", f"{effort.seconds:g}"]
        options += ["--step-seconds", f"{effort.step_seconds:g}"]
        name = f"capacity-{weights}-{kv}"
        (server,) = run("capacity", name, options, model, consequence)["servers"]
        return Capacity(server["held"], server["slots"])

    options = ["--frames", str(effort.frames), "--verdict", str(results)]
    run("drift", "drift", options, folder, "the verdict is what it was")
    commit()  # capacity may still fail
    known = read(results)
    mode = apply_verdict(AUTO, known)
    recogniser, _ = apply_verdict(AUTO, known.get("recogniser") or {})
    with model_with_verdict(folder, results / VERDICT) as model:
        plain, int8 = capacity(*FAITHFUL, model, "nothing is changed"), None
        if (mode, recogniser) != (FAITHFUL, "bf16"):
            try:  # everything as the next start will take it
                int8 = capacity(*AUTO, model, "there is no verdict now, so bf16 stays")
            except ModelError:
                (folder / VERDICT).unlink(missing_ok=True)
                commit()
                raise
    measured = Measured(plain, int8, mode, recogniser)
    if measured.lost:
        (folder / VERDICT).unlink(missing_ok=True)
    else:
        publish(results / VERDICT, folder)
    commit()
    return measured, results


def judge_int8(
    cache: Path,
    volume: str,
    commit: Commit,
    effort: Effort = WHOLE,
    bench: Bench = run_bench,
    reload: Commit = lambda: None,
) -> None:
    """Measure, keep the verdict, print what it means. Raises SystemExit where there can be none."""
    started = time.monotonic()
    tidy(os.environ)
    try:
        config = judged_config()
        fetch(config, make_progress_printer(), commit, reload)
        set_compile_cache(os.environ, cache)
        local = pin_to_local(config)
        folder = hub.find(local.model, local.revision or None, make_progress_printer())
        measured, results = measure(folder, config, commit, effort, bench)
    except EngineError as error:
        raise SystemExit(f"error: {describe_for_modal(error)}") from None
    print(
        f"\ngates of {config.model} on {cuda_device_name() or 'cpu'}: {effort.frames} frames, "
        f"{time.monotonic() - started:.0f} s"
    )
    for line in [
        *describe_verdict(config, folder, measured),
        f"results     {volume_command('get', results, cache, volume)}",
        *advise(measured, volume_command("rm", folder / VERDICT, cache, volume)),
    ]:
        print(line, flush=True)


def judged_config() -> ServerConfig:
    """The server's settings. Raises ConfigError if there is nothing to judge, or no GPU."""
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
            "there is no GPU here, and the gates measure on the server's; run them with the GPU "
            "that you deploy with: PERSONAPLEX_GPU=A10G modal run modal_app.py::gates"
        )
    return config


# -- what the operator reads -----------------------------------------------------------------------


def describe_verdict(config: ServerConfig, folder: Path, measured: Measured) -> Iterator[str]:
    """What is held and allowed, and what the next start takes: a setting may have fixed it."""
    asked, lost, plain, int8 = (config.weights, config.kv), "", measured.plain, measured.int8
    yield f"\nheld        {plain.held} of {plain.slots} in bf16"
    if int8:
        beside = ", recogniser int8" if measured.recogniser == "int8" else ""
        mode = describe_mode(measured.mode) + beside
        yield f"            {int8.held} of {int8.slots} with {mode}"
    if measured.lost:
        lost = f", for int8 holds {'fewer' if int8.held else 'nobody'}"
    yield f"verdict     {describe_mode(choose_precision(AUTO, folder, config.device))}{lost}"
    forced = "" if asked == AUTO else ", as PERSONAPLEX_WEIGHTS and PERSONAPLEX_KV say"
    yield f"next start  {describe_mode(choose_precision(asked, folder, config.device))}{forced}"
    if source := choose_recogniser(config, os.environ):
        from engine.weights.loading import download_recogniser  # brings torch along

        found = download_recogniser(source)
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
