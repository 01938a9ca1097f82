"""int8 weights on disk: made once by `python -m engine quantise`, read by later starts in int8.

`model.safetensors` gets a folder `model.int8` beside it. It holds all parameters in shards:
products as int8 with a scale for each output, the others as the engine keeps them. `index.json`
says what they were made from. The folder appears whole or not at all.

Its description is checked. One that was cut short, belongs to another source, model, precision or
quantiser, or holds anything unexpected is ignored with a line in the log, and the start quantises
in memory. The data have no checksum: computing one would cost the time that reading them saves.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.errors import ModelError
from engine.model.transformer import Linear, quantise_columns, quantise_weight
from engine.weights.checkpoint import TensorFile, match_sources, read_parameters, usual_dtype
from engine.weights.hub import INT8_SUFFIX, Report
from engine.weights.names import TensorSlice

logger = logging.getLogger(__name__)

INDEX = "index.json"
FORMAT = "2"  # of the folder; another number makes all older ones stale
SHARD_BYTES = 1 << 30  # from which a shard is written: all that is held in memory
BLOCK = 4096  # bytes of each tensor that a source without a content hash is known by
LEFT_SECONDS = 3600.0  # age from which a draft counts as one that a killed process left


def write_int8(model: nn.Module, path: Path, device: torch.device, report: Report) -> Path:
    """Quantise a file on a device into the folder beside it; good ones stay. Raises ModelError."""
    file, target, dtype = TensorFile(path), path.with_suffix(INT8_SUFFIX), usual_dtype(device)
    sources = match_sources(model, file)
    if target.exists() and open_kept(model, path, device, dtype):
        return target
    prefix = f".{target.name}-"
    try:
        for left in target.parent.glob(f"{prefix}*"):  # they take room
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(
            prefix=prefix, dir=target.parent, ignore_cleanup_errors=True
        ) as scratch:
            draft = Path(scratch) / "new"
            draft.mkdir()
            values = read_parameters(model, file, sources, device, dtype)
            write_shards(draft, model, values, report)
            (draft / INDEX).write_text(json.dumps(origin(path, device, dtype)), encoding="utf-8")
            for written in draft.iterdir():
                shutil.copymode(path, written)
                with written.open("rb") as opened:  # a power cut must not leave zeros
                    os.fsync(opened.fileno())
            if target.exists():
                target.rename(Path(scratch) / "old")
            draft.rename(target)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{target} is not kept, so every start quantises: {error}") from error
    logger.info("%s is written: later starts read it", target)
    return target


def write_shards(
    folder: Path, model: nn.Module, values: Iterator[tuple[str, Tensor]], report: Report
) -> None:
    """Write (name, value) of every parameter in their int8 form, one shard in memory at a time."""
    shard: dict[str, Tensor] = {}
    total, done, number = sum(p.numel() for p in model.parameters()), 0, 0
    for name, value in values:
        owner, _, _ = name.rpartition(".")
        if isinstance(model.get_submodule(owner), Linear):
            weight, scale = quantise_weight(value)
            shard |= {name: weight.cpu(), f"{owner}.scale": scale.cpu()}
        else:
            shard[name] = value.cpu()
        done += value.numel()
        if done == total or sum(kept.nbytes for kept in shard.values()) >= SHARD_BYTES:
            save_file(shard, folder / f"{number:03}.safetensors")
            shard, number = {}, number + 1
        report(100 * done / total)


# -- what int8 weights were made of ----------------------------------------------------------------


def origin(path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What the index must say of int8 weights that belong to a file and a device."""
    quantiser = quantiser_hash(device, dtype)
    return {"format": FORMAT, "source": fingerprint(path), "quantiser": quantiser}


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
    """What the quantisers make of a probe here: devices round differently, code changes."""
    probe = torch.randn(1024, 8, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    made = *quantise_weight(probe), *quantise_columns(probe)
    content = b"".join(value.cpu().numpy().tobytes() for value in made)
    return hashlib.sha256(str(dtype).encode() + content).hexdigest()


# -- reading ---------------------------------------------------------------------------------------

Kept = dict[str, TensorFile]  # the shard of every tensor


def open_kept(
    model: nn.Module, path: Path, device: torch.device, dtype: torch.dtype
) -> Kept | None:
    """The int8 weights beside a file if they are what they should be, else a line in the log."""
    folder = path.with_suffix(INT8_SUFFIX)
    if not folder.exists():
        logger.info("%s is quantised at every start; `python -m engine quantise` keeps it", path)
        return None
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        shards = [TensorFile(shard) for shard in sorted(folder.glob("*.safetensors"))]
        kept = {name: shard for shard in shards for name in shard.names}
        why = difference(model, kept, index, origin(path, device, dtype))
    except ModelError as error:
        why = str(error.__cause__)
    except (OSError, ValueError) as error:
        why = f"{INDEX} cannot be read ({error})"
    if not why:
        return kept
    logger.warning("%s is ignored: %s; `python -m engine quantise` makes it anew", folder, why)
    return None


def difference(model: nn.Module, kept: Kept, index: object, wanted: dict[str, str]) -> str:
    """The first thing in which kept weights are not those that are wanted; empty: none."""
    for entry, value in wanted.items():
        if not isinstance(index, dict) or index.get(entry) != value:
            return f"it is of another {entry}"
    products = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    expected = {name for name, _ in model.named_parameters()} | {f"{p}.scale" for p in products}
    if kept.keys() != expected:
        return f"it holds other tensors, such as {min(kept.keys() ^ expected)}"
    return ""


def read_kept(model: nn.Module, kept: Kept, device: torch.device, report: Report) -> None:
    """Give a model on the meta device its int8 weights, one tensor at a time."""

    def read(name: str) -> Tensor:
        return kept[name].read(TensorSlice(name, ())).to(device, copy=True)

    total, done = sum(parameter.numel() for parameter in model.parameters()), 0
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, Linear):
            module.set_int8(read(name), read(f"{owner}.scale"))
        else:
            setattr(module, leaf, nn.Parameter(read(name), requires_grad=False))
        done += parameter.numel()
        report(100 * done / total)
