"""What the benches of the model share: the model to run, bandwidth, clocks and their options."""

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from engine.bench.arguments import add_device
from engine.bench.recogniser import SMALL as SMALL_STT
from engine.bench.recogniser import random_recogniser
from engine.errors import ConfigError
from engine.model.attention import Rings
from engine.model.config import ModelConfig
from engine.model.graphs import Ticks
from engine.model.loop import Loop
from engine.model.stt import Hearing, Recogniser, SttConfig
from engine.runtime.generated import FULL, SMALL, generated

COPY_BYTES = 4 << 30  # of the copy that the bandwidth is read from, on a GPU
MIMI_BYTES = 0.33e9  # one encode and one decode of the public codec, read once a tick
KV_TYPES = {"bf16": None, "int8": torch.int8}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--random", action="store_true", help="generated weights (the only source)")
    parser.add_argument("--small", action="store_true", help="less, of a reduced size: for a CPU")
    add_device(parser)
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--json", help="where to write the result")


def device_of(args: argparse.Namespace) -> str:
    return args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def config_of(args: argparse.Namespace) -> ModelConfig:
    """Raises ConfigError for the full size on a CPU, whose memory it would fill."""
    if not args.small and device_of(args) == "cpu":
        raise ConfigError("the full size needs a GPU; add --small for a reduced one on this CPU")
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


def recogniser_of(args: argparse.Namespace, weights: str) -> Recogniser:
    """A recogniser of generated weights."""
    device = torch.device(device_of(args))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = SMALL_STT if args.small else SttConfig()
    return random_recogniser(config, device, dtype, int8=weights == "int8")


def hearing_of(stt: Recogniser, slots: int) -> Hearing:
    """It at work for a number of slots, their rings full."""
    device = stt.embedding.table.device
    hearing = Hearing(stt, slots, torch.zeros(stt.config.n_q, dtype=torch.int64, device=device))
    draw(hearing.rings)
    stand_at(hearing.rings, hearing.rings.capacity)
    return hearing


def fill_context(loop: Loop, columns: int) -> None:
    """Give every slot and its codec a past that `stand` may point into: drawn, not zeros."""
    for rings in (loop.rings, loop.encoder.rings, loop.decoder.rings):
        draw(rings)
    stand(loop, columns)


def stand(loop: Loop, columns: int) -> None:
    """Put every slot where its next tick reads so many columns, its own among them."""
    stand_at(loop.rings, columns - 1)
    for rings in (loop.encoder.rings, loop.decoder.rings):
        stand_at(rings, (columns - 1) * loop.mimi.config.columns)


def stand_at(rings: Rings, pushed: int) -> None:
    """All slots at once, as `Rings.set_position` is for one."""
    rings.position.fill_(pushed)
    rings.pushed[:] = [pushed] * len(rings.pushed)  # in place: narrower rings share it


def draw(rings: Rings) -> None:
    if rings.scale is None:
        rings.kv.normal_()
    else:
        rings.kv.random_(-127, 128)
        rings.scale.fill_(0.02)


class Marks:
    """CUDA events before and after each half of a tick."""

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []

    def __call__(self) -> None:
        self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[-1].record()

    def ms(self) -> float:
        """Milliseconds of both halves by the device's own clock."""
        synchronize()
        began, heard, chosen, spoken = self._events
        return began.elapsed_time(heard) + chosen.elapsed_time(spoken)


def tick(
    ticks: Ticks,
    slots: int,
    pcm: np.ndarray,
    writing: bool = False,
    mark: Callable[[], None] = lambda: None,
) -> float:
    """One tick of the first slots, all of them transcribed if `writing`; seconds.

    `mark` is called before and after each of its halves.
    """
    active = np.arange(ticks.loop.slots) < slots
    start = time.perf_counter()
    mark()
    text, *_ = ticks.listen(pcm, active, range(slots) if writing else ())
    mark()
    chosen = np.where(active, text, 3)
    mark()
    ticks.speak(chosen, np.zeros(len(active), bool))
    mark()
    return time.perf_counter() - start


def bandwidth(device: str) -> float:
    """Bytes a second of a large copy, read and written both counted."""
    cuda = device == "cuda"
    size = COPY_BYTES if cuda else 256 << 20
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median(lambda: target.copy_(source), 10)


def median(work: Callable[[], Any], times: int, before: Callable[[], None] | None = None) -> float:
    """Median seconds of some work, finished on the device too; `before` each is not counted."""
    taken = []
    for _ in range(times + 2):
        if before:
            before()
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
