"""From a checkpoint's folder to modules, tokenizer and voices on the device.

Weights go from the mapped file to the device one tensor at a time (checkpoint.py).
"""

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
import torch
from torch import nn

from engine.errors import ModelError
from engine.model.config import LMConfig, ModelConfig
from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.model.names import lm_pieces, mimi_pieces, unused_by_lm
from engine.model.prompt import RING, Voice
from engine.runtime.checkpoint import Pieces, load
from engine.runtime.hub import CONFIG, LM_FILE, MIMI_FILE, TEXT_FILE, Progress, find
from engine.runtime.int8_cache import load_int8


class VoiceShelf(Protocol):
    """Names and files of voices; `dialogue/voices.py` keeps this contract."""

    names: tuple[str, ...]

    def path(self, name: str) -> Path:
        """Raises ModelError naming the voices there are."""

    def audio(self, name: str) -> np.ndarray:
        """A recorded voice, float32 [T], 24 kHz, at the loudness the model expects."""


Shelf = Callable[[Path], VoiceShelf]  # made from a model's folder


class Tokenizer:
    """SentencePiece with ▁ for blanks; ids 0 EPAD (unknown), 3 PAD."""

    def __init__(self, path: Path) -> None:
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"{path} is no SentencePiece model ({error}); fetch it again"
            ) from None

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def piece(self, token: int) -> str:
        return self._pieces.id_to_piece(token)

    def decode(self, tokens: list[int]) -> str:
        """The text of whole words, bytes put together."""
        return self._pieces.decode(tokens)

    def __len__(self) -> int:
        return self._pieces.get_piece_size()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model ready to run."""

    name: str
    lm: LM
    mimi: Mimi
    tokenizer: Tokenizer
    voices: VoiceShelf


def read_config(folder: Path) -> ModelConfig:
    """Raises ModelError."""
    path = folder / CONFIG
    try:
        return ModelConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}); fetch it again") from error


def load_checkpoint(
    source: str,
    shelf: Shelf,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    int8: bool = False,
    revision: str | None = None,
    progress: Progress = lambda phase, percent: None,
) -> Checkpoint:
    """Find or fetch a checkpoint and load it. Raises ModelError in one clear line.

    dtype is the language model's; None: bf16 on a GPU, float32 elsewhere. The codec is float32.
    int8: the language model's products are kept so (engine/model/int8.py), on disk too
    (int8_cache.py).
    """
    folder, where = find(source, revision, progress), torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda is asked for, but PyTorch sees none; use --device cpu")
    config, voices = read_config(folder), shelf(folder)
    dtype = dtype or (torch.bfloat16 if where.type == "cuda" else torch.float32)
    torch.backends.cudnn.allow_tf32 = False  # the codec's codes must be those of float32
    with torch.device("meta"):
        lm, mimi = LM(config.lm), Mimi(config.mimi)

    def fill(
        model: nn.Module, file: str, pieces: Pieces, dtype, unused, int8: bool = False
    ) -> None:
        phase = f"loading {file}"
        (load_int8 if int8 else load)(
            model, folder / file, pieces, where, dtype, unused,
            report=lambda percent: progress(phase, percent),
        )  # fmt: skip

    fill(mimi, MIMI_FILE, list(mimi_pieces(mimi)), torch.float32, lambda name: False)
    mimi.prepare()
    fill(lm, LM_FILE, list(lm_pieces(lm)), dtype, lambda name: unused_by_lm(lm, name), int8)
    lm.hasten()
    tokenizer = Tokenizer(folder / TEXT_FILE)
    if len(tokenizer) > config.lm.text_card:
        raise ModelError(
            f"{folder / TEXT_FILE} has {len(tokenizer)} pieces, lm.text_card is "
            f"{config.lm.text_card}; use the files of one release together"
        )
    return Checkpoint(Path(source).name or source, lm, mimi, tokenizer, voices)


def read_saved_voice(path: Path, config: LMConfig) -> Voice:
    """A `.pt` voice: tensors only, never code. Raises ModelError."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        embeddings, ring = saved["embeddings"], saved["cache"]
        return Voice(
            embeddings=embeddings.reshape(-1, config.dim),
            ring=ring.reshape(config.n_q + 1, RING).long(),
        )
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise ModelError(_bad_voice(path, config, error)) from error
    except pickle.UnpicklingError as error:
        raise ModelError(_bad_voice(path, config, "it is not made of tensors only")) from error


def _bad_voice(path: Path, config: LMConfig, why: object) -> str:
    return (
        f"{path} is not a saved voice of this model ({why}); expected embeddings "
        f"[N, 1, 1, {config.dim}] and cache [1, {config.n_q + 1}, {RING}]"
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
