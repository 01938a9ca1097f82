"""Which tensors of the two checkpoint files make which parameter of the modules."""

import re
from dataclasses import dataclass

from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.model.stt import Recogniser

MIMI_RENAMES = (  # our name -> the file's
    (r"(conv|convtr)\.(weight|bias)$", r"\1.\1.\2"),
    (r"^(down|up)sample\.(conv|convtr)\.", r"\1sample.\2.\2."),
    (r"_transformer\.layers", "_transformer.transformer.layers"),
    (r"layer_scale_(\d)$", r"layer_scale_\1.scale"),
    (r"\.in_proj\.weight$", ".in_proj_weight"),
    (r"(\.layers\.\d+)\.(embedding_sum|cluster_usage|_initialized)$", r"\1._codebook.\2"),
)
STT_RENAMES = (  # our name -> a spelling that the file may use
    (r"\.(in|out)_proj\.weight$", r".\1_projs.0.weight"),
    (r"\.in_proj\.weight$", ".in_proj_weight"),
)
PAUSE_HEAD = "extra_heads.{}.weight"


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """Rows of one tensor of a file that fill rows of a parameter."""

    name: str  # in the file
    shapes: tuple[tuple[int, ...], ...]  # which the file's tensor may have; the first is usual
    start: int = 0  # first row of the parameter
    rows: int | None = None  # how many; None: all of it
    skip: int = 0  # first row in the file


Pieces = list[tuple[str, list[TensorSlice]]]  # of every parameter of a model, what fills it


def lm_pieces(lm: LM) -> Pieces:
    """Of the language model."""
    named = lm.named_parameters()
    return [(name, _lm_pieces(lm, name, tuple(parameter.shape))) for name, parameter in named]


def _lm_pieces(lm: LM, name: str, shape: tuple[int, ...]) -> list[TensorSlice]:
    config, steps, width = lm.config, lm.config.codebooks, shape[-1]
    if name == "embedding.table":
        return _tables(lm.embedding.starts, config.card + 1, config.text_card + 1, width)
    if name == "depformer.input.weight":
        dim, names = config.depformer_dim, (f"depformer_in.{k}.weight" for k in range(steps))
        return [TensorSlice(n, ((dim, width),), k * dim, dim) for k, n in enumerate(names)]
    if match := re.fullmatch(r"(depformer\.layers\.\d+\.)(in|out)_proj\.(\d+)\.weight", name):
        prefix, which, step = match.groups()
        tail = "in_proj_weight" if which == "in" else "out_proj.weight"
        shapes = ((2 * steps * shape[0], width), (steps * shape[0], width))  # 16 or 8 depth steps
        return [TensorSlice(f"{prefix}self_attn.{tail}", shapes, 0, shape[0], int(step) * shape[0])]
    if name.endswith(".alpha"):
        return [TensorSlice(name, ((1, 1, *shape), shape))]
    name = re.sub(r"\.in_proj\.weight$", ".in_proj_weight", name)
    name = re.sub(r"^depformer\.(text_emb|emb)\.", r"depformer_\1.", name)
    return [TensorSlice(re.sub(r"^depformer\.linears\.", "linears.", name), (shape,))]


def _tables(starts: tuple[int, ...], audio: int, text: int, width: int) -> list[TensorSlice]:
    """The text table of `text` rows, and one of `audio` rows per audio row, in one parameter."""
    shape = ((audio, width),)
    first, *others = starts
    tables = [TensorSlice(f"emb.{k}.weight", shape, start, audio) for k, start in enumerate(others)]
    return [*tables, TensorSlice("text_emb.weight", ((text, width),), first, text)]


def stt_pieces(stt: Recogniser, names: set[str]) -> Pieces:
    """Of the recogniser; `names` are those of the file."""
    named = stt.named_parameters()
    return [(name, _stt_pieces(stt, names, name, tuple(p.shape))) for name, p in named]


def _stt_pieces(
    stt: Recogniser, names: set[str], name: str, shape: tuple[int, ...]
) -> list[TensorSlice]:
    config = stt.config
    if name == "embedding.table":
        return _tables(stt.embedding.starts, config.card + 1, config.text_card + 1, shape[-1])
    if name == "pauses.weight":
        rows, heads = config.pause_values, map(PAUSE_HEAD.format, range(config.pause_heads))
        return [TensorSlice(n, ((rows, shape[-1]),), k * rows, rows) for k, n in enumerate(heads)]
    if name.endswith(".alpha"):
        return [TensorSlice(name, ((1, 1, *shape), shape))]
    there = name
    for pattern, to in STT_RENAMES:
        if (spelled := re.sub(pattern, to, name)) in names:
            there = spelled
    return [TensorSlice(there, (shape,))]


def unused_by_stt(name: str) -> bool:
    """Whether a tensor belongs to what a recogniser's file may carry and no step needs."""
    return name.startswith(("extra_heads.", "depformer", "linears.", "condition_provider."))


def unused_by_lm(lm: LM, name: str) -> bool:
    """Whether a tensor belongs to the depth steps of the user's rows, which are not built."""
    pattern = r"(?:depformer_in|linears|depformer\.layers\.\d+\.gating|depformer_emb)\.(\d+)\..*"
    match = re.fullmatch(pattern, name)
    if not match:
        return False
    step = int(match[1]) + name.startswith("depformer_emb")  # emb.k is read by step k + 1
    return lm.config.codebooks <= step < lm.config.n_q


def mimi_pieces(mimi: Mimi) -> Pieces:
    """Of the codec: each parameter has one tensor."""
    pieces = []
    for name, parameter in mimi.named_parameters():
        there, shape = name, tuple(parameter.shape)
        for pattern, to in MIMI_RENAMES:
            there = re.sub(pattern, to, there)
        if re.search(r"\.(in|out)put_proj\.", name):
            shape = (*shape, 1)  # a convolution of one column there
        pieces.append((name, [TensorSlice(there, (shape,))]))
    return pieces
