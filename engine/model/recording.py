"""CUDA graphs: some work is recorded once, and launched whole from then on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WARM_UPS = 3


@dataclass
class Recorded:
    """One graph, and the tensor that its replay fills, if the work gives one."""

    graph: "torch.cuda.CUDAGraph"
    out: Tensor | None


def record(work: Callable[[], Tensor | None], pool: object = None) -> Recorded:
    """Record some work on fixed addresses after running it, compilers and all.

    pool: where its intermediates lie, shared with graphs that never run beside it.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = work()
    return Recorded(graph, out)
