"""Safetensors files written one tensor at a time: the header first, then bytes where they belong.

The library's own writer wants all tensors in memory at once. Reading is `checkpoint.TensorFile`.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.model.transformer import Linear, quantise_weight
from engine.weights.checkpoint import Report, TensorFile, check, fill
from engine.weights.hub import INT8_SUFFIX
from engine.weights.names import TensorSlice

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


# -- int8 cache ------------------------------------------------------------------------------------
#
# int8 weights kept on disk beside the file they were made of: later starts read half the bytes.
#
# `model.safetensors` gets `model.int8.safetensors`: every parameter as the engine keeps it,
# products
# as int8 with a scale for each output. It is written tensor by tensor while the source is
# quantised,
# and becomes visible only when it is whole and on the disk. It is never trusted: a cache that
# was cut
# short, belongs to another source, model, precision or quantiser, or holds anything unexpected, is
# ignored with a line in the log and made anew. A folder that cannot be written costs that line
# only.
#
# Like any weights, its data are not summed up: that would cost what the cache saves.

FORMAT = "1"  # of the cache; another number makes all older ones stale
BLOCK = 4096  # bytes of each tensor that a source without a content hash is known by
PROBE = (1024, 8)  # a weight whose int8 form tells one quantiser from another


def load_int8(
    model: nn.Module,
    path: Path,
    pieces: Iterable[tuple[str, list[TensorSlice]]],
    device: torch.device,
    dtype: torch.dtype,
    unused: Callable[[str], bool] = lambda name: False,
    report: Report = lambda percent: None,
) -> None:
    """As `checkpoint.load`, with products in int8: from the cache, or else filling it.

    Both ways give the same parameters to the bit. Raises ModelError, about the source only.
    """
    file, pieces = TensorFile(path), list(pieces)
    check(file, pieces, unused)
    cache, tensors = path.with_suffix(INT8_SUFFIX), kept_tensors(model, dtype)
    mark = {
        "format": FORMAT,
        "source": fingerprint(path),
        "quantiser": quantiser_hash(device, dtype),
    }
    if kept := open_cache(cache, tensors, mark):
        return read_cache(model, kept, device, report)
    with Draft(cache, Layout(tensors, mark), mode_of=path) as draft:

        def keep(name: str) -> None:
            for key, value in parts(model, name):
                draft.write(key, value)

        fill(model, file, pieces, device, dtype, report, int8=True, placed=keep)


# -- what identifies a cache -----------------------------------------------------------------------


def fingerprint(path: Path) -> str:
    """A hash by which another source is noticed without reading all of it.

    A file of the hub's cache is a link to a blob whose name is the SHA-256 of its content: the name
    says it all. Any other file is known by its size, time of change, header and a block of every
    tensor: an edit in place changes the time, another release that kept the time changes the
    blocks. A copy with a new time costs one conversion.
    """
    real = path.resolve()
    with real.open("rb") as file:
        state = os.stat(file.fileno())
        header = file.read(int.from_bytes(file.read(8), "little"))
        digest = hashlib.sha256(b"%d " % state.st_size + header)
        if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", real.name):
            digest.update(real.name.encode())
            return digest.hexdigest()
        digest.update(b"%d" % state.st_mtime_ns)
        data = file.tell()
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                file.seek(data + start + max(0, end - start - BLOCK) // 2)
                digest.update(file.read(min(BLOCK, end - start)))
    return digest.hexdigest()


def quantiser_hash(device: torch.device, dtype: torch.dtype) -> str:
    """What the quantiser makes of a fixed weight here: devices round differently, code changes."""
    probe = torch.randn(PROBE, generator=torch.Generator().manual_seed(0))
    made = quantise_weight(probe.to(device, dtype))
    content = b"".join(value.cpu().numpy().tobytes() for value in made)
    return hashlib.sha256(str(dtype).encode() + content).hexdigest()


def kept_tensors(model: nn.Module, dtype: torch.dtype) -> Tensors:
    """Type and shape of everything a cache of this model holds."""
    found: Tensors = {}
    for name, parameter in model.named_parameters():
        owner, _, _ = name.rpartition(".")
        product = isinstance(model.get_submodule(owner), Linear)
        found[name] = torch.int8 if product else dtype, tuple(parameter.shape)
        if product:
            found[f"{owner}.scale"] = torch.float32, (parameter.shape[0],)
    return found


# -- reading ---------------------------------------------------------------------------------------


def open_cache(cache: Path, tensors: Tensors, mark: dict[str, str]) -> TensorFile | None:
    """The cache if it is whole and all that it should be, checked before data is read."""
    if not cache.exists():
        return None
    try:
        file = TensorFile(cache)
        why = difference(file, tensors, mark)
    except ModelError as error:
        why = str(error.__cause__)
    if not why:
        return file
    logger.warning("%s is ignored and made anew: %s", cache, why)
    return None


def difference(file: TensorFile, tensors: Tensors, mark: dict[str, str]) -> str:
    """The first thing in which a file is not the cache that is wanted; empty: none."""
    for entry, value in mark.items():
        if file.metadata.get(entry) != value:
            return f"it is of another {entry}"
    names = file.names()
    if names != tensors.keys():
        return f"it holds other tensors, such as {min(names ^ tensors.keys())}"
    for name, (dtype, shape) in tensors.items():
        if (file.dtype(name), file.shape(name)) != (NAMES[dtype], shape):
            return f"{name} is {file.dtype(name)} {file.shape(name)}, not {NAMES[dtype]} {shape}"
    return ""


def read_cache(model: nn.Module, file: TensorFile, device: torch.device, report: Report) -> None:
    """Give a model on the meta device what a cache holds, one tensor at a time."""

    def read(name: str) -> Tensor:
        return file.read(TensorSlice(name, ())).to(device, copy=True)

    parameters = list(model.named_parameters())
    total, done = sum(parameter.numel() for _, parameter in parameters), 0
    for name, parameter in parameters:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, Linear):
            module.keep(read(name), read(f"{owner}.scale"))
        else:
            setattr(module, leaf, nn.Parameter(read(name), requires_grad=False))
        done += parameter.numel()
        report(100 * done / total)


# -- writing ---------------------------------------------------------------------------------------


def parts(model: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of what a cache keeps of one parameter that is in place."""
    owner, _, _ = name.rpartition(".")
    module = model.get_submodule(owner)
    yield name, model.get_parameter(name)
    if isinstance(module, Linear):
        yield f"{owner}.scale", module.scale
