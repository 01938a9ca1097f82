"""int8 weights on disk: the same model to the bit, and never a wrong one."""

import errno
import json
import logging
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef

from engine.cli import main
from engine.errors import ModelError
from engine.model.transformer import Linear, quantise_weight
from engine.weights import int8, loading
from engine.weights.int8 import fingerprint
from engine.weights.loading import (
    load_checkpoint,
    load_recogniser,
    quantise_checkpoint,
    quantise_recogniser,
)
from tests.model.listening import CPU, STT_TINY

LM_FILE, KEPT = "model.safetensors", "model.int8"


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "engine.weights")
    return caplog


def load(folder: Path, dtype: torch.dtype | None = None):
    return load_checkpoint(str(folder), int8=True, dtype=dtype)


def kept(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the int8 weights beside a checkpoint."""
    return {k: v for shard in shards(folder) for k, v in load_file(shard).items()}


def shards(folder: Path) -> list[Path]:
    return sorted((folder / KEPT).glob("*.safetensors"))


def state(model) -> dict[str, torch.Tensor]:
    """Every parameter and every scale."""
    found = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.scale is not None:
            found[f"{name}.scale"] = module.scale
    return found


def assert_same(one, other) -> None:
    one, other = state(one), state(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


def was_read(log) -> bool:
    """Whether the last load had nothing to say of int8 weights."""
    return not log.records


# -- what it is for --------------------------------------------------------------------------------


def test_a_start_from_kept_weights_is_one_without_to_the_bit(copy, log):
    without = load(copy)
    assert "is quantised at every start; `python -m engine quantise` keeps it" in log.text
    quantise_checkpoint(copy, "cpu")
    log.clear()
    with_them = load(copy)
    assert was_read(log)
    assert_same(without.lm, with_them.lm)
    assert any(value.dtype == torch.int8 for value in state(with_them.lm).values())
    assert all(not isinstance(m, Linear) or m.packed is None for m in with_them.lm.modules())


def test_the_kept_weights_are_those_of_the_quantiser(copy):
    quantise_checkpoint(copy, "cpu")
    want, scale = quantise_weight(load_file(copy / LM_FILE)["text_linear.weight"])
    assert torch.equal(kept(copy)["text_linear.weight"], want)
    assert torch.equal(kept(copy)["text_linear.scale"], scale)


def test_no_more_than_a_shard_is_held_in_memory(copy, monkeypatch):
    quantise_checkpoint(copy, "cpu")
    [whole], want = shards(copy), kept(copy)
    size, written = whole.stat().st_size // 5, []
    monkeypatch.setattr(int8, "SHARD_BYTES", size)

    def save(tensors: dict, path: Path) -> None:
        written.append(sum(tensor.nbytes for tensor in tensors.values()))
        save_file(tensors, path)

    monkeypatch.setattr(int8, "save_file", save)
    shutil.rmtree(copy / KEPT)
    quantise_checkpoint(copy, "cpu")
    assert len(shards(copy)) == len(written) > 3
    largest = max(tensor.nbytes for tensor in want.values())
    assert max(written) < size + 2 * largest
    got = kept(copy)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], value) for name, value in want.items())
    load(copy)


def test_good_weights_are_not_made_again(copy, monkeypatch):
    quantise_checkpoint(copy, "cpu")
    monkeypatch.setattr(int8, "save_file", None)
    assert quantise_checkpoint(copy, "cpu") == copy / KEPT


def test_loading_leaves_the_folder_alone(copy):
    before = sorted(copy.rglob("*"))
    load(copy)
    assert sorted(copy.rglob("*")) == before


def test_the_recogniser_s_are_kept_by_the_same_code(tmp_path, tiny, log):
    folder = tmp_path / "stt"
    shutil.copytree(STT_TINY, folder, ignore=shutil.ignore_patterns("expected", KEPT))
    first = load_recogniser(str(folder), tiny.mimi, device=CPU, int8=True).stt
    quantise_recogniser(folder, CPU)
    log.clear()
    second = load_recogniser(str(folder), tiny.mimi, device=CPU, int8=True).stt
    assert was_read(log)
    assert_same(first, second)
    assert second.text_linear.weight.dtype == torch.int8


def test_the_command_keeps_both_and_says_where(copy, tmp_path, capsys):
    stt = shutil.copytree(STT_TINY, tmp_path / "stt", ignore=shutil.ignore_patterns(KEPT))
    options = ["--model", str(copy), "--transcribe", str(stt), "--device", "cpu"]
    assert main(["quantise", *options]) == 0
    said = capsys.readouterr().out
    for folder in (copy, stt):
        assert f"int8 weights for cpu are in {folder / KEPT}" in said
        assert (folder / KEPT / "index.json").is_file()


def test_progress_ends_at_100_percent(copy):
    quantise_checkpoint(copy, "cpu", (percents := []).append)
    assert percents[-1] == 100.0
    told = {}
    load_checkpoint(str(copy), int8=True, progress=told.__setitem__)
    assert told[f"loading {LM_FILE}"] == 100.0


# -- what it must not do ---------------------------------------------------------------------------


def test_nothing_plain_is_held_beyond_the_tensor_at_hand(copy, monkeypatch):
    plain: list[StorageWeakRef] = []
    set_parameter, zeros = loading.set_parameter, torch.zeros

    def make(*args, **options) -> torch.Tensor:
        held = sum(not weight.expired() for weight in plain)
        assert not held, "a plain weight is still held where the next one is made"
        return zeros(*args, **options)

    def watched(model, name, value, int8=False):
        if isinstance(model.get_submodule(name.rpartition(".")[0]), Linear) and int8:
            plain.append(StorageWeakRef(value.untyped_storage()))
        set_parameter(model, name, value, int8)

    monkeypatch.setattr(torch, "zeros", make)
    monkeypatch.setattr(loading, "set_parameter", watched)
    load(copy)
    assert len(plain) > 50


def edit(folder: Path, change) -> None:
    values = load_file(folder / LM_FILE)
    change(values)
    save_file(values, folder / LM_FILE)


def swap_two_rows(values: dict) -> None:
    values["text_linear.weight"] = values["text_linear.weight"].flip(0).contiguous()


def test_a_changed_source_is_noticed_and_made_anew(copy, log):
    quantise_checkpoint(copy, "cpu")
    old = kept(copy)["text_linear.weight"]
    edit(copy, swap_two_rows)
    assert torch.equal(load(copy).lm.text_linear.weight, old.flip(0))
    assert f"{KEPT} is ignored: it is of another source" in log.text
    quantise_checkpoint(copy, "cpu")
    assert torch.equal(kept(copy)["text_linear.weight"], old.flip(0))
    log.clear()
    load(copy)
    assert was_read(log)


def test_another_release_of_the_same_age_is_noticed_by_its_data(copy):
    path = copy / LM_FILE
    before, at = fingerprint(path), path.stat()
    edit(copy, swap_two_rows)
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert path.stat().st_size == at.st_size
    assert fingerprint(path) != before


def test_an_edit_in_place_outside_the_sampled_blocks_is_noticed_by_its_time(copy):
    path = copy / LM_FILE
    before = fingerprint(path)
    os.utime(path, ns=(0, 0))
    assert fingerprint(path) != before


def test_a_link_into_the_hub_s_cache_is_known_by_its_blob_s_name(copy, tmp_path):
    blob = tmp_path / ("ab" * 32)
    shutil.move(copy / LM_FILE, blob)
    (copy / LM_FILE).symlink_to(blob)
    known = fingerprint(copy / LM_FILE)
    os.utime(blob, ns=(0, 0))  # as another container may see it
    assert fingerprint(copy / LM_FILE) == known
    other = blob.with_name("cd" * 32)
    blob.rename(other)
    (copy / LM_FILE).unlink()
    (copy / LM_FILE).symlink_to(other)
    assert fingerprint(copy / LM_FILE) != known


def truncate(folder: Path) -> None:
    [shard] = folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])


def garble(folder: Path) -> None:
    [shard] = folder.glob("*.safetensors")
    shard.write_bytes(b"\xff" * 5000)


def lose_a_shard(folder: Path) -> None:
    [shard] = folder.glob("*.safetensors")
    shard.unlink()


def lose_the_index(folder: Path) -> None:
    (folder / "index.json").unlink()


def replace_the_index(folder: Path) -> None:
    (folder / "index.json").write_text("[]")


def replace_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def mark(folder: Path, **entries: str) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | entries))


def older_format(folder: Path) -> None:
    mark(folder, format="0")


def other_quantiser(folder: Path) -> None:
    mark(folder, quantiser="0" * 64)


def rewrite(folder: Path, change) -> None:
    [shard] = folder.glob("*.safetensors")
    values = load_file(shard)
    change(values)
    save_file(values, shard)


def short_of_one(folder: Path) -> None:
    rewrite(folder, lambda values: values.pop("out_norm.alpha"))


def one_too_many(folder: Path) -> None:
    rewrite(folder, lambda values: values.update({"evil": torch.zeros(2)}))


BAD = {
    truncate: "",
    garble: "",
    lose_a_shard: "it holds other tensors",
    lose_the_index: "index.json cannot be read",
    replace_the_index: "it is of another format",
    replace_the_folder: "index.json cannot be read",
    older_format: "it is of another format",
    other_quantiser: "it is of another quantiser",
    short_of_one: "it holds other tensors, such as out_norm.alpha",
    one_too_many: "it holds other tensors, such as evil",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_bad_weights_are_ignored_with_one_line_until_they_are_made_anew(copy, log, damage):
    quantise_checkpoint(copy, "cpu")
    want = load(copy).lm
    damage(copy / KEPT)
    log.clear()
    assert_same(load(copy).lm, want)
    [line] = [record.getMessage() for record in log.records]
    assert "is ignored: " + BAD[damage] in line
    assert line.endswith("`python -m engine quantise` makes it anew")
    assert "download" not in line
    quantise_checkpoint(copy, "cpu")
    log.clear()
    assert_same(load(copy).lm, want)
    assert was_read(log)


def test_weights_of_another_precision_are_others(copy, log):
    quantise_checkpoint(copy, "cpu")
    load(copy, torch.bfloat16)
    assert "is of another quantiser" in log.text


def test_a_source_that_does_not_fit_is_refused_whatever_is_kept(copy):
    quantise_checkpoint(copy, "cpu")
    config = json.loads((copy / "config.json").read_text())
    config["lm"]["depformer_num_layers"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="that this engine does not know"):
        load(copy)


def drafts(folder: Path) -> list[Path]:
    return list(folder.glob(f".{KEPT}-*"))


def refuse(*_args, **_kwargs):
    raise OSError(errno.EROFS, "Read-only file system")


def fill_up(*_args, **_kwargs):
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("where", "name", "fault", "words"),
    [
        (int8.tempfile, "mkdtemp", refuse, "Read-only"),
        (int8, "save_file", fill_up, "No space left"),
        (int8.os, "fsync", refuse, "Read-only"),
    ],
)
def test_a_disk_that_refuses_costs_one_clear_line_and_leaves_what_was_there(
    copy, monkeypatch, where, name, fault, words
):
    quantise_checkpoint(copy, "cpu")
    mark(copy / KEPT, format="0")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fault)
        with pytest.raises(ModelError, match=f"{KEPT} is not kept.*{words}") as caught:
            quantise_checkpoint(copy, "cpu")
    assert "\n" not in str(caught.value)
    assert not drafts(copy)
    assert len(shards(copy)) == 1
    quantise_checkpoint(copy, "cpu")
    load(copy)


def test_a_run_that_breaks_off_leaves_nothing(copy):
    def stop(percent: float) -> None:
        if percent > 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise_checkpoint(copy, "cpu", stop)
    assert not drafts(copy)
    assert not (copy / KEPT).exists()


def test_what_a_killed_process_left_is_removed_and_a_living_one_s_is_not(copy):
    old, young = copy / f".{KEPT}-old", copy / f".{KEPT}-young"
    for draft in (old, young):
        (draft / "new").mkdir(parents=True)
    os.utime(old, (time.time() - 7200,) * 2)
    quantise_checkpoint(copy, "cpu")
    assert drafts(copy) == [young]


def test_they_may_be_read_by_whoever_may_read_the_source(copy):
    (copy / LM_FILE).chmod(0o640)
    quantise_checkpoint(copy, "cpu")
    assert {path.stat().st_mode & 0o777 for path in (copy / KEPT).iterdir()} == {0o640}
