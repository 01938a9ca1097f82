"""Safetensors files written one tensor at a time: the header first, then bytes where they belong.

The library's own writer wants all tensors in memory at once. Reading is `checkpoint.TensorFile`.
"""

import json
import math
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor

NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int8: "I8"}  # of the format
ALIGNMENT = 8  # bytes; readers map what lies at it


class Layout:
    """What a file will hold: names with type and shape, and where each tensor's bytes begin."""

    def __init__(
        self,
        tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        header, end = {"__metadata__": dict(metadata)} if metadata else {}, 0
        self.types = {name: dtype for name, (dtype, _) in tensors.items()}
        self.starts: dict[str, int] = {}
        for name, (dtype, shape) in tensors.items():
            self.starts[name], size = end, dtype.itemsize * math.prod(shape)
            header[name] = {
                "dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size],
            }  # fmt: skip
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        self.head = len(text).to_bytes(8, "little") + text
        self.size = len(self.head) + end


class Writer:
    """Fills an open, empty file by a layout."""

    def __init__(self, file: BinaryIO, layout: Layout) -> None:
        self._file, self._layout = file, layout
        file.write(layout.head)
        file.truncate(layout.size)

    def write(self, name: str, value: Tensor, skip: int = 0) -> None:
        """Put a tensor, or rows of it that begin after `skip` numbers, where it belongs."""
        dtype = self._layout.types[name]
        assert value.dtype == dtype, f"{name} is {value.dtype}; its layout says {dtype}"
        start = self._layout.starts[name] + skip * dtype.itemsize
        self._file.seek(len(self._layout.head) + start)
        self._file.write(value.contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
