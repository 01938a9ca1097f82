"""Is int8 good enough here? `modal run modal_app.py::gates`, on the server's own GPU and weights.

A drift that is too large is a result and leaves bf16; a run that breaks ends in one clear line.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from demo.judging import AUTO, FAITHFUL, WHOLE, Bench, Effort, Judge, Measured, Mode, in_a_process
from demo.preflight import printing
from demo.settings import container_config
from demo.volume import Commit, device_name, fetch, keep_compiled, pinned_to_local
from engine.config import ServerConfig
from engine.errors import ConfigError, EngineError
from engine.hardware import has_cuda
from engine.runtime import hub
from engine.runtime.verdict import VERDICT, precise, precise_recogniser


def gates(
    cache: Path,
    volume: str,
    commit: Commit,
    effort: Effort = WHOLE,
    bench: Bench = in_a_process,
) -> None:
    """Fetch what is missing, measure, keep the verdict, say what it means.

    Raises SystemExit in one clear line where no verdict could be reached.
    """
    started = time.monotonic()
    try:
        config = configuration()
        fetch(config, printing(), commit)
        keep_compiled(os.environ, cache)
        local = pinned_to_local(config)
        folder = hub.find(local.model, local.revision or None, printing())
        judge = Judge(folder, config, commit, effort, bench)
        drift, measured = judge.drift(), judge.capacities()
    except EngineError as error:
        raise SystemExit(f"error: {error}") from None
    taken = f"{effort.frames} frames, {time.monotonic() - started:.0f} s"
    print(f"\ngates of {config.model} on {device_name()}: {taken}")
    for line in [
        *drift_lines(drift),
        *capacity_lines(measured),
        *verdict_lines(config, folder, measured),
        *recogniser_lines(config, folder),
        f"results     {on_volume('get', judge.results, cache, volume)}",
        *advice(measured, on_volume("rm", folder / VERDICT, cache, volume)),
    ]:
        print(line, flush=True)


def configuration() -> ServerConfig:
    """The server's settings. Raises ConfigError where there is nothing to judge, or no GPU."""
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


def drift_lines(drift: dict) -> Iterator[str]:
    """One line for each part that was compared with bf16, then what is asked of it."""
    yield "\ncompared with bf16    same first choice        KL   its rise   in doubt by"
    for row in drift["rows"]:
        numbers = f"{row['top1']:17.2%}  {row['kl']:8.5f}  {row['kl_rise']:+9.5f}"
        doubt, good = f"{row['kl_rise_error']:8.5f}", "good" if row["good"] else "TOO MUCH"
        yield f"{row['what']:<20}  {numbers}      {doubt}  {good}"
    most = drift["limits"]
    yield (
        f"asked for: the same in {most['top1']:.0%} of the frames, a rise of at most "
        f"{most['rise of mean']:g} of KL, or {most['rise']:g},\nor {most['rise of error']:g} times "
        f"what it is in doubt by; {drift['spoken']:.0%} of the frames have text"
    )


def capacity_lines(measured: Measured) -> Iterator[str]:
    yield "\nconversations held in time"
    held = {spoken(FAITHFUL): measured.plain}
    if measured.int8:
        beside = ", recogniser int8" if measured.recogniser == "int8" else ""
        held[spoken(measured.mode) + beside] = measured.int8
    for mode, capacity in held.items():
        yield f"{mode:<40}  {capacity.held:2} of {capacity.slots} places"


def verdict_lines(config: ServerConfig, folder: Path, measured: Measured) -> Iterator[str]:
    """What is allowed now, and what the next start takes, which a setting may have fixed."""
    asked = config.weights, config.kv
    lost = ""
    if measured.lost:
        lost = f", for int8 holds {'fewer' if measured.int8.held else 'nobody'}"
    yield f"\nverdict     {spoken(precise(AUTO, folder, config.device))}{lost}"
    forced = "" if asked == AUTO else ", as PERSONAPLEX_WEIGHTS and PERSONAPLEX_KV say"
    yield f"next start  {spoken(precise(asked, folder, config.device))}{forced}"


def recogniser_lines(config: ServerConfig, folder: Path) -> Iterator[str]:
    """What the next start takes for the recogniser, where it is turned on."""
    if config.transcribe:
        from engine.runtime.recogniser import download_recogniser  # brings torch along

        found = download_recogniser(config.transcribe)
        weights = precise_recogniser(config.weights, folder, found, config.device)
        yield f"recogniser  weights {weights}"


def advice(measured: Measured, remove: str) -> Iterator[str]:
    """What there is to do, with the commands."""
    if measured.int8 is None or measured.lost:
        yield "\nNothing to do: bf16 stays."
        return
    yield "\nNothing to do: `auto` obeys. What runs keeps its mode until it ends, sooner with"
    yield "  modal app rollover personaplex"
    yield "Listen to it before you rely on it. To use bf16 all the same, deploy with"
    yield "  PERSONAPLEX_WEIGHTS=bf16 PERSONAPLEX_KV=bf16 modal deploy modal_app.py"
    yield "To withdraw the verdict, delete it:"
    yield f"  {remove}"


def on_volume(verb: str, path: Path, cache: Path, volume: str) -> str:
    """The command for a path of the volume; for one elsewhere, the path itself."""
    inside = path.is_relative_to(cache)
    return f"modal volume {verb} {volume} {path.relative_to(cache)}" if inside else str(path)


def spoken(mode: Mode) -> str:
    return "weights {}, keys and values {}".format(*mode)
