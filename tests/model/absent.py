"""A GPU that is not here: what the host asks of one, at the public size too, and nothing computed.

Tensors on the absent device are meta tensors that say they are on it, so the code takes the paths
of a GPU. Kept are the launches, the copies, and where the host waits; a wait nobody declared
fails, because no number of a meta tensor can be read. Graphs keep apart what they recorded.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.model.gpu import depth, kernels, kernels_attention

GPU, META = torch.device("cuda", 99), torch.device("meta")  # nobody has so many
NO_LAUNCH = {"empty.memory_format", "new_empty", "empty_like", "empty_strided", "detach_"}
UPLOADS = {torch.tensor, torch.as_tensor, Tensor.to, Tensor.cuda}  # from memory that any may page


@dataclass(frozen=True, slots=True)
class Copy:
    """Between host and device."""

    up: bool
    waits: bool  # the host does, for the memory is not pinned or the call says so


@dataclass(slots=True)
class Seen:
    """What the device was asked for."""

    kernels: Counter = field(default_factory=Counter)  # of Triton and of CUDA C++, by name
    operators: Counter = field(default_factory=Counter)  # of PyTorch, those that launch something
    copies: list[Copy] = field(default_factory=list)
    waits: int = 0
    replays: list["Seen"] = field(default_factory=list)

    @property
    def launches(self) -> int:
        return self.kernels.total() + self.operators.total()


class Device(TorchFunctionMode):
    """`with Device() as device`: a GPU there is, and `device.seen` what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.pinned, self.within = Seen(), {}, ExitStack()

    def __enter__(self) -> "Device":
        for context in (
            torch.inference_mode(False),  # there an operator made of others is not taken apart
            torch.no_grad(),
            mock.patch.object(type(kernels._matmul), "run", self._launch),
            mock.patch.object(depth, "launch", self._launch_cuda),
            mock.patch.object(kernels_attention, "launch", self._launch_cuda),
            mock.patch.multiple(torch.cuda, **self._driver()),
            Operators(self),
        ):
            self.within.enter_context(context)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.within.close()

    def taken(self) -> Seen:
        """What was asked for since this was last called."""
        seen, self.seen = self.seen, Seen()
        return seen

    @property
    def _launch(self):
        def launch(kernel, *args, **options) -> None:
            self.seen.kernels[kernel.fn.__name__] += 1

        return launch

    def _launch_cuda(self, source: str, name: str, *args: object, **options: object) -> None:
        self.seen.kernels[name] += 1

    def _driver(self) -> dict:
        """As much of torch.cuda as a tick uses, and every way to wait."""
        device = self

        def wait(*which: object) -> None:
            device.seen.waits += 1

        class Event:
            synchronize = wait

            def record(self) -> None: ...

        class Stream:
            synchronize = wait

            def wait_stream(self, other: "Stream") -> None: ...

        class Graph:
            def replay(self) -> None:
                device.seen.replays.append(self.recorded)

        @contextmanager
        def record(graph: Graph, pool: object = None, **options: object) -> Iterator[None]:
            before, graph.in_pool = device.taken(), pool
            yield
            graph.recorded, device.seen = device.seen, before

        return {
            "Event": Event, "Stream": Stream, "current_stream": Stream, "stream": nullcontext,
            "CUDAGraph": Graph, "graph": record, "graph_pool_handle": object, "synchronize": wait,
            "get_device_properties": lambda which: SimpleNamespace(multi_processor_count=132),
        }  # fmt: skip

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == Tensor.is_cuda.__get__:
            return args[0].is_meta
        if func == Tensor.device.__get__:
            return GPU if args[0].is_meta else func(*args)
        if func is Tensor.pin_memory:
            self.pinned[_memory(args[0])] = args[0]
            return args[0]
        if func is Tensor.copy_ and args[0].is_meta != args[1].is_meta:
            return self._copy(*args, **kwargs or {})
        args = [META if _is_gpu(value) else value for value in args]
        kwargs = {name: META if _is_gpu(value) else value for name, value in (kwargs or {}).items()}
        result = func(*args, **kwargs)
        if func in UPLOADS and result.is_meta and not _is_meta(args[0]):
            self.seen.copies.append(Copy(up=True, waits=True))
        return result

    def _copy(self, to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        assert to.shape == source.shape
        pinned = _memory(source if to.is_meta else to) in self.pinned
        self.seen.copies.append(Copy(to.is_meta, not (pinned and non_blocking)))
        return to


class Operators(TorchDispatchMode):
    """Counts PyTorch's operators on the device, but for those that only look at memory anew."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = _name_launched(func)
        if name and (_is_meta(result) or any(map(_is_meta, tree_leaves((args, kwargs, result))))):
            self.device.seen.operators[name] += 1
        return result


@cache
def _name_launched(operator: OpOverload) -> str:
    """The operator's name, or nothing if it launches nothing."""
    name = str(operator).removeprefix("aten.").removesuffix(".default")
    return "" if operator.is_view or name in NO_LAUNCH else name


def _is_gpu(value: object) -> bool:
    return isinstance(value, torch.device) and value == GPU


def _is_meta(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
