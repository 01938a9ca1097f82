"""How long a newcomer waits for the first agent audio: cold, with a new prompt, with a kept one.

From the opening to the first agent frame on the host, alone on the machine. Not in it: the 80 ms
in which the first user frame is spoken, which that frame answers, and the network (`capacity` has
both). Cold is weights, which are generated here (`load` reads them), kernels, graphs and the first
opening; the second precision finds what it shares with the first compiled. A server's whole start
is `ready_s` of `capacity`.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from engine.bench.device import (
    Row,
    add_model_arguments,
    beside,
    check_room,
    config_of,
    device_of,
    loop_of,
    models,
    synchronize,
    tick,
    unless_full,
)
from engine.bench.report import BenchRecord, add_precisions, positive, table
from engine.config import FRAME_SAMPLES, SamplingConfig
from engine.errors import ConfigError
from engine.model.gpu.graphs import Ticks
from engine.model.loop import Loop, PromptState
from engine.model.prompt import Prompt, Voice, build_prompt, prompt_frames
from engine.weights.sizing import Precision

SMALL_OPTIONS = {"columns": [80]}
SLOTS = 2
GIVEN_COLUMNS = 11  # of a prompt without a voice: silence around the persona, less the last column
NEW, KEPT = 3, 9  # openings of each kind, of which the median one counts


@dataclass(frozen=True, slots=True)
class Opened:
    """One opening; seconds."""

    pieces: tuple[float, ...]  # of the prompt
    ready: float  # until the slot stands before its bootstrap tick
    bootstrap: float  # the tick of the last prompt column
    first_audio: float  # until the next tick, the first that hears the user, has given a frame


def prompt_of(loop: Loop, columns: int) -> Prompt:
    """A prompt that runs so many columns before its last."""
    config = loop.lm.config
    frames = prompt_frames(config, (5,) * (columns - GIVEN_COLUMNS))
    return build_prompt(config, Voice(), frames)


def prefill(ticks: Ticks, prompt: Prompt) -> tuple[float, ...]:
    """Seconds of each piece of a prompt."""
    taken, loop = [], ticks.loop
    embedded = loop.lm.embedding(prompt.columns[:-1].to(loop.device))
    for piece in embedded.split(loop.piece):
        start = time.perf_counter()
        ticks.prefill.run(0, piece)
        synchronize()
        taken.append(time.perf_counter() - start)
    return tuple(taken)


def opened(
    ticks: Ticks, prompt: Prompt, kept: PromptState | None = None
) -> tuple[Opened, PromptState]:
    """Open slot 0, from what was kept of the prompt or anew, until it speaks; what to keep."""
    loop = ticks.loop
    pcm = np.zeros((loop.slots, FRAME_SAMPLES), np.float32)
    synchronize()
    start = time.perf_counter()
    loop.clear(0)
    pieces = () if kept else prefill(ticks, prompt)
    kept = kept or loop.save_prompt(0, prompt)
    loop.start(0, kept)
    loop.sampler.seed(0, 0)
    loop.sampler.tune(0, SamplingConfig())
    synchronize()
    ready = time.perf_counter() - start
    bootstrap = tick(ticks, 1, pcm)
    tick(ticks, 1, pcm)
    return Opened(pieces, ready, bootstrap, time.perf_counter() - start), kept


def median(openings: list[Opened]) -> Opened:
    return sorted(openings, key=lambda each: each.first_audio)[len(openings) // 2]


def row_of(ticks: Ticks, columns: int) -> Row:
    """Milliseconds; `first` is the first opening of this size, with whatever it compiles."""
    prompt = prompt_of(ticks.loop, columns)
    first, kept = opened(ticks, prompt)
    new = median([opened(ticks, prompt)[0] for _ in range(NEW)])
    known = median([opened(ticks, prompt, kept)[0] for _ in range(KEPT)])
    return {
        "columns": columns, "prefill_ms": sum(new.pieces) * 1e3,
        "longest_piece_ms": max(new.pieces) * 1e3, "kept_mb": kept.bytes / 1e6,
        "restore_ms": known.ready * 1e3, "bootstrap_ms": known.bootstrap * 1e3,
        "first_audio_first_ms": first.first_audio * 1e3,
        "first_audio_new_ms": new.first_audio * 1e3,
        "first_audio_kept_ms": known.first_audio * 1e3,
    }  # fmt: skip


def of_weights(args: argparse.Namespace, weights: str, record: BenchRecord) -> None:
    """One row a length of the prompt; the first of them knows the cold start."""
    start = time.perf_counter()
    lm, mimi = models(args, weights)
    synchronize()
    made = time.perf_counter() - start
    mode = Precision(weights, weights)
    check_room(beside(lm, mimi, mode), SLOTS)
    start = time.perf_counter()
    loop = loop_of(args, lm, mimi, SLOTS, mode.kv)
    ticks = Ticks(loop, not args.eager)
    synchronize()
    captured = time.perf_counter() - start
    for index, columns in enumerate(args.columns):
        row = {"weights_and_kv": weights, "generate_s": made, "capture_s": captured}
        row |= row_of(ticks, columns)
        if index == 0:
            row["cold_s"] = made + captured + row["first_audio_first_ms"] / 1e3
        record.add(row)


def check_columns(columns: list[int], context: int) -> None:
    """Raises ConfigError for a length that no prompt has here."""
    for each in columns:
        if not GIVEN_COLUMNS <= each < context:
            raise ConfigError(
                f"--columns is {each}; use {GIVEN_COLUMNS} (no persona) to {context - 1} (full)"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--columns", type=positive, nargs="+", default=[100, 400])
    add_precisions(parser)


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    check_columns(args.columns, config_of(args).lm.context)
    record = BenchRecord("connect", args.json, device=device_of(args), rows=[])
    for weights in args.weights:
        with unless_full({"weights_and_kv": weights}, record.add):
            of_weights(args, weights, record)
    print(table(record.result["rows"]))
    print("written:", record.save())
    return 0
