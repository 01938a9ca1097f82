"""Generated models as checkpoints on disk, in the layout of the public files of 8 depth steps.

For measuring and testing what begins with files, where no checkpoint can be had. The vocabulary and
the voice come from the tiny checkpoint of the tests; nothing here is for talking to people.
"""

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from engine.model.config import ModelConfig
from engine.model.names import lm_pieces, mimi_pieces
from engine.runtime.checkpoint import Pieces
from engine.runtime.generated import on_meta, values
from engine.runtime.hub import CONFIG, LM_FILE, MIMI_FILE, TEXT_FILE
from engine.runtime.loader import Tokenizer
from engine.runtime.tensors import Layout, Writer

TINY = Path("tests/golden/tiny")
VOICE = "TINYM0.wav"
FILLER_SCORE = -100.0  # of pieces that only fill the vocabulary: a text never needs one


def write_checkpoint(folder: Path, config: ModelConfig, device: str = "cpu", seed: int = 0) -> None:
    """Make a folder that loads like any checkpoint and equals `generated(config, device)`.

    Equals to the bit on a GPU; on a CPU its language model is that one rounded to bfloat16. Holds
    one tensor at a time.
    """
    (folder / "voices").mkdir(parents=True, exist_ok=True)
    shutil.copy(TINY / "voices" / VOICE, folder / "voices")
    write_tokenizer(folder / TEXT_FILE, config.lm.text_card)
    generator = torch.Generator(torch.device(device)).manual_seed(seed)
    lm, mimi = on_meta(config)
    whole = torch.float32
    write_model(folder / MIMI_FILE, list(mimi_pieces(mimi)), values(mimi, whole, generator), whole)
    half = torch.bfloat16
    write_model(folder / LM_FILE, list(lm_pieces(lm)), values(lm, half, generator), half)
    written = replace(config, lm=replace(config.lm, dep_q=config.lm.codebooks))
    (folder / CONFIG).write_text(json.dumps(asdict(written), indent=2), encoding="utf-8")


def write_model(
    path: Path, pieces: Pieces, parameters: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> None:
    """Write a model's parameters, in any order, as the file that `pieces` reads them from."""
    groups = dict(pieces)
    layout = Layout(
        {piece.name: (dtype, piece.shapes[-1]) for group in groups.values() for piece in group}
    )
    with path.open("wb") as file:
        writer = Writer(file, layout)
        for name, value in parameters:
            for piece in groups[name]:
                row = math.prod(value.shape[1:])  # numbers
                end = None if piece.rows is None else piece.start + piece.rows
                writer.write(piece.name, value[piece.start : end].to(dtype), piece.skip * row)


def write_tokenizer(path: Path, size: int) -> None:
    """The tiny vocabulary, brought to so many pieces.

    Repeated fields of a protobuf message may follow anywhere: new pieces are appended to the file.
    """
    source = TINY / TEXT_FILE
    own = len(Tokenizer(source))
    assert size >= own, f"text_card is {size}; the vocabulary of {source} has {own} pieces"
    added = b"".join(_piece(f"▁w{number}") for number in range(own, size))
    path.write_bytes(source.read_bytes() + added)


def _piece(text: str) -> bytes:
    """Field 1 of SentencePiece's ModelProto: a piece's text (1) and score (2)."""
    score = torch.tensor(FILLER_SCORE).numpy().tobytes()
    message = _field(1, text.encode()) + b"\x15" + score
    return _field(1, message)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content
