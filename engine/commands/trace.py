"""`python -m engine trace`: every token and sample of a conversation, in one file.

It runs like `offline`, through the same backend, and writes tensors. Row i is frame i: text and
agent codes that belong to the same 80 ms.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from engine import __version__
from engine.commands.offline import (
    Direct,
    Speaker,
    add_model_arguments,
    check_voice,
    collect_words,
    drive_conversation,
    load_model,
    make_opening,
    split_frames,
    undirected,
)
from engine.commands.outputs import check_output, write_output
from engine.errors import ConfigError, ModelError
from engine.progress import show
from engine.runtime.backend import Backend, HeardRow
from engine.wire.client import read_wav


def parse_force(text: str) -> dict[int, int]:
    """`12:337,260` as {12: 337, 13: 260}."""
    frame, _, ids = text.partition(":")
    try:
        return {int(frame) + i: int(token) for i, token in enumerate(ids.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}; use FRAME:ID,ID,… for example 22:337,260"
        ) from None


def make_director(backend: Backend, args: argparse.Namespace) -> Direct:
    """--force in its frames, else --say, else the model. Raises ConfigError for unknown tokens."""
    forced = {frame: token for part in args.force for frame, token in part.items()}
    vocabulary = len(backend.tokenizer)
    for frame, token in forced.items():
        if not (frame >= 0 and 0 <= token < vocabulary):
            raise ConfigError(
                f"--force {frame}:{token}; use frames from 0 and ids from 0 to {vocabulary - 1}"
            )
    otherwise = Speaker(backend, args.say) if args.say else undirected
    numbers = itertools.count()

    def direct(sampled: int, *rest: Any) -> tuple[int, bool]:
        frame = next(numbers)
        return (forced[frame], False) if frame in forced else otherwise(sampled, *rest)

    return direct


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", "--input-wav", dest="input", required=True, metavar="WAV")
    parser.add_argument("--out", required=True, metavar="SAFETENSORS")
    parser.add_argument("--frames", type=int, help="stop after this many; default: the whole input")
    parser.add_argument(
        "--force", type=parse_force, action="append", default=[], metavar="FRAME:ID,ID,…",
        help="feed these text tokens from a frame on, whatever the model or --say wants",
    )  # fmt: skip
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.frames is not None and args.frames < 1:
        raise ConfigError(f"--frames is {args.frames}; use 1 or more")
    check_output("--out", args.out, ("", ".safetensors"))
    user = split_frames(read_wav(args.input))[: args.frames]
    check_voice(args)
    backend = load_model(args, show)
    if not hasattr(backend, "prompt_frames"):
        raise ModelError("the embedded backend has no tokens to trace; give --model a checkpoint")
    direct, start = make_director(backend, args), make_opening(backend, args)
    flushed: list[HeardRow] = []
    frames = list(drive_conversation(backend, start, user, direct, flushed=flushed))
    found = {
        "user_codes": np.stack([frame.user_codes for frame in frames]),  # [T, 8]
        "sampled_text": np.array([frame.sampled_text for frame in frames], np.int64),
        "text": np.array([frame.text for frame in frames], np.int64),
        "agent_codes": np.stack([frame.agent_codes for frame in frames]),  # [T, 8]
        "pcm": np.concatenate([frame.pcm for frame in frames]),  # [T * 1920]
    }
    metadata = {
        "model": args.model,
        "voice": start.voice,
        "prompt_frames": str(backend.prompt_frames(start)),
        "seed": str(start.seed),
        "version": __version__,
    }
    if backend.transcribes:  # row i is the recogniser's step that read user frame i
        rows = [frame.heard for frame in frames]
        found["stt_tokens"] = np.array([row.stt_text for row in rows], np.int64)  # [T]
        if rows[0].pause is not None:
            found["stt_pause"] = np.stack([row.pause for row in rows])  # [T, 4]
        metadata["words"] = json.dumps(collect_words(frames, flushed, backend), ensure_ascii=False)
    write_output("--out", args.out, lambda file: save_file(found, file, metadata))
    print(f"{len(frames)} frames of {Path(args.input).name} -> {args.out}")
    return 0
