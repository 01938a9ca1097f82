"""`python -m engine voices`: the voices of a model, the default first; and how they sound."""

import argparse
from pathlib import Path

import numpy as np

from engine.commands.offline import Speaker, drive_conversation
from engine.config import FRAME_RATE, FRAME_SAMPLES, VOICE_NAMES, SamplingConfig, ServerConfig
from engine.progress import show
from engine.runtime.backend import Backend, Opening
from engine.runtime.choose import choose_model, load_backend
from engine.weights.voices import open_voices
from engine.wire.audio import OpusCodec

SAMPLE = "Hello! This is how I sound. What shall we talk about?"
SAMPLE_FRAMES = int(12 * FRAME_RATE)  # at most
QUIET = 0.003  # root mean square of a frame in which nobody speaks
AFTER = int(0.8 * FRAME_RATE)  # frames of quiet after which the sample is over
SEED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="auto", help="auto, embedded, a directory or repository")
    parser.add_argument("--revision", help="of the repository")
    parser.add_argument("--samples", help="write a sentence of every voice into FOLDER/MODEL")


def run(args: argparse.Namespace) -> int:
    source, _why = choose_model(args.model)
    embedded = source == "embedded"
    if args.samples:
        backend = load_backend(ServerConfig(model=source, slots=1, transcribe="0"), show)
        write_samples(backend, Path(args.samples) / source.rstrip("/").rpartition("/")[2])
        return 0
    names = VOICE_NAMES if embedded else open_voices(source, args.revision, show).names
    print("\n".join(names))
    return 0


def write_samples(backend: Backend, folder: Path) -> None:
    """Let every voice say a sentence, as Ogg/Opus; where the page looks for them: assets/voices."""
    folder.mkdir(parents=True, exist_ok=True)
    for voice in backend.voices:
        frames = np.concatenate(list(say_sample(backend, voice)))
        (folder / f"{voice}.opus").write_bytes(OpusCodec().encode(frames))
        print(f"{folder / voice}.opus: {len(frames) / FRAME_SAMPLES / FRAME_RATE:.1f} s")


def say_sample(backend: Backend, voice: str) -> list[np.ndarray]:
    """The frames [1920] of a voice's sentence, without the quiet before and after it."""
    opening = Opening(voice, (), SamplingConfig(), SEED)
    silence = [np.zeros(FRAME_SAMPLES, np.float32)] * SAMPLE_FRAMES
    kept: list[np.ndarray] = []
    quiet = 0
    for frame in drive_conversation(backend, opening, silence, Speaker(backend, [(0, SAMPLE)])):
        loud = float(np.sqrt(np.mean(frame.pcm**2))) > QUIET
        quiet = 0 if loud else quiet + 1
        if loud or kept:
            kept.append(frame.pcm)
        if kept and quiet == AFTER:
            break
    return kept[: len(kept) - quiet + 1]
