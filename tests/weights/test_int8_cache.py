"""int8 weights kept on disk: the same model to the bit, and never a wrong one."""

import errno
import json
import logging
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef

from engine.errors import ModelError
from engine.model.transformer import Linear, quantise_weight
from engine.runtime.personaplex import PersonaPlexBackend
from engine.runtime.starting import load_personaplex
from engine.weights import checkpoint
from engine.weights import int8 as int8_cache
from engine.weights import int8 as tensors
from engine.weights.int8 import fingerprint
from engine.weights.loading import load_checkpoint, load_recogniser
from engine.weights.voices import Voices
from tests.model.listening import CPU, STT_TINY
from tests.runtime.playing import MINE, Guest, play

LM_FILE, CACHE = "model.safetensors", "model.int8.safetensors"


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "engine.runtime")
    return caplog


def load(folder: Path, dtype: torch.dtype | None = None):
    return load_checkpoint(str(folder), Voices, int8=True, dtype=dtype)


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


def fresh(folder: Path, tmp_path: Path):
    """What the files of a folder are without a cache."""
    copy = tmp_path / "fresh"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(CACHE))
    return load(copy).lm


def was_read(log) -> bool:
    """Whether the last load neither complained nor wrote."""
    return not [r for r in log.records if CACHE in r.getMessage()]


# -- what it is for --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cached_start_is_the_first_one_to_the_bit(copy, log, dtype):
    first = load(copy, dtype)
    assert "is written" in log.text
    log.clear()
    second = load(copy, dtype)
    assert was_read(log)
    assert_same(first.lm, second.lm)
    assert any(value.dtype == torch.int8 for value in state(second.lm).values())
    assert all(not isinstance(m, Linear) or m.packed is None for m in second.lm.modules())


def test_the_kept_weights_are_those_of_the_quantiser(copy):
    load(copy)
    weight = load_file(copy / LM_FILE)["text_linear.weight"]
    kept = load_file(copy / CACHE)
    want, scale = quantise_weight(weight)
    assert torch.equal(kept["text_linear.weight"], want)
    assert torch.equal(kept["text_linear.scale"], scale)


def test_both_starts_speak_the_same_tokens(copy):
    guests = (Guest(0, leaves=4),)
    first = play(PersonaPlexBackend(load(copy), slots=2), 1, MINE, guests, frames=6)
    assert (copy / CACHE).is_file()
    assert play(PersonaPlexBackend(load(copy), slots=2), 1, MINE, guests, frames=6) == first


def test_the_server_s_own_way_of_loading_reads_and_writes_it(copy, log):
    threads = torch.get_num_threads()
    for written in (True, False):
        log.clear()
        load_personaplex(str(copy), Voices, slots=1, precision=("int8", "bf16"))
        assert written == ("is written" in log.text)
    torch.set_num_threads(threads)


def test_plain_loading_leaves_the_folder_alone(copy):
    before = sorted(copy.rglob("*"))
    load_checkpoint(str(copy), Voices)
    assert sorted(p for p in copy.rglob("*")) == before


def test_the_recogniser_is_kept_by_the_same_code(tmp_path, tiny, log):
    folder = tmp_path / "stt"
    shutil.copytree(STT_TINY, folder, ignore=shutil.ignore_patterns("expected", CACHE))
    first = load_recogniser(str(folder), tiny.mimi, device=CPU, int8=True).stt
    assert "is written" in log.text
    log.clear()
    second = load_recogniser(str(folder), tiny.mimi, device=CPU, int8=True).stt
    assert was_read(log)
    assert_same(first, second)
    assert second.text_linear.weight.dtype == torch.int8


def test_progress_of_a_cached_start_ends_at_100_percent(copy):
    load(copy)
    told = {}
    load_checkpoint(str(copy), Voices, int8=True, progress=told.__setitem__)
    assert told[f"loading {LM_FILE}"] == 100.0


# -- what it must not do ---------------------------------------------------------------------------


def test_nothing_plain_is_held_beyond_the_tensor_at_hand(copy, monkeypatch):
    plain: list[StorageWeakRef] = []
    place, zeros, parts = checkpoint.place, torch.zeros, int8_cache.parts

    def held() -> int:
        return sum(not weight.expired() for weight in plain)

    def make(*args, **options) -> torch.Tensor:
        assert not held(), "a plain weight is still held where the next one is made"
        return zeros(*args, **options)

    def watched(model, name, value, int8=False):
        if isinstance(model.get_submodule(name.rpartition(".")[0]), Linear) and int8:
            plain.append(StorageWeakRef(value.untyped_storage()))
        place(model, name, value, int8)

    def kept(model, name):
        assert held() <= 1, f"{name}: more than the plain weight at hand is held"
        return parts(model, name)

    monkeypatch.setattr(torch, "zeros", make)
    monkeypatch.setattr(checkpoint, "place", watched)
    monkeypatch.setattr(int8_cache, "parts", kept)
    load(copy)
    assert len(plain) > 50


def edit(folder: Path, change) -> None:
    values = load_file(folder / LM_FILE)
    change(values)
    save_file(values, folder / LM_FILE)


def swap_two_rows(values: dict) -> None:
    values["text_linear.weight"] = values["text_linear.weight"].flip(0).contiguous()


def test_a_changed_source_is_noticed(copy, tmp_path, log):
    load(copy)
    edit(copy, swap_two_rows)
    log.clear()
    again = load(copy)
    assert f"{CACHE} is ignored and made anew: it is of another source" in log.text
    assert_same(again.lm, fresh(copy, tmp_path))
    log.clear()
    assert_same(load(copy).lm, again.lm)
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


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(path: Path) -> None:
    path.write_bytes(b"\xff" * 5000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_the_source(path: Path) -> None:
    shutil.copy(path.with_name(LM_FILE), path)


def rewritten(path: Path, change=lambda values: None, **mark: str) -> None:
    with safe_open(path, framework="pt") as file:
        known = file.metadata()
    values = load_file(path)
    change(values)
    save_file(values, path, known | mark)


def older_format(path: Path) -> None:
    rewritten(path, format="0")


def other_quantiser(path: Path) -> None:
    rewritten(path, quantiser="0" * 64)


def misshapen(path: Path) -> None:
    rewritten(path, lambda v: v.update({"text_linear.weight": torch.zeros(3, 5).to(torch.int8)}))


def mistyped(path: Path) -> None:
    rewritten(path, lambda v: v.update({"text_linear.scale": v["text_linear.scale"].half()}))


def short_of_one(path: Path) -> None:
    rewritten(path, lambda values: values.pop("out_norm.alpha"))


def one_too_many(path: Path) -> None:
    rewritten(path, lambda values: values.update({"evil": torch.zeros(2)}))


BAD = {
    truncate: "",
    garble: "",
    empty: "",
    replace_by_the_source: "it is of another format",
    older_format: "it is of another format",
    other_quantiser: "it is of another quantiser",
    misshapen: r"text_linear.weight is I8 (3, 5), not I8 (384, 64)",
    mistyped: "text_linear.scale is F16 (384,), not F32 (384,)",
    short_of_one: "it holds other tensors, such as out_norm.alpha",
    one_too_many: "it holds other tensors, such as evil",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_a_bad_cache_is_ignored_with_one_line_and_made_anew(copy, log, damage):
    want = load(copy).lm
    damage(copy / CACHE)
    log.clear()
    assert_same(load(copy).lm, want)
    [line] = [r.getMessage() for r in log.records if r.levelno == logging.WARNING]
    assert "is ignored and made anew: " + BAD[damage] in line
    assert "download" not in line
    log.clear()
    assert_same(load(copy).lm, want)
    assert was_read(log)


def test_weights_of_another_precision_are_another_cache(copy, log):
    load(copy, torch.bfloat16)
    log.clear()
    assert load(copy, torch.float32).lm.embedding.table.dtype == torch.float32
    assert "is of another quantiser" in log.text


def test_a_source_that_does_not_fit_is_refused_whatever_the_cache_says(copy):
    load(copy)
    config = json.loads((copy / "config.json").read_text())
    config["lm"]["depformer_num_layers"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="that this engine does not know"):
        load(copy)


def drafts(folder: Path) -> list[Path]:
    return list(folder.glob(f".{CACHE}-*"))


def test_a_folder_that_cannot_be_written_costs_a_line_in_the_log(copy, log, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tensors.tempfile, "mkstemp", refuse)
    first = load(copy).lm
    [line] = [r.getMessage() for r in log.records if r.levelno == logging.WARNING]
    assert f"{CACHE} is not kept, so every start makes it: [Errno 30] Read-only" in line
    assert not (copy / CACHE).exists()
    monkeypatch.undo()
    assert_same(load(copy).lm, first)


@pytest.mark.parametrize("room", [0, 1, 40, 100])
def test_a_disk_that_fills_up_costs_a_line_and_leaves_nothing_behind(copy, log, monkeypatch, room):
    left, write = [room], tensors.Writer.write

    def fill_up(self, *args) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *args)

    monkeypatch.setattr(tensors.Writer, "write", fill_up)
    first = load(copy).lm
    assert len([r for r in log.records if "No space left" in r.getMessage()]) == 1
    assert not drafts(copy)
    assert not (copy / CACHE).exists()
    monkeypatch.undo()
    assert_same(load(copy).lm, first)


def test_a_load_that_breaks_off_leaves_no_draft_and_no_cache(copy):
    def stop(phase: str, percent: float) -> None:
        if LM_FILE in phase and percent > 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(str(copy), Voices, int8=True, progress=stop)
    assert not drafts(copy)
    assert not (copy / CACHE).exists()


def test_what_a_killed_process_left_is_removed_and_a_living_one_s_is_not(copy):
    old, young = copy / f".{CACHE}-old", copy / f".{CACHE}-young"
    for draft in (old, young):
        draft.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    load(copy)
    assert drafts(copy) == [young]


def test_the_cache_may_be_read_by_whoever_may_read_the_source(copy):
    (copy / LM_FILE).chmod(0o640)
    load(copy)
    assert (copy / CACHE).stat().st_mode & 0o777 == 0o640
