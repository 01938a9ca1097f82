"""The verdict on int8: obeyed where it is whole and of these weights, ignored otherwise."""

import json
import shutil

import pytest
import torch

from engine.config import ServerConfig
from engine.runtime.starting import load_personaplex
from engine.weights import int8 as int8_cache
from engine.weights.verdict import (
    VERDICT,
    choose_precision,
    choose_recogniser_precision,
    publish,
    write_verdict,
)
from tests.runtime.conftest import TINY

AUTO = ("auto", "auto")
STT = TINY.parent / "stt_tiny"


def test_auto_is_bf16_without_a_verdict_and_what_it_allows_with_one(copy):
    assert choose_precision(("auto", "int8"), copy, "cpu") == ("bf16", "int8")
    write_verdict(
        copy, "cpu", weights_good=True, kv_good=False, both_good=False, measured={"frames": 10}
    )
    assert choose_precision(AUTO, copy, "cpu") == ("int8", "bf16")
    assert choose_precision(("bf16", "int8"), copy, "cpu") == ("bf16", "int8")


@pytest.mark.parametrize(
    ("weights", "kv", "both", "auto"),
    [
        (True, True, True, ("int8", "int8")),
        (True, True, False, ("int8", "bf16")),  # the weights are more of what a tick reads
        (True, False, True, ("int8", "bf16")),  # passed by chance: alone they did not
        (False, True, False, ("bf16", "int8")),
        (False, True, True, ("bf16", "int8")),
        (False, False, True, ("bf16", "bf16")),
    ],
)
def test_keys_and_values_are_judged_beside_the_weights_that_are_taken(
    copy, weights, kv, both, auto
):
    write_verdict(copy, "cpu", weights, kv, both, {})
    assert choose_precision(AUTO, copy, "cpu") == auto
    assert choose_precision(("bf16", "auto"), copy, "cpu") == ("bf16", "int8" if kv else "bf16")
    assert choose_precision(("int8", "auto"), copy, "cpu") == (
        "int8",
        "int8" if kv and both else "bf16",
    )


def test_what_was_measured_and_when_is_kept_with_the_verdict(copy):
    path = write_verdict(
        copy, "cpu", True, False, False, {"frames": 10, "limits": {"top1": 0.97}, "rows": []}
    )
    kept = json.loads(path.read_text())
    assert kept["limits"] == {"top1": 0.97}
    assert (kept["weights"], kept["kv"], kept["both"]) == (True, False, False)
    assert (kept["frames"], kept["rows"]) == (10, [])
    assert kept["date"].startswith("20")
    assert kept["device"] == "cpu"
    assert [p.name for p in copy.glob("precision*")] == [VERDICT]


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", "null", '"int8"', "\xff\xfe", '{"weights": true, "kv": true}']
)
def test_a_damaged_or_foreign_verdict_is_ignored_with_a_line_in_the_log(copy, content, caplog):
    (copy / VERDICT).write_bytes(content.encode("latin-1"))
    assert choose_precision(AUTO, copy, "cpu") == ("bf16", "bf16")
    if content != "null":
        assert "ignored, auto is bf16" in caplog.text


def test_a_verdict_that_cannot_be_read_is_ignored(copy, caplog):
    (copy / VERDICT).mkdir()
    assert choose_precision(AUTO, copy, "cpu") == ("bf16", "bf16")
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("value", ["yes", 1, {}, None])
def test_only_true_allows_int8(copy, value):
    path = write_verdict(copy, "cpu", True, True, True, {})
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "weights": value}))
    assert choose_precision(AUTO, copy, "cpu") == ("bf16", "int8")
    path.write_text(json.dumps({**kept, "both": value}))
    assert choose_precision(AUTO, copy, "cpu") == ("int8", "bf16")


def test_a_verdict_on_other_weights_is_stale(copy, caplog):
    write_verdict(copy, "cpu", True, True, True, {})
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert choose_precision(AUTO, copy, "cpu") == ("bf16", "bf16")
    assert "reached with other weights" in caplog.text


@pytest.fixture
def two_kinds(monkeypatch) -> dict[str, str]:
    """A machine with an A10G, made up; what its quantiser makes may be changed."""
    made = {"cpu": "rounded", "cuda": "rounded", "name": "NVIDIA A10G"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: made["name"])
    monkeypatch.setattr(int8_cache, "quantiser_hash", lambda device, dtype: made[device.type])
    return made


def test_a_verdict_of_a_cpu_is_not_obeyed_on_a_gpu_nor_the_other_way_round(
    copy, stt, two_kinds, caplog
):
    for there, here in (("cpu", "cuda"), ("cuda", "cpu")):
        write_verdict(copy, there, True, True, True, {}, recogniser=(stt, True))
        assert choose_precision(AUTO, copy, there) == ("int8", "int8")
        assert choose_recogniser_precision("auto", copy, stt, there) == "int8"
        caplog.clear()
        assert choose_precision(AUTO, copy, here) == ("bf16", "bf16")
        assert choose_recogniser_precision("auto", copy, stt, here) == "bf16"
        assert len(caplog.records) == 2
    assert "it was reached on NVIDIA A10G, and this is cpu; run bench drift again" in caplog.text


def test_a_verdict_of_another_kind_of_gpu_or_another_quantiser_is_not_obeyed(
    copy, two_kinds, caplog
):
    write_verdict(copy, "cuda", True, True, True, {})
    two_kinds["cuda"] = "cut off"
    assert choose_precision(AUTO, copy, "cuda") == ("bf16", "bf16")
    assert "reached with another quantiser" in caplog.text
    two_kinds.update(cuda="rounded", name="NVIDIA H200")
    assert choose_precision(AUTO, copy, "cuda") == ("bf16", "bf16")
    assert "reached on NVIDIA A10G, and this is NVIDIA H200" in caplog.text
    two_kinds["name"] = "NVIDIA A10G"
    assert choose_precision(AUTO, copy, "cuda") == ("int8", "int8")


@pytest.mark.parametrize("there", ["NVIDIA A10", "NVIDIA A10G"])
def test_an_a10_and_an_a10g_have_one_verdict(copy, two_kinds, there):
    two_kinds["name"] = there
    write_verdict(copy, "cuda", True, True, True, {})
    for here, weights in (("NVIDIA A10", "int8"), ("NVIDIA A10G", "int8"), ("NVIDIA A100", "bf16")):
        two_kinds["name"] = here
        assert choose_precision(AUTO, copy, "cuda")[0] == weights


def test_a_verdict_that_names_no_device_is_not_obeyed(copy, caplog):
    path = write_verdict(copy, "cpu", True, True, True, {})
    kept = json.loads(path.read_text())
    del kept["device"]
    path.write_text(json.dumps(kept))
    assert choose_precision(AUTO, copy, "cpu") == ("bf16", "bf16")
    assert "reached on a device that it does not name, and this is cpu" in caplog.text


def test_a_verdict_is_no_matter_where_the_device_is_missing(copy, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_verdict(copy, "cpu", True, True, True, {})
    assert choose_precision(AUTO, copy, "cuda") == ("bf16", "bf16")
    assert "this is no GPU" in caplog.text


def test_a_verdict_that_is_kept_elsewhere_is_obeyed_only_once_it_is_published(copy, tmp_path):
    path = write_verdict(copy, "cpu", True, False, False, {}, into=tmp_path)
    assert path == tmp_path / VERDICT
    assert choose_precision(AUTO, copy, "cpu") == ("bf16", "bf16")
    publish(path, copy)
    assert choose_precision(AUTO, copy, "cpu") == ("int8", "bf16")


def test_who_asks_for_a_precision_gets_it_whatever_the_verdict_says(copy):
    (copy / VERDICT).write_text("{")
    assert choose_precision(("int8", "bf16"), copy, "cpu") == ("int8", "bf16")


def test_a_start_with_a_bad_verdict_is_bf16_and_with_a_good_one_int8(copy):
    write_verdict(copy, "cpu", False, False, False, {})
    backend = load_personaplex(ServerConfig(model=str(copy), device="cpu", slots=1))
    assert backend.checkpoint.lm.text_linear.scale is None
    assert backend.loop.rings.scale is None
    write_verdict(copy, "cpu", True, True, True, {})
    backend = load_personaplex(ServerConfig(model=str(copy), device="cpu", slots=1))
    assert backend.checkpoint.lm.text_linear.weight.dtype == torch.int8
    assert backend.loop.rings.scale is not None


@pytest.fixture
def stt(tmp_path):
    ignored = shutil.ignore_patterns("expected", "*.int8.safetensors")
    return shutil.copytree(STT, tmp_path / "stt", ignore=ignored)


def test_a_recogniser_is_int8_only_where_its_own_verdict_is_good(copy, stt, caplog):
    assert choose_recogniser_precision("auto", copy, stt, "cpu") == "bf16"
    write_verdict(copy, "cpu", True, True, True, {})
    assert choose_recogniser_precision("auto", copy, stt, "cpu") == "bf16"
    write_verdict(copy, "cpu", False, False, False, {}, recogniser=(stt, True))
    assert choose_recogniser_precision("auto", copy, stt, "cpu") == "int8"
    assert choose_recogniser_precision("bf16", copy, stt, "cpu") == "bf16"
    write_verdict(copy, "cpu", True, True, True, {}, recogniser=(stt, False))
    assert choose_recogniser_precision("auto", copy, stt, "cpu") == "bf16"
    assert choose_recogniser_precision("int8", copy, stt, "cpu") == "int8"
    assert not caplog.records


def test_a_verdict_on_another_recogniser_is_stale(copy, stt, caplog):
    write_verdict(copy, "cpu", True, True, True, {}, recogniser=(stt, True))
    with (stt / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert choose_recogniser_precision("auto", copy, stt, "cpu") == "bf16"
    assert "reached with other weights" in caplog.text


def test_a_start_obeys_the_verdict_on_the_recogniser(copy, stt):
    write_verdict(copy, "cpu", False, False, False, {}, recogniser=(stt, True))
    backend = load_personaplex(ServerConfig(model=str(copy), device="cpu", slots=1), recogniser=stt)
    assert backend.hearing.stt.text_linear.scale is not None
    assert backend.checkpoint.lm.text_linear.scale is None
