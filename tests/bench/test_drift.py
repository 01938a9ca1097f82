"""`bench drift` end to end on the tiny checkpoint: it passes what is good and nothing else."""

import json
import math
import shutil
from copy import deepcopy
from dataclasses import replace
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
from engine.config import PAD, SamplingConfig
from engine.dialogue.persona import load_personas
from engine.errors import ConfigError, ModelError
from engine.model import transformer
from engine.model.config import LMConfig
from engine.weights import int8
from engine.weights.int8 import quantiser_hash
from engine.weights.loading import load_checkpoint
from engine.weights.verdict import VERDICT, choose_precision, choose_recogniser_precision

GOLDEN = Path(__file__).parents[1] / "golden"
FRAMES = 20
LEAST = drift.LEAST_FRAMES


def unpacked(name: str, folder: Path) -> Path:
    ignored = shutil.ignore_patterns("expected", "*.int8.safetensors")
    return shutil.copytree(GOLDEN / name, folder / name, ignore=ignored)


@pytest.fixture
def places(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Copies of the tiny model and of the tiny recogniser, for which few frames are enough."""
    torch.set_num_threads(1)
    monkeypatch.setattr(drift, "LEAST_FRAMES", FRAMES)
    # each precision reads the prompt column by column
    brief = replace(load_personas()[0], text="You enjoy having a good conversation.")
    monkeypatch.setattr(drift, "load_personas", lambda: [brief])
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
        "spoken": 0.05, "top1": 0.97, "words top1": 0.95, "kl": 0.02, "slope": 0.01, "steps": 0.6,
        "rise of mean": 0.5, "rise": 1e-3, "rise of error": 2.5,
    }  # fmt: skip
    assert kept["frames"] == FRAMES
    assert [kept["weights"], kept["kv"], kept["both"]] == [True, False, False]
    assert "recogniser" not in kept


def test_too_few_frames_are_no_ground_for_a_verdict_but_may_be_looked_at(places, monkeypatch):
    model, _ = places
    monkeypatch.undo()
    plant(monkeypatch)
    assert drift.LEAST_FRAMES == 3000
    said = f"--frames is {FRAMES}, but a verdict needs 3000 or more"
    with pytest.raises(ConfigError, match=said):
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


# -- rubbish of many kinds, and honest noise -------------------------------------------------------


def talk(spoken: float = 0.045, frames: int = 1500) -> torch.Tensor:
    """Logits [T, 50] of an agent that is sure: padding, and a word in a few frames."""
    made = torch.Generator().manual_seed(2)
    sure = torch.where(torch.rand(frames, generator=made) < spoken, 7, PAD)
    words = 4 + torch.randint(40, (frames,), generator=made)
    likeliest = torch.where(sure == PAD, PAD, words)
    plain = torch.randn(frames, 50, generator=made)
    return plain.scatter(1, likeliest[:, None], 12.0)


def say_other_words(plain: torch.Tensor, share: float) -> torch.Tensor:
    """The same padding, and other words in a share of the frames that have one."""
    other, words = plain.clone(), (plain.argmax(-1) != PAD).nonzero()[:, 0]
    for frame in words[: int(share * len(words))].tolist():
        other[frame] = plain[frame].roll(3)
    return other


def test_words_that_are_wrong_are_refused_though_all_the_padding_is_the_same():
    plain = talk()
    row = drift.compare("other words", plain, say_other_words(plain, 0.59))
    assert row["top1"] >= 0.97  # which was all that was asked for
    assert row["words_top1"] < 0.5
    assert not row["good"]
    row = drift.compare("one word in ten", plain, say_other_words(plain, 0.1))
    assert row["top1"] >= 0.99
    assert not row["good"]


def test_words_where_there_were_none_are_refused():
    plain = talk()
    other = plain.clone()
    other[:30] = plain[:30].roll(20, -1)  # 2 % of the frames
    row = drift.compare("babble", plain, other)
    assert row["top1"] >= 0.97
    assert not row["good"]


def test_a_model_without_a_single_word_is_not_good():
    silent = torch.randn(100, 50).scatter(1, torch.full((100, 1), PAD), 12.0)
    assert not drift.compare("silent", silent, silent)["good"]


@pytest.mark.parametrize("scale", [0.98, 1.02, 0.5, -1.0])
def test_logits_that_are_off_by_two_percent_are_refused_though_all_words_are_the_same(scale):
    row = drift.compare("scaled", talk(), talk() * scale)
    assert not row["good"]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03, 0.1])
def test_honest_noise_passes(noise):
    plain = talk()
    row = drift.compare("noise", plain, plain + noise * torch.randn_like(plain))
    assert row["good"], row


def test_a_kl_that_is_large_is_refused_though_it_does_not_rise(monkeypatch):
    plain = talk()
    centred = plain - plain.mean(-1, keepdim=True)
    more = 8.0 * (torch.arange(50) == 49).float()  # another word is nearly as likely, always
    along = (centred * more).sum(-1, keepdim=True) / centred.square().sum(-1, keepdim=True)
    row = drift.compare("large", plain, plain + more - along * centred)
    assert min(row["top1"], row["words_top1"]) > 0.98
    assert row["kl"] > drift.MOST_KL
    assert not row["good"]
    monkeypatch.setattr(drift, "MOST_KL", 9.0)  # nothing else is wrong with it
    assert drift.compare("large", plain, plain + more - along * centred)["good"]


@pytest.fixture(scope="module")
def conversation():
    """The tiny model, what it reads in a conversation, and what it makes of it."""
    torch.set_num_threads(1)
    base = load_checkpoint(str(GOLDEN / "tiny"))
    said = drift.hold_conversation(base, 40, SamplingConfig())
    said = replace(said, before=said.before[-10:])  # the end of the prompt, for time
    return said, drift.force_columns(base.lm, said.columns, None, said.before)


RUBBISH = {
    "rows that are swapped": lambda steps, scale: (steps.roll(1, 0), scale),
    "scales that are swapped": lambda steps, scale: (steps, scale.roll(1, 0)),
    "dead outputs": lambda steps, scale: (
        steps * (torch.arange(len(steps)) % 4 > 0)[:, None],
        scale,
    ),
    "columns that are swapped": lambda steps, scale: (steps.roll(1, 1), scale),
    "signs that are lost": lambda steps, scale: (steps.abs(), scale),
    "scales 2 % too large": lambda steps, scale: (steps, scale * 1.02),
    "scales 2 % too small": lambda steps, scale: (steps, scale * 0.98),
}


WEIGHTS = GOLDEN / "tiny" / "model.safetensors"


def judge_int8(conversation) -> dict:
    """The row of the tiny model's int8 weights, quantised as the quantiser now does."""
    said, plain = conversation
    lm = load_checkpoint(str(GOLDEN / "tiny"), int8=True).lm
    forced = drift.force_columns(lm, said.columns, None, said.before)
    return drift.judge("int8", plain, forced, drift.measure_weights(lm, WEIGHTS))


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_of_any_kind_is_refused(kind, conversation, monkeypatch):
    quantise = transformer.quantise_weight
    monkeypatch.setattr(
        transformer, "quantise_weight", lambda exact: RUBBISH[kind](*quantise(exact))
    )
    row = judge_int8(conversation)
    assert row["steps"] > drift.MOST_STEPS_OFF
    assert not row["good"]
    assert not drift.judge_steps(row, 0.5)["good"]  # what it says is refused as well


def swap(rows: torch.Tensor, one: int, other: int) -> None:
    rows[[one, other]] = rows[[other, one]]


# Of one int8 model: what its quantiser makes of a probe is right.
DAMAGE = {
    "a dead product": lambda lm: lm.transformer.layers[0].self_attn.in_proj.weight.zero_(),
    "rows of one layer swapped": lambda lm: swap(
        lm.transformer.layers[1].gating.linear_in.weight, 3, 5
    ),
    "a dead head": lambda lm: lm.transformer.layers[1].self_attn.out_proj.weight[:, :8].zero_(),
    "a norm 2 % too large": lambda lm: lm.transformer.layers[1].norm2.alpha.mul_(1.02),
    "entries of two words exchanged": lambda lm: swap(
        lm.embedding.table, lm.embedding.starts[0] + 200, lm.embedding.starts[0] + 201
    ),
    "two words that are never said exchanged": lambda lm: swap(lm.text_linear.weight, 200, 201),
    "a broken last codebook": lambda lm: lm.depformer.linears[-1].weight.copy_(
        lm.depformer.linears[-1].weight.roll(1, 0)
    ),
    "a broken fourth codebook": lambda lm: lm.depformer.layers[0].in_proj[3].weight.neg_(),
    "a broken entry of a codebook": lambda lm: swap(lm.depformer.emb[5].weight, 7, 8),
    "one weight a step off": lambda lm: lm.depformer.input.weight[0, 0].sub_(1),
    "one scale off": lambda lm: lm.text_linear.scale[200].mul_(1.02),
}


@pytest.fixture(scope="module")
def int8_lm():
    return load_checkpoint(str(GOLDEN / "tiny"), int8=True).lm


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_any_weight_is_refused_though_the_conversation_does_not_meet_it(
    kind, conversation, int8_lm
):
    _, plain = conversation
    lm = deepcopy(int8_lm)
    with torch.inference_mode():
        DAMAGE[kind](lm)
        row = drift.judge("int8", plain, plain, drift.measure_weights(lm, WEIGHTS))
    assert row["steps"] > drift.MOST_STEPS_OFF
    assert row["kl"] == 0  # what it says is the same
    assert not row["good"]


def test_what_int8_honestly_makes_passes(conversation, monkeypatch):
    """Three seconds of a tiny model, whose draws differ with a machine's rounding, are judged
    generously by what they say, and by their weights as any others.
    """
    for name, value in {"MOST_KL": 0.1, "LEAST_TOP1": 0.9, "LEAST_WORDS_TOP1": 0.8}.items():
        monkeypatch.setattr(drift, name, value)
    row = judge_int8(conversation)
    assert row["good"], str(row)


@pytest.mark.parametrize("codebook", range(8))
def test_a_codebook_that_says_something_else_is_refused_whichever_it_is(codebook, conversation):
    _, plain = conversation
    audio = plain.audio.clone()
    assert drift.judge("the same", plain, replace(plain, audio=audio), 0.5)["good"]
    audio[:, codebook] = audio[:, codebook].roll(1, -1)
    assert not drift.judge("another", plain, replace(plain, audio=audio), 0.5)["good"]


OFF_BY_ONE = {
    "scales 2 % too small": lambda steps, scale: (steps, scale * 0.98),
    "scales 2 % too large": lambda steps, scale: (steps, scale * 1.02),
    "a step too much": lambda steps, scale: ((steps + 1).clamp(max=127), scale),
    "cut off, not rounded": lambda steps, scale: (steps - (steps > 0).to(torch.int8), scale),
    "heads swapped": lambda steps, scale: (steps.roll(1, -2), scale),
    "the neighbour's scale": lambda steps, scale: (steps, scale.roll(1, -1)),
}


@pytest.mark.parametrize("kind", OFF_BY_ONE)
def test_keys_and_values_that_are_off_are_refused(kind, monkeypatch):
    quantise = transformer.quantise_columns
    assert drift.measure_steps("cpu") <= drift.MOST_STEPS_OFF
    change = OFF_BY_ONE[kind]
    monkeypatch.setattr(transformer, "quantise_columns", lambda exact: change(*quantise(exact)))
    assert drift.measure_steps("cpu") > drift.MOST_STEPS_OFF


@pytest.mark.parametrize("share", [0.02, 0.05, 0.3])
def test_what_is_wrong_only_where_the_memory_is_full_is_refused(share):
    plain = talk(frames=LEAST)
    first, other = int((1 - share) * LEAST), plain.clone()
    other[first:] = plain[first:].roll(3, -1)
    assert drift.compare("the first half", plain[:first], other[:first])["good"]
    assert not drift.compare("all of it", plain, other)["good"]


def test_a_verdict_is_reached_past_the_end_of_the_models_memory():
    assert LMConfig().context < drift.LEAST_FRAMES + 150  # a prompt


def test_a_first_codebook_that_says_something_else_is_refused(places, monkeypatch):
    model, _ = places
    quantised(model)
    real = drift.force_columns
    seen = []

    def force(*given):
        forced = real(*given)
        seen.append(forced)
        audio = forced.audio if len(seen) == 1 else forced.audio.roll(1, -1)
        return replace(forced, audio=audio)

    monkeypatch.setattr(drift, "force_columns", force)
    rows = run(model, None)["rows"]
    assert rows[0]["top1"] == 1
    assert not any(row["good"] for row in rows)


def test_the_quantiser_of_keys_and_values_is_part_of_what_a_verdict_is_reached_with(monkeypatch):
    before = quantiser_hash(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(int8, "quantise_columns", coarse(transformer.quantise_columns))
    assert quantiser_hash(torch.device("cpu"), torch.float32) != before
