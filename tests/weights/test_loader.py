"""Checkpoints as they come: both layouts, any size, damaged, and larger than the memory."""

import json
import shutil
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from engine.config import GREEDY, ServerConfig
from engine.errors import ModelError
from engine.model.config import LMConfig, ModelConfig
from engine.model.lm import LM
from engine.runtime.backend import Opening
from engine.runtime.personaplex import PersonaPlexBackend
from engine.runtime.starting import load_personaplex
from engine.weights.checkpoint import TensorFile, match_sources, read_parameters
from engine.weights.generated import on_meta, write_model
from engine.weights.loading import load_checkpoint, read_saved_voice
from engine.weights.names import find_sources
from tests.model.making import ODD
from tests.runtime.conftest import TINY
from tests.runtime.playing import MINE, play

LM_FILE = "model.safetensors"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"


class Watch(threading.Thread):
    """The highest anonymous memory while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._done = anonymous_bytes(), threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.peak


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon:")
    )
    return int(line.split()[1]) * 1024


def change(folder: Path, file: str, edit) -> None:
    """Rewrite a file's tensors; `edit` changes the dict in place."""
    tensors = load_file(folder / file)
    edit(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / file)


def said(folder: Path) -> list:
    backend = PersonaPlexBackend(load_checkpoint(str(folder)), slots=1)
    return play(backend, 0, MINE, frames=4).tokens


def halve(tensors: dict) -> None:
    """A file of 8 depth steps, norms of one dimension."""
    for name in list(tensors):
        parts = name.split(".")
        if name.endswith("alpha"):
            tensors[name] = tensors[name].flatten()
        elif name.startswith("depformer.layers") and "self_attn" in name:
            tensors[name] = tensors[name].chunk(2)[0]
        elif "gating" in name and parts[0] == "depformer":
            if int(parts[4]) >= 8:
                del tensors[name]
        elif parts[0] in ("linears", "depformer_in", "depformer_emb") and int(parts[1]) >= (
            7 if parts[0] == "depformer_emb" else 8
        ):
            del tensors[name]


def test_a_file_of_8_depth_steps_speaks_like_one_of_16(copy):
    want = said(TINY)
    change(copy, LM_FILE, halve)
    assert said(copy) == want


def test_older_spellings_in_the_codec_file_are_understood(copy):
    def age(tensors: dict) -> None:
        for old, new in (("cluster_usage", "cluster_size"), ("embedding_sum", "embed_avg")):
            for name in [n for n in tensors if n.endswith(old)]:
                tensors[name.replace(old, new)] = tensors.pop(name)
        for name in [n for n in tensors if n.endswith("_initialized")]:
            tensors[name.replace("_initialized", "inited")] = tensors.pop(name)

    change(copy, MIMI_FILE, age)
    assert said(copy) == said(TINY)


@pytest.mark.parametrize("file", [LM_FILE, MIMI_FILE])
def test_a_missing_tensor_is_named(copy, file):
    name = next(n for n in load_file(copy / file) if "transformer.layers.1.norm1" in n)
    change(copy, file, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=f"{file} has no tensor {name}"):
        load_checkpoint(str(copy))


def test_an_unexpected_tensor_is_named(copy):
    change(copy, LM_FILE, lambda t: t.update({"transformer.layers.9.x": torch.zeros(2)}))
    with pytest.raises(ModelError, match=r"has a tensor transformer\.layers\.9\.x"):
        load_checkpoint(str(copy))


def test_a_depth_step_beyond_those_that_exist_is_unexpected(copy):
    change(copy, LM_FILE, lambda t: t.update({"linears.16.weight": torch.zeros(2)}))
    with pytest.raises(ModelError, match=r"linears\.16\.weight"):
        load_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("out_norm.alpha", "[1, 1, 64] or [64]"),
        ("text_linear.weight", "[384, 64]"),
        ("depformer.layers.0.self_attn.in_proj_weight", "[1152, 24] or [576, 24]"),
    ],
)
def test_a_wrong_shape_is_named_with_the_right_one(copy, name, shape):
    change(copy, LM_FILE, lambda t: t.update({name: torch.zeros(3, 5)}))
    with pytest.raises(ModelError) as error:
        load_checkpoint(str(copy))
    assert f"{name} is [3, 5]" in str(error.value)
    assert shape in str(error.value)


def test_a_truncated_file_says_how_to_fetch_it_again(copy):
    whole = (copy / LM_FILE).read_bytes()
    (copy / LM_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cut short: run `python -m engine download`"):
        load_checkpoint(str(copy))


@pytest.mark.parametrize("file", ["config.json", LM_FILE, MIMI_FILE, "tokenizer_spm_32k_3.model"])
def test_a_missing_file_is_named(copy, file):
    (copy / file).unlink()
    with pytest.raises(ModelError, match=f"has no {file}"):
        load_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"lm": {"delays": [0, 2] + [1] * 15}}, "lm.delays"),
        ({"lm": {"n_q": 12}}, "lm.dep_q is 16"),
        ({"lm": {"dimension": 7}}, "lm.dimension is unknown"),
        ({"lm": {"silence_tokens": [99] * 8}}, "lm.silence_tokens"),
        ({"lm": {"num_heads": 5}}, "lm.dim is 64; this engine needs a multiple of 10"),
        ({"mimi": {"frame_rate": 25}}, "mimi.frame_rate is 25"),
        ({"mimi": {"num_codebooks": 4}}, "mimi.num_codebooks is 4"),
    ],
)
def test_a_config_that_does_not_fit_names_the_entry(copy, edit, words):
    config = json.loads((copy / "config.json").read_text())
    for part, values in edit.items():
        config[part] |= values
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words.replace(".", r"\.")):
        load_checkpoint(str(copy))


def test_a_config_that_says_nothing_means_the_public_model():
    assert ModelConfig.from_json({"model_type": "personaplex"}) == ModelConfig()


def test_a_tokenizer_with_more_pieces_than_the_model_knows_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["lm"]["text_card"] = 200
    (copy / "config.json").write_text(json.dumps(config))

    def shrink(tensors: dict) -> None:
        for name in ("text_emb.weight", "depformer_text_emb.weight"):
            tensors[name] = tensors[name][:201]
        tensors["text_linear.weight"] = tensors["text_linear.weight"][:200]

    change(copy, LM_FILE, shrink)
    with pytest.raises(ModelError, match=r"has 384 pieces, text_card of config.json is 200"):
        load_checkpoint(str(copy))


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize(
    "content",
    [{"embeddings": Evil(), "cache": Evil()}, {"cache": torch.zeros(1, 17, 4)}, [1], None],
)
def test_a_saved_voice_is_tensors_only(tmp_path, capsys, content):
    path = tmp_path / "A.pt"
    torch.save(content, path) if content else path.write_bytes(b"")
    with pytest.raises(ModelError, match="is not a saved voice of this model"):
        read_saved_voice(path, LMConfig())
    assert "code ran" not in capsys.readouterr().out


def test_a_saved_voice_of_another_model_is_refused():
    with pytest.raises(ModelError, match=r"expected embeddings \[N, 1, 1, 4096\]"):
        read_saved_voice(TINY / "voices" / "TINYF0.pt", LMConfig())


def test_progress_of_every_phase_ends_at_100_percent():
    told = {}
    load_checkpoint(str(TINY), progress=told.__setitem__)
    assert told == {f"loading {MIMI_FILE}": 100.0, f"loading {LM_FILE}": 100.0}


def test_slots_0_is_a_number_that_fits():
    backend = load_personaplex(ServerConfig(model=str(TINY), device="cpu", slots=0))
    assert backend.slots == 4
    assert backend.name == "tiny"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_where_there_is_none_says_what_to_do():
    with pytest.raises(ModelError, match="use --device cpu"):
        load_checkpoint(str(TINY), device="cuda")


# -- memory ----------------------------------------------------------------------------------------

WIDE = LMConfig(  # 0.4 GB in bf16, its largest tensor 0.07 GB
    dim=1024, num_heads=8, num_layers=6, card=2048, text_card=32_000, depformer_dim=512
)


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """A safetensors file of bf16 zeros that takes no disk; its size."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def test_loading_keeps_one_tensor_in_memory_beyond_the_model(tmp_path):
    with torch.device("meta"):
        lm = LM(WIDE)
    parts = [part for group in find_sources(lm).values() for part in group]
    shapes = {part.name: part.shapes[0] for part in parts}
    size = write_sparse(tmp_path / LM_FILE, shapes)
    assert size > 4e8
    file, cpu = TensorFile(tmp_path / LM_FILE), torch.device("cpu")
    sources = match_sources(lm, file)
    before, watch = anonymous_bytes(), Watch()
    watch.start()
    loaded = largest = 0
    for _, value in read_parameters(lm, file, sources, cpu, torch.bfloat16):
        loaded += value.nbytes
        largest = max(largest, value.nbytes)
        del value  # the sink
    grown = watch.stop() - before
    assert loaded > 3e8
    assert grown < largest + loaded / 4  # nothing is kept


def test_a_voice_can_be_opened_from_a_checkpoint_of_other_sizes(tmp_path):
    (lm, mimi), generator, dtype = on_meta(ODD), torch.Generator().manual_seed(0), torch.float32
    write_model(tmp_path / LM_FILE, lm, dtype, generator)
    write_model(tmp_path / MIMI_FILE, mimi, dtype, generator)
    (tmp_path / "config.json").write_text(json.dumps(asdict(ODD)))
    (tmp_path / "voices").mkdir()
    shutil.copy(TINY / "voices" / "TINYM0.wav", tmp_path / "voices")
    make_tokenizer(tmp_path / "tokenizer_spm_32k_3.model")
    backend = PersonaPlexBackend(load_checkpoint(str(tmp_path)), slots=2)
    first = play(backend, 1, Opening("TINYM0", (5, 6), GREEDY), frames=5)
    assert play(backend, 0, Opening("TINYM0", (5, 6), GREEDY), frames=5) == first


def make_tokenizer(path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a quick brown fox jumps over the lazy dog"] * 20),
        model_prefix=str(path.with_suffix("")),
        vocab_size=40,
        pad_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
