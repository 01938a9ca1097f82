"""From a recogniser's folder or repository to modules and tokenizer on the device.

`kyutai/stt-1b-en_fr-candle` and `kyutai/stt-1b-en_fr` have the same layout; only the first has the
pause heads. The codec in these repositories is not loaded: PersonaPlex's is the same network.
"""

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from engine.errors import ModelError
from engine.model.mimi import Mimi
from engine.model.names import stt_pieces, unused_by_stt
from engine.model.stt import Recogniser, SttConfig
from engine.runtime.checkpoint import TensorFile, load
from engine.runtime.hub import CONFIG, LM_FILE, Progress, fetch
from engine.runtime.int8_cache import load_int8
from engine.runtime.loader import Tokenizer

logger = logging.getLogger(__name__)

DEFAULT_RECOGNISER = "kyutai/stt-1b-en_fr-candle"  # CC-BY 4.0; the one with pause heads
TEXT_FILE = "tokenizer_en_fr_audio_8000.model"  # where config.json names none


@dataclass(frozen=True, slots=True)
class LoadedRecogniser:
    """A recogniser ready to run beside a codec."""

    stt: Recogniser
    tokenizer: Tokenizer


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
    return Path(config.get("tokenizer_name", TEXT_FILE)).name


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

    dtype None: bfloat16 on a GPU, float32 on a CPU. int8: its products are kept so, on disk too.
    """
    folder = download_recogniser(source, progress)
    raw = read_json(folder)
    file = TensorFile(folder / LM_FILE)
    config = _measured(SttConfig.from_json(raw), file)
    _check_codec(config, mimi, folder)
    with torch.device("meta"):
        stt = Recogniser(config)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    pieces, phase = list(stt_pieces(stt, file.names())), "loading the recogniser"
    (load_int8 if int8 else load)(
        stt, file.path, pieces, device, dtype, unused_by_stt,
        report=lambda percent: progress(phase, percent),
    )  # fmt: skip
    tokenizer = Tokenizer(folder / _text_file(raw))
    if len(tokenizer) > config.text_card:
        raise ModelError(
            f"{folder / _text_file(raw)} has {len(tokenizer)} pieces, text_card is "
            f"{config.text_card}; use the files of one release together"
        )
    stt.hasten()
    return LoadedRecogniser(stt, tokenizer)


def _measured(config: SttConfig, file: TensorFile) -> SttConfig:
    """The configuration with what is read off the tensors: pause heads, feed-forward width."""
    names = file.names()
    heads = sum(bool(re.fullmatch(r"extra_heads\.\d+\.weight", name)) for name in names)
    if not heads:
        logger.warning(
            "%s has no pause heads: the end of a turn is told by loudness; %s has them",
            *(file.path, DEFAULT_RECOGNISER),
        )
    values = file.shape("extra_heads.0.weight")[0] if heads else config.pause_values
    gate = "transformer.layers.0.gating.linear_in.weight"
    hidden = file.shape(gate)[0] // 2 if gate in names else config.hidden
    return replace(config, pause_heads=heads, pause_values=values, hidden=hidden)


def _check_codec(config: SttConfig, mimi: Mimi, folder: Path) -> None:
    """Raises ModelError if the recogniser reads other codes than this codec makes."""
    codec = mimi.config.quantizer
    if config.card != codec.bins or config.n_q > codec.n_q:
        raise ModelError(
            f"{folder / CONFIG}: n_q {config.n_q} and card {config.card} do not fit the codec's "
            f"{codec.n_q} codebooks of {codec.bins}; use a recogniser of this codec"
        )
