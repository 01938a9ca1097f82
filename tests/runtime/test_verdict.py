"""The verdict on int8: obeyed where it is whole and of these weights, ignored otherwise."""

import json
import shutil

import pytest
import torch

from engine.dialogue.voices import Voices
from engine.runtime.starting import load_personaplex
from engine.runtime.verdict import VERDICT, keep, precise, precise_recogniser
from tests.runtime.conftest import TINY

AUTO = ("auto", "auto")
STT = TINY.parent / "stt_tiny"


def test_auto_is_bf16_without_a_verdict_and_what_it_allows_with_one(copy):
    assert precise(("auto", "int8"), copy) == ("bf16", "int8")
    keep(copy, weights_good=True, kv_good=False, both_good=False, measured={"frames": 10})
    assert precise(AUTO, copy) == ("int8", "bf16")
    assert precise(("bf16", "int8"), copy) == ("bf16", "int8")


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
    keep(copy, weights, kv, both, {})
    assert precise(AUTO, copy) == auto
    assert precise(("bf16", "auto"), copy) == ("bf16", "int8" if kv else "bf16")
    assert precise(("int8", "auto"), copy) == ("int8", "int8" if kv and both else "bf16")


def test_what_was_measured_and_when_is_kept_with_the_verdict(copy):
    path = keep(copy, True, False, False, {"frames": 10, "limits": {"top1": 0.97}, "rows": []})
    kept = json.loads(path.read_text())
    assert kept["limits"] == {"top1": 0.97}
    assert (kept["weights"], kept["kv"], kept["both"]) == (True, False, False)
    assert (kept["frames"], kept["rows"]) == (10, [])
    assert kept["date"].startswith("20")
    assert [p.name for p in copy.glob("precision*")] == [VERDICT]


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", "null", '"int8"', "\xff\xfe", '{"weights": true, "kv": true}']
)
def test_a_damaged_or_foreign_verdict_is_ignored_with_a_line_in_the_log(copy, content, caplog):
    (copy / VERDICT).write_bytes(content.encode("latin-1"))
    assert precise(AUTO, copy) == ("bf16", "bf16")
    if content != "null":
        assert "ignored, auto is bf16" in caplog.text


def test_a_verdict_that_cannot_be_read_is_ignored(copy, caplog):
    (copy / VERDICT).mkdir()
    assert precise(AUTO, copy) == ("bf16", "bf16")
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("value", ["yes", 1, {}, None])
def test_only_true_allows_int8(copy, value):
    path = keep(copy, True, True, True, {})
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "weights": value}))
    assert precise(AUTO, copy) == ("bf16", "int8")
    path.write_text(json.dumps({**kept, "both": value}))
    assert precise(AUTO, copy) == ("int8", "bf16")


def test_a_verdict_on_other_weights_is_stale(copy, caplog):
    keep(copy, True, True, True, {})
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert precise(AUTO, copy) == ("bf16", "bf16")
    assert "reached with other weights" in caplog.text


def test_who_asks_for_a_precision_gets_it_whatever_the_verdict_says(copy):
    (copy / VERDICT).write_text("{")
    assert precise(("int8", "bf16"), copy) == ("int8", "bf16")


def test_a_start_with_a_bad_verdict_is_bf16_and_with_a_good_one_int8(copy):
    keep(copy, False, False, False, {})
    backend = load_personaplex(str(copy), Voices, slots=1)
    assert backend.checkpoint.lm.text_linear.scale is None
    assert backend.loop.rings.scale is None
    keep(copy, True, True, True, {})
    backend = load_personaplex(str(copy), Voices, slots=1)
    assert backend.checkpoint.lm.text_linear.weight.dtype == torch.int8
    assert backend.loop.rings.scale is not None


@pytest.fixture
def stt(tmp_path):
    ignored = shutil.ignore_patterns("expected", "*.int8.safetensors")
    return shutil.copytree(STT, tmp_path / "stt", ignore=ignored)


def test_a_recogniser_is_int8_only_where_its_own_verdict_is_good(copy, stt, caplog):
    assert precise_recogniser("auto", copy, stt) == "bf16"
    keep(copy, True, True, True, {})
    assert precise_recogniser("auto", copy, stt) == "bf16"
    keep(copy, False, False, False, {}, recogniser=(stt, True))
    assert precise_recogniser("auto", copy, stt) == "int8"
    assert precise_recogniser("bf16", copy, stt) == "bf16"
    keep(copy, True, True, True, {}, recogniser=(stt, False))
    assert precise_recogniser("auto", copy, stt) == "bf16"
    assert precise_recogniser("int8", copy, stt) == "int8"
    assert not caplog.records


def test_a_verdict_on_another_recogniser_is_stale(copy, stt, caplog):
    keep(copy, True, True, True, {}, recogniser=(stt, True))
    with (stt / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert precise_recogniser("auto", copy, stt) == "bf16"
    assert "reached with other weights" in caplog.text


def test_a_start_obeys_the_verdict_on_the_recogniser(copy, stt):
    keep(copy, False, False, False, {}, recogniser=(stt, True))
    backend = load_personaplex(str(copy), Voices, slots=1, transcribe=str(stt))
    assert backend.ear.hearing.stt.text_linear.scale is not None
    assert backend.checkpoint.lm.text_linear.scale is None
