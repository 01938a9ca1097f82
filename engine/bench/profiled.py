"""A tick as the profiler sees it: how many kernels, which ones, how long each kind takes."""

from collections import defaultdict

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from engine.bench.device import tick
from engine.config import FRAME_SAMPLES
from engine.model.graphs import Ticks
from engine.model.loop import Loop


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
