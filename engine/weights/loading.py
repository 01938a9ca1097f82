"""From folders to models on a device: a checkpoint with tokenizer and voices, and a recogniser.

Weights go from the mapped file to the device one tensor at a time (checkpoint.py).
"""

import hashlib
import json
import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import sentencepiece
import torch
from torch import nn

from engine.errors import ModelError
from engine.model.config import LMConfig, ModelConfig, SttConfig
from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.model.prompt import RING, Voice
from engine.model.stt import Recogniser
from engine.weights.checkpoint import Report, TensorFile, check, fill
from engine.weights.hub import CONFIG, LM_FILE, MIMI_FILE, TEXT_FILE, Progress, fetch, find
from engine.weights.int8 import open_kept, read_kept, write_int8
from engine.weights.names import (
    Pieces,
    lm_pieces,
    mimi_pieces,
    stt_pieces,
    unused_by_lm,
    unused_by_stt,
)
from engine.weights.voices import Voices

logger = logging.getLogger(__name__)

Shelf = Callable[[Path], Voices]  # made from a model's folder


class SentencePieceTokenizer:
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
    tokenizer: SentencePieceTokenizer
    voices: Voices


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
    int8: the language model's products are kept so (int8.py).
    """
    folder, where = find(source, revision, progress), torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda is asked for, but PyTorch sees none; use --device cpu")
    config, voices = read_config(folder), shelf(folder)
    dtype = dtype or usual_dtype(where)
    torch.backends.cudnn.allow_tf32 = False  # the codec's codes must be those of float32
    with torch.device("meta"):
        lm, mimi = LM(config.lm), Mimi(config.mimi)

    def reporter(file: str) -> Report:
        return lambda percent: progress(f"loading {file}", percent)

    report = reporter(MIMI_FILE)
    load(mimi, folder / MIMI_FILE, mimi_pieces(mimi), where, torch.float32, report=report)
    mimi.prepare()
    mimi.use_fused_kernels()
    load(
        lm, folder / LM_FILE, lm_pieces(lm), where, dtype, partial(unused_by_lm, lm),
        reporter(LM_FILE), int8,
    )  # fmt: skip
    lm.use_fused_kernels()
    tokenizer = SentencePieceTokenizer(folder / TEXT_FILE)
    if len(tokenizer) > config.lm.text_card:
        raise ModelError(
            f"{folder / TEXT_FILE} has {len(tokenizer)} pieces, lm.text_card is "
            f"{config.lm.text_card}; use the files of one release together"
        )
    return Checkpoint(Path(source).name or source, lm, mimi, tokenizer, voices)


def load(
    model: nn.Module,
    path: Path,
    pieces: Pieces,
    device: torch.device,
    dtype: torch.dtype,
    unused: Callable[[str], bool] = lambda name: False,
    report: Report = lambda percent: None,
    int8: bool = False,
) -> None:
    """Check a file against a model built on the meta device, and fill it.

    int8: products as kept on disk, or else quantised now; both ways give the same parameters to the
    bit. Raises ModelError, about the file only.
    """
    file = TensorFile(path)
    check(file, pieces, unused)
    if int8 and (kept := open_kept(model, path, device, dtype)):
        read_kept(model, kept, device, report)
    else:
        fill(model, file, pieces, device, dtype, report, int8)


def usual_dtype(device: torch.device) -> torch.dtype:
    """The language models' precision on a device, where int8 is not asked for."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def quantise_checkpoint(
    folder: Path, device: str | torch.device, report: Report = lambda percent: None
) -> Path:
    """Write the int8 weights of a checkpoint's language model beside it, for a kind of device.

    Good ones that are there stay. The folder of int8 weights. Raises ModelError.
    """
    where = torch.device(device)
    with torch.device("meta"):
        lm = LM(read_config(folder).lm)
    return write_int8(
        lm, folder / LM_FILE, lm_pieces(lm), where, usual_dtype(where),
        partial(unused_by_lm, lm), report,
    )  # fmt: skip


def read_saved_voice(path: Path, config: LMConfig) -> Voice:
    """A `.pt` voice: tensors only, never code. Raises ModelError."""
    faults = (OSError, RuntimeError, KeyError, TypeError, AttributeError, EOFError)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        embeddings, ring = saved["embeddings"], saved["cache"]
        return Voice(
            embeddings=embeddings.reshape(-1, config.dim),
            ring=ring.reshape(config.n_q + 1, RING).long(),
        )
    except (*faults, pickle.UnpicklingError) as error:
        code = isinstance(error, pickle.UnpicklingError)
        why = "it is not made of tensors only" if code else error
        raise ModelError(
            f"{path} is not a saved voice of this model ({why}); expected embeddings "
            f"[N, 1, 1, {config.dim}] and cache [1, {config.n_q + 1}, {RING}]"
        ) from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- the recogniser --------------------------------------------------------------------------------
#
# `kyutai/stt-1b-en_fr-candle` and `kyutai/stt-1b-en_fr` have the same layout; only the first has
# the pause heads. The codec in these repositories is not loaded: PersonaPlex's is the same network.

DEFAULT_RECOGNISER = "kyutai/stt-1b-en_fr-candle"  # CC-BY 4.0; the one with pause heads
STT_TEXT_FILE = "tokenizer_en_fr_audio_8000.model"  # where config.json names none


@dataclass(frozen=True, slots=True)
class LoadedRecogniser:
    """A recogniser ready to run beside a codec."""

    stt: Recogniser
    tokenizer: SentencePieceTokenizer


def download_recogniser(source: str, progress: Progress = lambda phase, percent: None) -> Path:
    """The folder of a recogniser; a repository is fetched or its download resumed.

    `1` means the default repository. Raises ModelError.
    """
    source = DEFAULT_RECOGNISER if source == "1" else source
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ModelError(
            f"recogniser {source!r} is no directory and no repository; use a folder with {LM_FILE},"
            f" or a name such as {DEFAULT_RECOGNISER}"
        )
    folder = fetch(source, None, progress, (CONFIG,))
    return fetch(source, None, progress, (_text_file(read_json(folder)), LM_FILE))


def read_json(folder: Path) -> dict:
    """A recogniser's config.json. Raises ModelError."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); fetch it again") from error
    if not isinstance(config, dict) or config.get("model_type", "stt") != "stt":
        raise ModelError(f"{path} is not a recogniser's; use one such as {DEFAULT_RECOGNISER}")
    return config


def _text_file(config: dict) -> str:
    return Path(config.get("tokenizer_name", STT_TEXT_FILE)).name


def load_recogniser(
    source: str,
    mimi: Mimi,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    int8: bool = False,
    progress: Progress = lambda phase, percent: None,
) -> LoadedRecogniser:
    """Find or fetch a recogniser that reads the codes of `mimi`. Raises ModelError.

    dtype None: bfloat16 on a GPU, float32 on a CPU. int8: its products are kept so (int8.py).
    """
    folder = download_recogniser(source, progress)
    raw = read_json(folder)
    stt, file = _empty_recogniser(folder)
    config, codec = stt.config, mimi.config.quantizer
    if config.card != codec.bins or config.n_q > codec.n_q:
        raise ModelError(
            f"{folder / CONFIG}: n_q {config.n_q} and card {config.card} do not fit the codec's "
            f"{codec.n_q} codebooks of {codec.bins}; use a recogniser of this codec"
        )
    load(
        stt, file.path, stt_pieces(stt, file.names()), device, dtype or usual_dtype(device),
        unused_by_stt, lambda percent: progress("loading the recogniser", percent), int8,
    )  # fmt: skip
    tokenizer = SentencePieceTokenizer(folder / _text_file(raw))
    if len(tokenizer) > config.text_card:
        raise ModelError(
            f"{folder / _text_file(raw)} has {len(tokenizer)} pieces, text_card is "
            f"{config.text_card}; use the files of one release together"
        )
    stt.use_fused_kernels()
    return LoadedRecogniser(stt, tokenizer)


def quantise_recogniser(
    folder: Path, device: str | torch.device, report: Report = lambda percent: None
) -> Path:
    """`quantise_checkpoint` for a recogniser's folder. Raises ModelError."""
    where, (stt, file) = torch.device(device), _empty_recogniser(folder)
    return write_int8(
        stt, file.path, stt_pieces(stt, file.names()), where, usual_dtype(where),
        unused_by_stt, report,
    )  # fmt: skip


def _empty_recogniser(folder: Path) -> tuple[Recogniser, TensorFile]:
    """A recogniser without memory, and its file. Raises ModelError.

    Pause heads and the feed-forward's width are read off the tensors.
    """
    file = TensorFile(folder / LM_FILE)
    config, names = SttConfig.from_json(read_json(folder)), file.names()
    heads = sum(bool(re.fullmatch(r"extra_heads\.\d+\.weight", name)) for name in names)
    if not heads:
        logger.warning(
            "%s has no pause heads: the end of a turn is told by loudness; %s has them",
            *(file.path, DEFAULT_RECOGNISER),
        )
    values = file.shape("extra_heads.0.weight")[0] if heads else config.pause_values
    gate = "transformer.layers.0.gating.linear_in.weight"
    hidden = file.shape(gate)[0] // 2 if gate in names else config.hidden
    config = replace(config, pause_heads=heads, pause_values=values, hidden=hidden)
    with torch.device("meta"):
        return Recogniser(config), file
