"""From folders to models on a device: a checkpoint with tokenizer and voices, and a recogniser.

Weights go from the mapped file to the device one tensor at a time (checkpoint.py).
"""

import hashlib
import json
import logging
import pickle
import re
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
from engine.weights.checkpoint import (
    TensorFile,
    match_sources,
    read_parameters,
    set_parameter,
    usual_dtype,
)
from engine.weights.hub import (
    CONFIG,
    LM_FILE,
    MIMI_FILE,
    TEXT_FILE,
    Progress,
    Report,
    fetch,
    find,
    find_folder,
)
from engine.weights.int8 import open_kept, read_kept, write_int8
from engine.weights.names import PAUSE_HEAD
from engine.weights.voices import Voices

logger = logging.getLogger(__name__)


def report_nothing(*_progress: object) -> None:
    """The progress callback of callers that show none."""


class SentencePieceTokenizer:
    """SentencePiece with ▁ for blanks; ids 0 EPAD (unknown), 3 PAD."""

    def __init__(self, path: Path, most: int | None = None) -> None:
        """most: ids that the model has. Raises ModelError."""
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"{path} is no SentencePiece model ({error}); fetch it again"
            ) from None
        if most is not None and len(self) > most:
            raise ModelError(
                f"{path} has {len(self)} pieces, text_card of config.json is {most}; "
                "use the files of one release together"
            )

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


def read_json(folder: Path) -> dict:
    """A folder's config.json. Raises ModelError."""
    path = folder / CONFIG
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}); fetch it again") from error


def read_config(folder: Path) -> ModelConfig:
    """Raises ModelError."""
    try:
        return ModelConfig.from_json(read_json(folder))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG} cannot be read ({error}); fetch it again") from error


def load_checkpoint(
    source: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    int8: bool = False,
    revision: str | None = None,
    progress: Progress = report_nothing,
) -> Checkpoint:
    """Find or fetch a checkpoint and load it. Raises ModelError in one clear line.

    dtype is the language model's; None: bf16 on a GPU, float32 elsewhere. The codec is float32.
    int8: the language model's products are kept so (int8.py).
    """
    folder, where = find(source, revision, progress), torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda is asked for, but PyTorch sees none; use --device cpu")
    config, voices = read_config(folder), Voices(folder)
    torch.backends.cudnn.allow_tf32 = False  # the codec's codes must be those of float32
    with torch.device("meta"):
        lm, mimi = LM(config.lm), Mimi(config.mimi)
    load(mimi, folder / MIMI_FILE, where, torch.float32, partial(progress, f"loading {MIMI_FILE}"))
    mimi.prepare()
    mimi.use_fused_kernels()
    report = partial(progress, f"loading {LM_FILE}")
    load(lm, folder / LM_FILE, where, dtype or usual_dtype(where), report, int8)
    lm.use_fused_kernels()
    tokenizer = SentencePieceTokenizer(folder / TEXT_FILE, config.lm.text_card)
    return Checkpoint(Path(source).name or source, lm, mimi, tokenizer, voices)


def load(
    model: nn.Module,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    report: Report = report_nothing,
    int8: bool = False,
) -> None:
    """Check a file against a model built on the meta device, and fill it.

    int8: products as kept on disk, or else quantised now; both ways give the same parameters to the
    bit. Raises ModelError, about the file only.
    """
    file = TensorFile(path)
    sources = match_sources(model, file)
    if int8 and (kept := open_kept(model, path, device, dtype)):
        return read_kept(model, kept, device, report)
    total, done = sum(parameter.numel() for parameter in model.parameters()), 0
    for name, value in read_parameters(model, file, sources, device, dtype):
        done += value.numel()
        set_parameter(model, name, value, int8)
        del value  # the plain weight, where the model keeps another form of it
        report(100 * done / total)


def quantise_checkpoint(
    folder: Path, device: str | torch.device, report: Report = report_nothing
) -> Path:
    """Write int8 weights beside a checkpoint's, if good ones are not there. Raises ModelError."""
    with torch.device("meta"):
        lm = LM(read_config(folder).lm)
    return write_int8(lm, folder / LM_FILE, torch.device(device), report)


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


def download_recogniser(source: str, progress: Progress = report_nothing) -> Path:
    """A recogniser's folder, fetched if need be; `1`: the default repository. Raises ModelError."""
    source = DEFAULT_RECOGNISER if source == "1" else source
    if folder := find_folder(source, "recogniser", DEFAULT_RECOGNISER):
        return folder
    folder = fetch(source, None, progress, (CONFIG,))
    return fetch(source, None, progress, (_text_file(folder).name, LM_FILE))


def _text_file(folder: Path) -> Path:
    return folder / Path(read_json(folder).get("tokenizer_name", STT_TEXT_FILE)).name


def load_recogniser(
    source: str,
    mimi: Mimi,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    int8: bool = False,
    progress: Progress = report_nothing,
) -> LoadedRecogniser:
    """Find or fetch a recogniser that reads `mimi`'s codes; options as of `load_checkpoint`."""
    folder = download_recogniser(source, progress)
    stt = _empty_recogniser(folder)
    config, codec = stt.config, mimi.config.quantizer
    if config.card != codec.bins or config.n_q > codec.n_q:
        raise ModelError(
            f"{folder / CONFIG}: n_q {config.n_q} and card {config.card} do not fit the codec's "
            f"{codec.n_q} codebooks of {codec.bins}; use a recogniser of this codec"
        )
    report = partial(progress, "loading the recogniser")
    load(stt, folder / LM_FILE, device, dtype or usual_dtype(device), report, int8)
    tokenizer = SentencePieceTokenizer(_text_file(folder), config.text_card)
    stt.use_fused_kernels()
    return LoadedRecogniser(stt, tokenizer)


def quantise_recogniser(
    folder: Path, device: str | torch.device, report: Report = report_nothing
) -> Path:
    """`quantise_checkpoint` for a recogniser's folder. Raises ModelError."""
    return write_int8(_empty_recogniser(folder), folder / LM_FILE, torch.device(device), report)


def _empty_recogniser(folder: Path) -> Recogniser:
    """A recogniser on the meta device; its pause heads are read off the file. Raises ModelError."""
    raw = read_json(folder)
    if raw.get("model_type", "stt") != "stt":
        raise ModelError(
            f"{folder / CONFIG} is not a recogniser's; use one such as {DEFAULT_RECOGNISER}"
        )
    file, config = TensorFile(folder / LM_FILE), SttConfig.from_json(raw)
    heads = sum(bool(re.fullmatch(r"extra_heads\.\d+\.weight", name)) for name in file.names)
    if not heads:
        logger.warning(
            "%s has no pause heads: the end of a turn is told by loudness; %s has them",
            *(file.path, DEFAULT_RECOGNISER),
        )
    values = file.shape(PAUSE_HEAD.format(0))[0] if heads else config.pause_values
    config = replace(config, pause_heads=heads, pause_values=values)
    with torch.device("meta"):
        return Recogniser(config)
