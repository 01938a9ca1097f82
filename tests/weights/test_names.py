"""Names and shapes of the public files, without any memory for them."""

import json
from pathlib import Path

import pytest

from engine.model.config import ModelConfig
from engine.weights.generated import on_meta
from engine.weights.names import Sources, find_sources, is_unused

SHAPES = json.loads((Path(__file__).parent / "checkpoint_shapes.json").read_text())
PUBLIC = ModelConfig.from_json({})  # what the public config.json says: nothing of this


def wanted(file: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(entry["shape"]) for name, entry in SHAPES[file].items()}


def shapes_of(sources: Sources) -> dict[str, tuple[int, ...]]:
    return {part.name: part.shapes[0] for group in sources.values() for part in group}


def test_the_full_size_codec_has_exactly_the_public_files_tensors():
    _, mimi = on_meta(PUBLIC)
    file = "tokenizer-e351c8d8-checkpoint125.safetensors"
    assert shapes_of(find_sources(mimi)) == wanted(file)


def test_the_full_size_model_has_exactly_the_public_files_tensors_but_the_users_depth_steps():
    lm, _ = on_meta(PUBLIC)
    public = wanted("model.safetensors")
    dropped = {name for name in public if is_unused(lm, name)}
    assert shapes_of(find_sources(lm)) == {k: v for k, v in public.items() if k not in dropped}
    gatings = 8 * 6 * 2
    assert len(dropped) == gatings + 8 + 8 + 8  # depformer_in, linears, depformer_emb
    assert all(any(f".{k}." in name for k in range(7, 16)) for name in dropped)


def test_every_row_of_every_parameter_comes_from_exactly_one_place():
    for model in on_meta(PUBLIC):
        for name, group in find_sources(model).items():
            rows = model.get_parameter(name).shape[0]
            if group[0].rows is None:
                assert len(group) == 1
                continue
            covered = sorted((p.start, p.start + p.rows) for p in group)
            edges = [covered[0][0], *(end for _, end in covered)]
            assert [start for start, _ in covered] == edges[:-1]
            assert edges[-1] == rows
            assert edges[0] == (1 if name == "embedding.table" else 0)  # its zero row


def test_parameters_without_the_users_depth_steps_are_as_many_as_published():
    lm, _ = on_meta(PUBLIC)
    zero_row = PUBLIC.lm.dim
    parts = SHAPES["totals"]["lm_params_per_part"]
    kept = sum(parts.values()) - 8 * (6 * 3 * 1024 * 2816 + 6 * 4 * 1024**2)  # gating, attention
    kept -= 8 * (1024 * 4096 + 2048 * 1024 + 2049 * 1024)
    assert sum(p.numel() for p in lm.parameters()) == kept + zero_row


@pytest.mark.parametrize(("dim", "feedforward", "width"), [(4096, 16896, 11264), (8, 32, 21)])
def test_gated_width_follows_the_two_thirds_rule(dim, feedforward, width):
    from engine.model.config import gated_width

    assert gated_width(dim, feedforward) == width
