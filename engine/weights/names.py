"""Which tensors of a checkpoint's files make which parameter of the modules."""

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
PAUSE_HEAD = "extra_heads.{}.weight"


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """Rows of one tensor of a file that fill rows of a parameter."""

    name: str  # in the file
    shapes: tuple[tuple[int, ...], ...]  # which the file's tensor may have; the first is usual
    start: int = 0  # first row of the parameter
    rows: int | None = None  # how many; None: all of it
    skip: int = 0  # first row in the file


Sources = dict[str, list[TensorSlice]]  # what fills each parameter of a model


def find_sources(model: LM | Recogniser | Mimi, names: set[str] | None = None) -> Sources:
    """What fills a model. `names`: the file's, where a spelling depends on them."""
    spell = _mimi_slices if isinstance(model, Mimi) else _language_slices
    parameters = model.named_parameters()
    return {name: spell(model, names or set(), name, tuple(p.shape)) for name, p in parameters}


def _language_slices(
    model: LM | Recogniser, names: set[str], name: str, shape: tuple[int, ...]
) -> list[TensorSlice]:
    config, width = model.config, shape[-1]
    if name == "embedding.table":
        (text, *starts), rows = model.embedding.starts, config.card + 1
        audio = [
            TensorSlice(f"emb.{k}.weight", ((rows, width),), start, rows)
            for k, start in enumerate(starts)
        ]
        rows = config.text_card + 1
        return [*audio, TensorSlice("text_emb.weight", ((rows, width),), text, rows)]
    if name == "depformer.input.weight":
        return _stack("depformer_in.{}.weight", config.codebooks, config.depformer_dim, width)
    if name == "pauses.weight":
        return _stack(PAUSE_HEAD, config.pause_heads, config.pause_values, width)
    if name.endswith(".alpha"):
        return [TensorSlice(name, ((1, 1, *shape), shape))]
    if match := re.fullmatch(r"(depformer\.layers\.\d+\.)(in|out)_proj\.(\d+)\.weight", name):
        prefix, which, step = match.groups()
        tail = "in_proj_weight" if which == "in" else "out_proj.weight"
        rows, steps = shape[0], config.codebooks
        shapes = (2 * steps * rows, width), (steps * rows, width)  # 16 or 8 depth steps
        return [TensorSlice(f"{prefix}self_attn.{tail}", shapes, 0, rows, int(step) * rows)]
    listed = re.sub(r"\.(in|out)_proj\.weight$", r".\1_projs.0.weight", name)
    if listed in names:  # a spelling of some recognisers
        return [TensorSlice(listed, (shape,))]
    name = re.sub(r"\.in_proj\.weight$", ".in_proj_weight", name)
    name = re.sub(r"^depformer\.(text_emb|emb)\.", r"depformer_\1.", name)
    return [TensorSlice(re.sub(r"^depformer\.linears\.", "linears.", name), (shape,))]


def _stack(pattern: str, count: int, rows: int, width: int) -> list[TensorSlice]:
    """Tensors [rows, width] that lie below each other in one parameter."""
    numbers = range(count)
    return [TensorSlice(pattern.format(k), ((rows, width),), k * rows, rows) for k in numbers]


def _mimi_slices(
    _mimi: Mimi, _names: set[str], name: str, shape: tuple[int, ...]
) -> list[TensorSlice]:
    if re.search(r"\.(in|out)put_proj\.", name):
        shape = (*shape, 1)  # a convolution of one column there
    for pattern, to in MIMI_RENAMES:
        name = re.sub(pattern, to, name)
    return [TensorSlice(name, (shape,))]


def is_unused(model: LM | Recogniser | Mimi, name: str) -> bool:
    """Whether a tensor that a model's file may carry is needed by no step here."""
    if isinstance(model, Recogniser):
        return name.startswith(("extra_heads.", "depformer", "linears.", "condition_provider."))
    # Depth steps of the user's rows are not built.
    pattern = r"(?:depformer_in|linears|depformer\.layers\.\d+\.gating|depformer_emb)\.(\d+)\..*"
    match = re.fullmatch(pattern, name)
    if not match or isinstance(model, Mimi):
        return False
    step = int(match[1]) + name.startswith("depformer_emb")  # emb.k is read by step k + 1
    return model.config.codebooks <= step < model.config.n_q
