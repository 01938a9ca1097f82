"""`bench drift` end to end on the tiny checkpoint: it passes what is good and nothing else."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.bench import drift
from engine.bench.__main__ import load_subject
from engine.bench.drift import TURN_FRAMES
from engine.bench.report import parse_options
from engine.errors import ConfigError, ModelError
from engine.model import transformer
from engine.weights.verdict import VERDICT, choose_precision, choose_recogniser_precision

GOLDEN = Path(__file__).parents[1] / "golden"
FRAMES = 30
LEAST = drift.LEAST_FRAMES


def unpacked(name: str, folder: Path) -> Path:
    ignored = shutil.ignore_patterns("expected", "*.int8.safetensors")
    return shutil.copytree(GOLDEN / name, folder / name, ignore=ignored)


@pytest.fixture
def places(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Copies of the tiny model and of the tiny recogniser, for which few frames are enough."""
    torch.set_num_threads(1)
    monkeypatch.setattr(drift, "LEAST_FRAMES", FRAMES)
    return unpacked("tiny", tmp_path), unpacked("stt_tiny", tmp_path)


def run(model: Path, stt: Path | None, *more: str) -> dict:
    """The result of the bench, as its file has it."""
    target = model.parent / "drift.json"
    words = ["--model", str(model), "--frames", str(FRAMES), "--json", str(target), *more]
    words += ["--transcribe", str(stt)] if stt else []
    assert drift.run(parse_options(load_subject("drift"), words)) == 0
    return json.loads(target.read_text())


def quantised(folder: Path) -> None:
    """Make the products such that int8 says exactly what they are."""
    path = folder / "model.safetensors"
    tensors = {name: value.float() for name, value in load_file(path).items()}
    for name, value in tensors.items():
        if value.dim() == 2:
            steps, scale = transformer.quantise_weight(value)
            tensors[name] = steps.float() * scale[:, None]
    save_file(tensors, path)


def test_weights_that_int8_holds_exactly_are_good_and_auto_obeys(places, capsys):
    model, stt = places
    quantised(model)
    quantised(stt)
    result = run(model, stt, "--verdict")
    rows = {row["what"]: row for row in result["rows"]}
    assert list(rows) == ["int8 weights", "int8 KV", "both", "int8 recogniser"]
    assert rows["int8 weights"]["good"]
    assert rows["int8 weights"]["top1"] == rows["int8 weights"]["audio_top1"] == 1
    assert rows["int8 weights"]["kl"] < 1e-6
    assert rows["int8 recogniser"]["good"]
    assert choose_precision(("auto", "bf16"), model, "cpu") == ("int8", "bf16")
    assert choose_recogniser_precision("auto", model, stt, "cpu") == "int8"
    assert "int8 recogniser" in capsys.readouterr().out


def coarse(quantise):
    """A quantiser with three values for each number: what no verdict may let through."""

    def quantised(exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps, scale = quantise(exact)
        return (steps.float() / 127).round().to(torch.int8), scale * 127

    return quantised


def test_weights_that_were_made_worse_say_something_else_and_int8_keys_and_values_do_not(
    places, monkeypatch
):
    model, stt = places
    monkeypatch.setattr(transformer, "quantise_weight", coarse(transformer.quantise_weight))
    rows = {row["what"]: row for row in run(model, stt)["rows"]}
    assert rows.pop("int8 KV")["top1"] > 0.9
    assert max(row["top1"] for row in rows.values()) < 0.8  # far below what is good enough
    assert not any(row["good"] for row in rows.values())


def test_keys_and_values_that_were_made_worse_say_something_else_beside_good_weights_too(
    places, monkeypatch
):
    model, _ = places
    quantised(model)
    monkeypatch.setattr(transformer, "quantise_columns", coarse(transformer.quantise_columns))
    rows = {row["what"]: row for row in run(model, None)["rows"]}
    assert rows["int8 weights"]["good"]
    assert max(rows[what]["top1"] for what in ("int8 KV", "both")) < 0.8


def plant(monkeypatch, good: tuple[bool, bool, bool] = (True, True, True), spoken: float = 0.3):
    """Rows of a model as if they had been measured."""
    names = ("int8 weights", "int8 KV", "both")
    rows = [{"what": name, "kl": 0.01, "good": g} for name, g in zip(names, good, strict=True)]
    said = SimpleNamespace(spoken=spoken, sound=None)
    monkeypatch.setattr(drift, "judge_model", lambda *_: (rows, None, said))


@pytest.mark.parametrize(
    ("good", "taken"),
    [
        ((True, True, True), ("int8", "int8")),
        ((False, True, False), ("bf16", "int8")),
        ((True, False, False), ("int8", "bf16")),
        ((True, True, False), ("int8", "bf16")),  # together they are not: weights are more bytes
        ((False, False, False), ("bf16", "bf16")),
    ],
)
def test_auto_takes_what_was_good_and_nothing_else(good, taken, places, monkeypatch):
    model, _ = places
    plant(monkeypatch, good)
    run(model, None, "--verdict")
    assert choose_precision(("auto", "auto"), model, "cpu") == taken


@pytest.mark.parametrize(("good", "taken"), [(True, "int8"), (False, "bf16")])
def test_auto_takes_a_recogniser_that_was_good_and_no_other(good, taken, places, monkeypatch):
    model, stt = places
    plant(monkeypatch)
    row = {"what": "int8 recogniser", "kl": 0.01, "good": good}
    monkeypatch.setattr(drift, "judge_recogniser", lambda *_: row)
    run(model, stt, "--verdict")
    assert choose_recogniser_precision("auto", model, stt, "cpu") == taken


def test_a_model_that_says_next_to_nothing_gets_no_verdict(places, monkeypatch):
    model, _ = places
    plant(monkeypatch, spoken=0.04)
    with pytest.raises(ModelError, match=r"^only 4\.0% of the frames have text, and a verdict nee"):
        run(model, None, "--verdict")
    assert not (model / VERDICT).exists()
    run(model, None)


def test_numbers_and_limits_are_kept_in_the_verdict(places, monkeypatch):
    model, _ = places
    plant(monkeypatch, (True, False, False))
    result = run(model, None, "--verdict")
    kept = json.loads((model / VERDICT).read_text())
    assert kept["rows"] == result["rows"]
    assert kept["spoken"] == 0.3
    assert kept["limits"] == {
        "spoken": 0.05, "top1": 0.97, "rise of mean": 0.5, "rise": 1e-3, "rise of error": 2.5
    }  # fmt: skip
    assert kept["frames"] == FRAMES
    assert [kept["weights"], kept["kv"], kept["both"]] == [True, False, False]
    assert "recogniser" not in kept


def test_too_few_frames_are_no_ground_for_a_verdict_but_may_be_looked_at(places, monkeypatch):
    model, _ = places
    monkeypatch.undo()
    plant(monkeypatch)
    assert drift.LEAST_FRAMES == 1500
    with pytest.raises(ConfigError, match=r"--frames is 30, but a verdict needs 1500 or more"):
        run(model, None, "--verdict")
    run(model, None)
    assert not (model / VERDICT).exists()
    with pytest.raises(ConfigError, match=r"--frames is 9; use 10 or more"):
        run(model, None, "--frames", "9")


def logits(frames: int = 1500) -> torch.Tensor:
    return torch.randn(frames, 50, generator=torch.Generator().manual_seed(1)) * 4


def test_the_kl_is_what_is_lost_by_taking_the_other_for_the_plain_one():
    plain, other = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    row = drift.compare("one-sided", plain.expand(20, -1), other.expand(20, -1))
    assert row["kl"] == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert row["kl_rise"] == pytest.approx(0)


def test_a_kl_that_grows_over_the_run_is_refused_though_every_choice_is_the_same():
    plain = logits()
    growing = torch.linspace(1.0, 1.4, len(plain))[:, None]  # flatter or sharper: the same top
    row = drift.compare("drifting", plain, plain * growing)
    assert row["top1"] == 1
    assert not row["good"]


RUNS = 300
FRAME = np.arange(LEAST)


def talking(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Whether the agent talks in each frame [T]: turns of so many seconds, two in five are its."""
    turn = int(seconds * 12.5)
    turns = rng.random(LEAST // turn + 2) < 0.4
    return np.repeat(turns, turn)[rng.integers(turn) :][:LEAST]


STEADY = {  # errors that come in bursts and grow nowhere
    "one frame like another": lambda rng: rng.exponential(0.005, LEAST),
    "few frames with much": lambda rng: rng.lognormal(-7, 2, LEAST),
    "a word in seven frames": lambda rng: np.where(
        rng.random(LEAST) < 0.15, rng.exponential(0.03, LEAST), 1e-4
    ),
    "an answer in each block": lambda rng: (
        (FRAME % TURN_FRAMES > 60) * rng.exponential(0.03, LEAST) + 1e-4
    ),
    "turns of 4 s": lambda rng: talking(rng, 4) * rng.exponential(0.03, LEAST) + 1e-4,
    "turns of 8 s": lambda rng: talking(rng, 8) * rng.exponential(0.03, LEAST) + 1e-4,
}


def refused(kl: np.ndarray) -> bool:
    return not drift.fit_drift(torch.from_numpy(kl)).small


@pytest.mark.parametrize("name", STEADY)
def test_a_kl_that_comes_in_bursts_and_does_not_grow_is_hardly_ever_refused(name):
    rng = np.random.default_rng(3)
    assert sum(refused(STEADY[name](rng)) for _ in range(RUNS)) <= 0.05 * RUNS


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("one frame like another", 1),
        ("a word in seven frames", 0.99),
        ("few frames with much", 0.8),
    ],
)
def test_a_kl_that_begins_at_nothing_and_grows_is_refused(name, least):
    rng = np.random.default_rng(4)
    grown = FRAME / FRAME.mean()  # 0 to twice the mean
    assert sum(refused(STEADY[name](rng) * grown) for _ in range(RUNS)) >= least * RUNS


def test_a_rise_that_is_sure_but_smaller_than_half_the_mean_is_no_drift():
    line = FRAME / LEAST - 0.5
    assert not refused(0.01 * (1 + 0.4 * line))
    assert refused(0.01 * (1 + 0.6 * line))
    assert not refused(0.001 * (1 + 0.9 * line))  # of next to nothing


def test_a_kl_that_falls_is_no_drift():
    assert not refused(0.01 * (2 - FRAME / FRAME.mean()))


@pytest.mark.parametrize("at", [0, LEAST // 2, -1])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_single_frame_without_a_number_is_refused(at, value):
    kl = np.full(LEAST, 0.01)
    kl[at] = value
    assert refused(kl)


def test_one_other_choice_in_thirty_is_refused_though_nothing_grows():
    plain = logits()
    other = plain + 0.05 * torch.randn_like(plain)
    assert drift.compare("near", plain, other)["good"]
    other[::30] = -plain[::30]
    row = drift.compare("other", plain, other)
    assert row["top1"] < 0.97
    assert not row["good"]


def test_what_is_no_number_is_refused():
    plain = logits(50)
    assert not drift.compare("broken", plain, torch.full_like(plain, float("nan")))["good"]
