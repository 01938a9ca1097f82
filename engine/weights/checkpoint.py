"""Weights from a safetensors file into a model, one tensor at a time.

Every name and shape is checked before the first byte of data is read. The file is mapped, not
read: what counts as ours in memory is one tensor beyond the model itself.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.errors import ModelError
from engine.model.transformer import Linear
from engine.weights.names import Pieces, TensorSlice

Report = Callable[[float], None]  # percent
OLD_SPELLINGS = (  # of codebooks in older codec files
    (r"\binited$", "_initialized"),
    (r"\bcluster_size$", "cluster_usage"),
    (r"\bembed(ding)?_(avg|sum)$", "embedding_sum"),
)


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
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self._names: dict[str, str] = {}  # in the file, by today's spelling
        for name in self._file.keys():  # noqa: SIM118
            today = name
            for pattern, to in OLD_SPELLINGS:
                today = re.sub(pattern, to, today)
            self._names[today] = name

    def names(self) -> set[str]:
        return set(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(self._names[name]).get_shape())

    def dtype(self, name: str) -> str:
        """As the format spells it: BF16, F32, I8."""
        return self._file.get_slice(self._names[name]).get_dtype()

    def read(self, piece: TensorSlice) -> Tensor:
        """The rows of a piece, still backed by the file."""
        name = self._names[piece.name]
        if piece.rows is None:
            return self._file.get_tensor(name)
        return self._file.get_slice(name)[piece.skip : piece.skip + piece.rows]


def check(file: TensorFile, pieces: Pieces, unused: Callable[[str], bool]) -> None:
    """Raises ModelError naming the first tensor that is missing, misshapen or unexpected."""
    wanted = {piece.name: piece for _, group in pieces for piece in group}
    names = file.names()
    for name, piece in wanted.items():
        if name not in names:
            raise ModelError(f"{file.path} has no tensor {name}; is it a PersonaPlex checkpoint?")
        if file.shape(name) not in piece.shapes:
            expected = " or ".join(str(list(shape)) for shape in piece.shapes)
            raise ModelError(
                f"{file.path}: {name} is {list(file.shape(name))}, but config.json "
                f"makes it {expected}; use the files of one release together"
            )
    unexpected = sorted(name for name in names - wanted.keys() if not unused(name))
    if unexpected:
        raise ModelError(
            f"{file.path} has a tensor {unexpected[0]} that this engine does not know "
            f"({len(unexpected)} such); does config.json belong to it?"
        )


def parameters(
    model: nn.Module, file: TensorFile, pieces: Pieces, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """(name, value on the device) of every parameter, one after the other; keeps none of them."""
    for name, group in pieces:
        value = torch.zeros(model.get_parameter(name).shape, dtype=dtype, device=device)
        for piece in group:
            end = None if piece.rows is None else piece.start + piece.rows
            target = value[piece.start : end]
            target.copy_(file.read(piece).view(target.shape))
        yield name, value
        del value, target  # before the next one is made


def place(model: nn.Module, name: str, value: Tensor, int8: bool = False) -> None:
    """Make a value the parameter of that name; products become int8, or are re-ordered for a CPU,
    at once: the plain weight of one of them is all that is held beside the rest."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    if isinstance(module, Linear):
        module.quantise() if int8 else module.pack()


def fill(
    model: nn.Module,
    file: TensorFile,
    pieces: Pieces,
    device: torch.device,
    dtype: torch.dtype,
    report: Report,
    int8: bool,
) -> None:
    """Give a model built on the meta device its values, and report after each."""
    total = sum(parameter.numel() for parameter in model.parameters())
    done = 0
    for name, value in parameters(model, file, pieces, device, dtype):
        done += value.numel()
        place(model, name, value, int8)
        del value  # the plain weight, where the model keeps another form of it
        report(100 * done / total)
