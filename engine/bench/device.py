"""What the benches of the model share: the model to run, bandwidth, clocks and their options."""

import argparse
import contextlib
import gc
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from engine.bench.recogniser import SMALL as SMALL_STT
from engine.bench.recogniser import random_recogniser
from engine.bench.report import add_device
from engine.config import FRAME_SAMPLES
from engine.errors import ConfigError
from engine.model.config import ModelConfig
from engine.model.gpu.graphs import Ticks
from engine.model.lm import LM
from engine.model.loop import Loop
from engine.model.mimi import Mimi
from engine.model.stt import Hearing, Recogniser, SttConfig
from engine.model.transformer import Rings
from engine.weights.generated import FULL, SMALL, generated
from engine.weights.loading import Checkpoint, LoadedRecogniser
from engine.weights.sizing import Memory, Precision, free_bytes

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


# -- fits ------------------------------------------------------------------------------------------
#
# What a bench does with a combination that does not fit the device: it says so and goes on.
#
# First the arithmetic of a server's start is asked, as what no server would run need not be
# measured; what that did not foresee, the device itself refuses.

Row = dict[str, Any]


@contextlib.contextmanager
def unless_full(head: Row, keep: Callable[[Row], None]) -> Iterator[None]:
    """Work that may not fit: then `keep` gets a row that says so, and what follows goes on.

    What the functions called inside have allocated is given back; names of the caller stay.
    """
    note = ""
    try:
        yield
    except torch.OutOfMemoryError as error:
        note = f"does not fit: {str(error).splitlines()[0]}"
        traceback.clear_frames(error.__traceback__)  # it would keep all that did fit
    release()
    if note:
        print(*(f"{name} {value}," for name, value in head.items()), note, flush=True)
        keep(head | {"note": note})


def beside(lm: LM, mimi: Mimi, mode: Precision, stt: Recogniser | None = None) -> Memory | None:
    """The arithmetic for loaded models, of precision `mode`; None on a CPU: it is not counted."""
    release()
    free = free_bytes(lm.embedding.table.device)
    if free is None:
        return None
    heard = LoadedRecogniser(stt, None) if stt else None
    return Memory(Checkpoint("generated", lm, mimi, None, None), heard, mode, free)


def check_room(memory: Memory | None, slots: int) -> None:
    """Raises torch.OutOfMemoryError where a server would not start with so many slots."""
    if memory is None or memory.slots(most=slots) == slots:
        return
    needed = slots * memory.slot_bytes(memory.mode)
    there = max(0, needed + memory.left(slots))
    raise torch.OutOfMemoryError(
        f"{needed / 1e9:.2f} GB of {there / 1e9:.2f} GB beside the weights and the reserve"
    )


# -- profiled --------------------------------------------------------------------------------------
#
# A tick as the profiler sees it: how many kernels, which ones, how long each kind takes.


def profiled(loop: Loop, slots: int) -> list:
    """The events of one tick of the first slots, without graphs."""
    ticks = Ticks(loop, graphs=False)
    pcm = np.zeros((loop.slots, FRAME_SAMPLES), np.float32)
    tick(ticks, slots, pcm)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if ticks.cuda else [])
    with profile(activities=kinds) as profiler:
        tick(ticks, slots, pcm)
    events = profiler.events()
    if not ticks.cuda:
        return [e for e in events if e.name.startswith("aten::") and not e.cpu_children]
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    return [e for e in on_device if not e.name.startswith("Mem")]


def launches(loop: Loop, slots: int) -> int:
    """Kernels of one tick; on a CPU, operators that compute, as a stand-in."""
    return len(profiled(loop, slots))


def kernels(loop: Loop, slots: int) -> list[dict]:
    """One row a kind of kernel, the costliest first."""
    taken = defaultdict(list)
    for event in profiled(loop, slots):
        elapsed = event.time_range.elapsed_us()
        taken[event.name[:60]].append(elapsed)
    rows = [
        {"kernel": name, "launches": len(us), "us_each": float(np.mean(us)), "us": float(sum(us))}
        for name, us in taken.items()
    ]
    return sorted(rows, key=lambda row: -row["us"])
