"""What the benches of the model share: the model to run, bandwidth, clocks and their options."""

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from engine.bench.recogniser import SMALL as SMALL_STT
from engine.bench.recogniser import random_recogniser
from engine.model.attention import Rings
from engine.model.graphs import Ticks
from engine.model.loop import Loop
from engine.model.stt import Hearing, SttConfig
from engine.runtime.generated import FULL, SMALL, generated

COPY_BYTES = 4 << 30  # of the copy that the bandwidth is read from, on a GPU
MIMI_BYTES = 0.33e9  # one encode and one decode of the public codec, read once a tick
KV_TYPES = {"bf16": None, "int8": torch.int8}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--random", action="store_true", help="generated weights (the only source)")
    parser.add_argument("--small", action="store_true", help="a reduced size, for a CPU")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--json", help="where to write the result")


def device_of(args: argparse.Namespace) -> str:
    return args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def config_of(args: argparse.Namespace):
    return SMALL if args.small else FULL


def models(args: argparse.Namespace, weights: str):
    """(language model, codec) of generated weights; memory of former ones is given back."""
    release()
    return generated(config_of(args), device_of(args), weights)


def release() -> None:
    """Free what nobody holds any more, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def loop_of(args: argparse.Namespace, lm, mimi, slots: int, kv: str) -> Loop:
    """A loop whose slots all sample with the default settings."""
    from engine.config import SamplingConfig

    loop = Loop(lm, mimi, slots, KV_TYPES[kv])
    for slot in range(slots):
        loop.sampler.tune(slot, SamplingConfig())
        loop.sampler.seed(slot, slot)
    return loop


def hearing_of(args: argparse.Namespace, weights: str, slots: int) -> Hearing:
    """A recogniser of generated weights whose rings are full."""
    device = torch.device(device_of(args))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = SMALL_STT if args.small else SttConfig()
    stt = random_recogniser(config, device, dtype, int8=weights == "int8")
    hearing = Hearing(stt, slots, torch.zeros(config.n_q, dtype=torch.int64, device=device))
    fill(hearing.rings, config.context)
    return hearing


def fill_context(loop: Loop, columns: int) -> None:
    """Give every slot a past of so many columns; the numbers are drawn, not zeros."""
    fill(loop.rings, columns)


def fill(rings: Rings, columns: int) -> None:
    draw(rings)
    for slot in range(len(rings.pushed)):
        rings.set_position(slot, columns)


def draw(rings: Rings) -> None:
    if rings.scale is None:
        rings.kv.normal_()
    else:
        rings.kv.random_(-127, 128)
        rings.scale.fill_(0.02)


def tick(ticks: Ticks, slots: int, pcm: np.ndarray, writing: bool = False) -> float:
    """One tick of the first slots, all of them transcribed if `writing`; seconds."""
    active = np.arange(ticks.loop.slots) < slots
    start = time.perf_counter()
    text, *_ = ticks.listen(pcm, active, range(slots) if writing else ())
    ticks.speak(np.where(active, text, 3), np.zeros(len(active), bool))
    return time.perf_counter() - start


def bandwidth(device: str) -> float:
    """Bytes a second of a large copy, read and written both counted."""
    cuda = device == "cuda"
    size = COPY_BYTES if cuda else 256 << 20
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median(lambda: target.copy_(source), 10)


def median(work: Callable[[], Any], times: int) -> float:
    """Median seconds of some work, finished on the device too."""
    taken = []
    for _ in range(times + 2):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[2:]))


def bytes_of(tensors) -> int:
    """Bytes of tensors, each memory once."""
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(seen.values())
