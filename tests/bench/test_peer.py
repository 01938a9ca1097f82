"""`bench peer` beside a package laid out like NVIDIA's fork: weights, turns, process, words."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.bench import peer
from engine.bench.__main__ import load_subject
from engine.bench.report import parse_options
from engine.cli import main
from engine.errors import ConfigError, ModelError
from engine.weights.hub import LM_FILE
from engine.weights.loading import load_checkpoint
from tests.bench.fork import read_notes, write_fork

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "golden" / "tiny"
SETTINGS = "--small", "--device", "cpu", "--no-compile", "--ticks", "2"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run beside the fork, both kinds, begun in a folder that is not ours: result and calls."""
    folder = tmp_path_factory.mktemp("peer")
    notes, elsewhere = write_fork(folder / "checkout"), folder / "elsewhere"
    elsewhere.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        assert main(["bench", "peer", "--reference", "../checkout", *SETTINGS]) == 0
    return json.loads((elsewhere / "bench-peer.json").read_text()), read_notes(notes)


def test_the_fork_is_timed_in_both_kinds_at_one_stream(measured):
    result, _ = measured
    rows = result["reference"]["rows"]
    assert [(row["kind"], row["B"], row["context"]) for row in rows] == [
        ("step", 1, 100), ("frame", 1, 100),
    ]  # fmt: skip
    for row in rows:
        assert row["ours_before_ms"] > 0 < row["ours_after_ms"]
        assert row["peer_ms"] > 0
    assert (result["reference"]["depth_steps"], result["reference"]["codecs"]) == (16, 2)


def test_the_fork_is_made_as_its_server_makes_it(measured):
    _, notes = measured
    assert ["lm", 16, 16, 64] in notes
    assert notes.count(["codec", 8, 32, 64]) == 2  # of our sizes, not of the loader's own
    assert [note for note in notes if note[0] == "gen"] == [["gen", "cpu", 24000, 12.5, 6]] * 2


def test_each_frame_runs_through_both_codecs_of_the_fork(measured):
    _, notes = measured
    calls = [note for note in notes if note[0] in ("encode", "step", "decode")]
    steps = peer.PEER_WARM_UPS + 2
    assert calls[:steps] == [["step"]] * steps
    first = [["encode", 0], ["encode", 1], ["step"]]  # its first step has no answer
    assert calls[steps:] == first + [*first, ["decode", 0], ["decode", 1]] * (steps - 1)


def test_sixteen_depth_steps_made_of_eight_are_the_public_names_and_shapes():
    eight = peer.read_lm(TINY / LM_FILE, 8, "cpu", torch.float32)
    sixteen = {}
    for name, value in eight.items():
        sixteen.update(peer.fit_steps(name, value, 8, 16))
    public = load_file(TINY / LM_FILE)
    assert {k: v.shape for k, v in sixteen.items()} == {k: v.shape for k, v in public.items()}
    back = {}
    for name, value in sixteen.items():
        back.update(peer.fit_steps(name, value, 16, 8))
    assert back.keys() == eight.keys()
    assert all(torch.equal(back[name], value) for name, value in eight.items())


def test_our_tokens_without_a_codec_are_the_references():
    expected, tiny = TINY / "expected", load_checkpoint(str(TINY))
    user = load_file(expected / "codec.safetensors")["codes8_streaming"].long().T
    want = load_file(expected / "gen_no_prompt.safetensors")["tokens"]
    with torch.inference_mode():
        got = torch.from_numpy(peer.own_tokens(tiny, user.tolist()))[1 : len(want) + 1]
    assert torch.equal(got.int(), want[:, :9])


def test_the_ratio_is_to_the_mean_of_our_two_turns():
    row = peer.describe_turns([10.0, 10.0], [20.0, 21.0], [10.5, 10.5])
    assert row["peer/ours"] == pytest.approx(20.5 / 10.25)
    assert row["spread"] == pytest.approx(0.5 / 10.25)
    assert row["mark"] == ""
    assert peer.describe_turns([10.0], [1.0], [11.2])["mark"] == "unsteady"


def test_a_peer_that_ends_is_named_with_what_it_was_asked(tmp_path):
    write_fork(tmp_path)
    ended = pytest.raises(ModelError, match="ended with code 1 when asked to sing; its own words")
    with peer.PeerProcess(tmp_path / "moshi", compiled=False) as process, ended:
        process.ask("sing")


def test_a_path_without_a_package_is_named_with_what_was_looked_for(tmp_path):
    words = ["--reference", str(tmp_path), *SETTINGS]
    with pytest.raises(ConfigError) as raised:
        peer.run(parse_options(load_subject("peer"), words))
    said = str(raised.value)
    assert said.startswith(f"--reference {tmp_path} holds no package moshi")
    assert str(tmp_path / "moshi" / "moshi" / "__init__.py") in said
    assert "pip install --no-deps" in said


def test_without_a_peer_one_line_says_how_to_get_one(capsys, tmp_path):
    assert main(["bench", "peer", "--small", "--json", str(tmp_path / "peer.json")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "--moshi PATH" in said[-1]
