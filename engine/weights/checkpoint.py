"""Weights from a safetensors file into a model, one tensor at a time.

Every name and shape is checked before the first byte of data is read. The file is mapped, not
read: what counts as ours in memory is one tensor beyond the model itself.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.errors import ModelError
from engine.model.transformer import Linear
from engine.weights.names import Sources, TensorSlice, find_sources, is_unused

OLD_SPELLINGS = {  # of codebooks in older codec files
    r"\binited$": "_initialized",
    r"\bcluster_size$": "cluster_usage",
    r"\bembed(ding)?_(avg|sum)$": "embedding_sum",
}


class TensorFile:
    """One mapped safetensors file. Raises ModelError if it is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{path} cannot be read ({error}); it is missing or cut short: "
                "run `python -m engine download` to fetch it again"
            ) from error
        self._spelled: dict[str, str] = {}  # in the file, by today's name
        for name in self._file.keys():  # noqa: SIM118
            today = name
            for pattern, to in OLD_SPELLINGS.items():
                today = re.sub(pattern, to, today)
            self._spelled[today] = name
        self.names = set(self._spelled)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(self._spelled[name]).get_shape())

    def read(self, part: TensorSlice) -> Tensor:
        """Rows of a tensor, still backed by the file."""
        name = self._spelled[part.name]
        if part.rows is None:
            return self._file.get_tensor(name)
        return self._file.get_slice(name)[part.skip : part.skip + part.rows]


def match_sources(model: nn.Module, file: TensorFile) -> Sources:
    """What fills a model. Raises ModelError for the first missing, misshapen or unknown tensor."""
    sources = find_sources(model, file.names)
    wanted = {part.name: part for group in sources.values() for part in group}
    for name, part in wanted.items():
        if name not in file.names:
            raise ModelError(f"{file.path} has no tensor {name}; is it a PersonaPlex checkpoint?")
        if file.shape(name) not in part.shapes:
            expected = " or ".join(str(list(shape)) for shape in part.shapes)
            raise ModelError(
                f"{file.path}: {name} is {list(file.shape(name))}, but config.json "
                f"makes it {expected}; use the files of one release together"
            )
    unexpected = sorted(n for n in file.names - wanted.keys() if not is_unused(model, n))
    if unexpected:
        raise ModelError(
            f"{file.path} has a tensor {unexpected[0]} that this engine does not know "
            f"({len(unexpected)} such); does config.json belong to it?"
        )
    return sources


def read_parameters(
    model: nn.Module, file: TensorFile, sources: Sources, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """(name, value on the device) of every parameter, one after the other; keeps none of them."""
    for name, group in sources.items():
        value = torch.zeros(model.get_parameter(name).shape, dtype=dtype, device=device)
        for part in group:
            end = None if part.rows is None else part.start + part.rows
            target = value[part.start : end]
            target.copy_(file.read(part).view(target.shape))
        yield name, value
        del value, target  # before the next one is made


def set_parameter(model: nn.Module, name: str, value: Tensor, int8: bool = False) -> None:
    """Set a parameter; a product is quantised or packed at once, so that only one is held plain."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    if isinstance(module, Linear):
        module.quantise() if int8 else module.pack()


def usual_dtype(device: torch.device) -> torch.dtype:
    """The language models' precision on a device, where int8 is not asked for."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
