"""A file's weights and sizes as somebody else's `moshi` package takes them. Knows no such package.

The names are those of the public files already (engine/weights/names.py reads them the other way);
what differs is the number of depth steps.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from engine.model.config import LMConfig, MimiConfig

STACKED = re.compile(r"depformer\.layers\.\d+\.self_attn\.(in_proj_weight|out_proj\.weight)")
NUMBERED = re.compile(
    r"(depformer_in|linears|depformer\.layers\.\d+\.gating|depformer_emb)\.(\d+)\.(.*)"
)


def fitted(name: str, value: Tensor, have: int, want: int) -> Iterator[tuple[str, Tensor]]:
    """One tensor of a file of `have` depth steps as a model of `want` steps names it.

    Steps that the file lacks are repeated from its own (model.md 4.1): good for timing only.
    """
    if STACKED.fullmatch(name):
        steps = value.view(have, -1, value.shape[-1])
        yield name, steps[[k % have for k in range(want)]].flatten(0, 1)
    elif match := NUMBERED.fullmatch(name):
        prefix, number, rest = match[1], int(match[2]), match[3]
        told = prefix == "depformer_emb"  # emb.k is what step k + 1 is told: one fewer
        places = set(range(number, want - told, have))
        if told and number == 0 and want > have:
            places.add(have - 1)  # which no step of the file has
        yield from ((f"{prefix}.{k}.{rest}", value) for k in sorted(places))
    elif name.endswith(".alpha"):
        yield name, value.view(1, 1, -1)  # files have either shape
    else:
        yield name, value


def read_lm(path: Path, want: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The language model's tensors for `want` depth steps, each straight to the device."""
    tensors = {}
    with safe_open(path, framework="pt", device=device) as file:
        names = list(file.keys())
        have = sum(re.fullmatch(r"linears\.\d+\.weight", name) is not None for name in names)
        for name in names:
            value = file.get_tensor(name).to(dtype)
            tensors.update(fitted(name, value, have, want))
    return tensors


def lm_arguments(config: LMConfig, steps: int) -> dict[str, Any]:
    """What `LMModel` of either package is made with."""
    return {
        "dim": config.dim, "num_heads": config.num_heads, "num_layers": config.num_layers,
        "hidden_scale": config.hidden_scale, "context": config.context,
        "max_period": config.max_period, "n_q": config.n_q, "dep_q": steps, "card": config.card,
        "text_card": config.text_card, "existing_text_padding_id": config.text_padding_id,
        "delays": list(config.delays), "causal": True, "layer_scale": None, "gating": "silu",
        "norm": "rms_norm_f32", "positional_embedding": "rope",
        "depformer_dim": config.depformer_dim,
        "depformer_dim_feedforward": config.depformer_dim_feedforward,
        "depformer_num_heads": config.depformer_num_heads,
        "depformer_num_layers": config.depformer_num_layers, "depformer_layer_scale": None,
        "depformer_multi_linear": True, "depformer_context": steps,
        "depformer_max_period": config.max_period, "depformer_gating": "silu",
        "depformer_pos_emb": "none", "depformer_weights_per_step": True,
    }  # fmt: skip


def codec_arguments(config: MimiConfig) -> dict[str, Any]:
    """What moshi's `get_mimi` takes for a codec of other sizes than the public one."""
    width, transformer, quantizer = config.dimension, config.transformer, config.quantizer
    return {
        "sample_rate": config.sample_rate, "channels": 1, "frame_rate": config.frame_rate,
        "seanet": {
            "channels": 1, "dimension": width, "causal": True, "n_filters": config.n_filters,
            "n_residual_layers": config.n_residual_layers, "activation": "ELU",
            "compress": config.compress, "dilation_base": 2, "disable_norm_outer_blocks": 0,
            "kernel_size": config.kernel_size, "residual_kernel_size": config.residual_kernel_size,
            "last_kernel_size": config.last_kernel_size, "norm": "none", "pad_mode": "constant",
            "ratios": list(config.ratios), "true_skip": True,
        },
        "quantizer": {
            "dimension": quantizer.dimension, "n_q": quantizer.n_q, "bins": quantizer.bins,
            "input_dimension": width, "output_dimension": width,
        },
        "transformer": {
            "d_model": transformer.d_model, "num_heads": transformer.num_heads,
            "num_layers": transformer.num_layers, "causal": True, "layer_scale": 0.01,
            "context": transformer.context, "conv_layout": True,
            "max_period": transformer.max_period, "gating": "none", "norm": "layer_norm",
            "positional_embedding": "rope", "dim_feedforward": transformer.dim_feedforward,
            "input_dimension": width, "output_dimensions": [width],
        },
    }  # fmt: skip
