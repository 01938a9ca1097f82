"""Safetensors files written one tensor at a time: the header first, then bytes where they belong.

The library's own writer wants all tensors in memory at once. Reading is `checkpoint.TensorFile`.
"""

import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Tensors = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # type and shape by name
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int8: "I8"}  # of the format
ALIGNMENT = 8  # bytes; readers map what lies at it
LEFT_SECONDS = 3600.0  # without a write, after which a draft is one that a killed process left


class Layout:
    """What a file will hold: names with type and shape, and where each tensor's bytes begin."""

    def __init__(self, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
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


class Draft:
    """A file that nobody needs, only wants: `with Draft(…) as draft`, and it is there at the end.

    It appears whole or not at all. The disk's faults end it with a line in the log; whatever else
    is raised inside discards it.
    """

    def __init__(self, target: Path, layout: Layout, mode_of: Path) -> None:
        self._target, self._layout, self._mode_of = target, layout, mode_of
        self._path: Path | None = None  # of the draft, while there is one

    def __enter__(self) -> "Draft":
        prefix = f".{self._target.name}-"
        try:
            remove_leftovers(self._target.parent, prefix)
            descriptor, name = tempfile.mkstemp(prefix=prefix, dir=self._target.parent)
            self._path, self._file = Path(name), os.fdopen(descriptor, "wb")
            self._writer = Writer(self._file, self._layout)
        except OSError as error:
            self._give_up(error)
        return self

    def write(self, name: str, value: Tensor) -> None:
        if self._path:
            try:
                self._writer.write(name, value)
            except OSError as error:
                self._give_up(error)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind:
            self._discard()
        elif self._path:
            try:
                self._publish()
            except OSError as error:
                self._give_up(error)
            else:
                logger.info("%s is written: later starts read it", self._target)

    def _publish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())  # else a power cut could leave zeros under a good name
        self._file.close()
        shutil.copymode(self._mode_of, self._path)
        os.replace(self._path, self._target)

    def _give_up(self, error: OSError) -> None:
        logger.warning("%s is not kept, so every start makes it: %s", self._target, error)
        self._discard()

    def _discard(self) -> None:
        if self._path:
            with suppress(OSError):  # what could not be written cannot be flushed either
                self._file.close()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._path = None


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Free the room of drafts that killed processes left. Raises OSError."""
    for draft in folder.glob(f"{prefix}*"):
        if time.time() - draft.stat().st_mtime > LEFT_SECONDS:
            draft.unlink(missing_ok=True)
