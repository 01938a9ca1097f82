"""What the measurements of the model share: models to run, one stopwatch, memory and kernels.

The models have generated weights, so nothing has to be downloaded. Nothing here judges a number.
"""

import argparse
import contextlib
import gc
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from engine.bench.report import add_device
from engine.config import FRAME_SAMPLES, PAD, SamplingConfig
from engine.errors import ConfigError
from engine.model.config import ModelConfig
from engine.model.gpu.graphs import Ticks
from engine.model.lm import LM
from engine.model.loop import Loop
from engine.model.mimi import Mimi
from engine.model.transformer import Rings
from engine.weights.generated import FULL, SMALL, generated

COPY_BYTES = 4 << 30  # of the copy that the bandwidth is read from, on a GPU
CPU_COPY_BYTES = 256 << 20
KV_TYPES = {"bf16": None, "int8": torch.int8}
WARM_UP_RUNS = 2  # of timed work: they compile and allocate, and do not count

Row = dict[str, Any]
Work = Callable[[], Any]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--random", action="store_true", help="generated weights (the only source)")
    add_device(parser)


def pick_device(args: argparse.Namespace) -> str:
    return args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def pick_config(args: argparse.Namespace) -> ModelConfig:
    """The sizes to run. Raises ConfigError for the full size on a CPU, whose memory it fills."""
    if not args.small and pick_device(args) == "cpu":
        raise ConfigError("the full size needs a GPU; add --small for a reduced one on this CPU")
    return SMALL if args.small else FULL


# -- models ----------------------------------------------------------------------------------------


def generate_models(args: argparse.Namespace, weights: str) -> tuple[LM, Mimi]:
    release_memory()  # of former ones
    return generated(pick_config(args), pick_device(args), weights)


def make_loop(lm: LM, mimi: Mimi, slots: int, kv: str) -> Loop:
    """A loop whose slots all sample with the default settings."""
    loop = Loop(lm, mimi, slots, KV_TYPES[kv])
    for slot in range(slots):
        loop.sampler.tune(slot, SamplingConfig())
        loop.sampler.seed(slot, slot)
    return loop


def fill_context(loop: Loop, columns: int) -> None:
    """Give every slot and its codec a past of random numbers: zeros would cost less."""
    for rings in (loop.rings, loop.encoder.rings, loop.decoder.rings):
        randomise(rings)
    rewind(loop, columns)


def rewind(loop: Loop, columns: int) -> None:
    """Put every slot where its next tick reads `columns` columns, its own among them."""
    set_pushed(loop.rings, columns - 1)
    for rings in (loop.encoder.rings, loop.decoder.rings):
        set_pushed(rings, (columns - 1) * loop.mimi.config.columns)


def set_pushed(rings: Rings, pushed: int) -> None:
    rings.position.fill_(pushed)
    rings.pushed[:] = [pushed] * len(rings.pushed)  # in place: narrower rings share it


def randomise(rings: Rings) -> None:
    if rings.scale is None:
        rings.kv.normal_()
    else:
        rings.kv.random_(-127, 128)
        rings.scale.fill_(0.02)


# -- time ------------------------------------------------------------------------------------------


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_once(work: Work) -> tuple[float, Any]:
    """Seconds of some work until the device has finished it, and what the work returned."""
    synchronize()
    start = time.perf_counter()
    result = work()
    synchronize()
    return time.perf_counter() - start, result


def time_work(work: Work, times: int, before: Work = lambda: None, captured: bool = False) -> float:
    """Median seconds of some work; `before` runs ahead of each time and does not count.

    With `captured` the work is recorded as a CUDA graph, and the graph is what is timed.
    """
    if captured:
        work()  # compiles: that cannot be recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        work = graph.replay
    taken = []
    for _ in range(WARM_UP_RUNS + times):
        before()
        taken.append(time_once(work)[0])
    return float(np.median(taken[WARM_UP_RUNS:]))


def measure_bandwidth(device: str) -> float:
    """Bytes a second of a large copy; what is read and what is written both count."""
    size = COPY_BYTES if device == "cuda" else CPU_COPY_BYTES
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / time_work(lambda: target.copy_(source), 10)


def run_tick(ticks: Ticks, slots: int, pcm: np.ndarray) -> float:
    """Seconds of one tick of the first slots, with its copies and what the host does."""
    active = np.arange(ticks.loop.slots) < slots
    start = time.perf_counter()
    text, *_ = ticks.listen(pcm, active)
    ticks.speak(np.where(active, text, PAD), np.zeros(len(active), bool))
    return time.perf_counter() - start


# -- memory ----------------------------------------------------------------------------------------


def release_memory() -> None:
    """Give back what nothing refers to any more, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def skip_if_full(head: Row, keep: Callable[[Row], None]) -> Iterator[None]:
    """Run work that may not fit the device: then `keep` gets a row that says so, and we go on.

    What the functions inside have allocated is given back; the caller's own names stay.
    """
    note = ""
    try:
        yield
    except torch.OutOfMemoryError as error:
        note = f"does not fit: {str(error).splitlines()[0]}"
        traceback.clear_frames(error.__traceback__)  # it would keep all that did fit
    release_memory()
    if note:
        print(*(f"{name} {value}," for name, value in head.items()), note, flush=True)
        keep(head | {"note": note})


# -- kernels ---------------------------------------------------------------------------------------


def count_launches(loop: Loop, slots: int) -> int:
    """What one tick of the first slots launches: kernels; on a CPU operators that compute."""
    ticks = Ticks(loop, graphs=False)
    pcm = np.zeros((loop.slots, FRAME_SAMPLES), np.float32)
    run_tick(ticks, slots, pcm)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if ticks.cuda else [])
    with profile(activities=kinds) as profiler:
        run_tick(ticks, slots, pcm)
    events = profiler.events()
    if not ticks.cuda:
        return sum(e.name.startswith("aten::") and not e.cpu_children for e in events)
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not e.name.startswith("Mem") for e in on_device)
