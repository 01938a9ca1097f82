"""`bench peer` without a peer: its weights, its turns, its process and what it says."""

import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.bench import peer
from engine.bench.peers import ours
from engine.bench.peers.process import PeerProcess, package_at
from engine.bench.peers.weights import fitted, lm_arguments, read_lm
from engine.errors import ConfigError, ModelError
from engine.model.config import ModelConfig
from engine.weights.checkpoint import TensorFile, parameters
from engine.weights.generated import on_meta
from engine.weights.hub import LM_FILE
from engine.weights.names import lm_pieces
from tests.model.making import Held

TINY = Path(__file__).parents[1] / "golden" / "tiny"
CPU, WHOLE = torch.device("cpu"), torch.float32
FAKE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "break":
        sys.exit(3)
    answer = {"ms": [20.0] * asked["times"], "rings": asked["rings"], "cuda_graphs": False}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def tiny():
    return ours.load(TINY, "cpu", WHOLE)


@pytest.fixture
def fake(tmp_path):
    """A peer's process that says what it is told to."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    with PeerProcess(tmp_path, compiled=False, command=(sys.executable, str(script))) as process:
        yield process


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def options(*given: str):
    parser = ArgumentParser()
    peer.add_arguments(parser)
    return parser.parse_args(["--ticks", "2", "--warm-up", "1", *given])


def test_a_model_of_8_depth_steps_gets_what_we_read_of_a_file_of_16(tiny):
    lm, _ = on_meta(ModelConfig(tiny.lm.config, tiny.mimi.config))
    pieces, values = list(lm_pieces(lm)), read_lm(TINY / LM_FILE, 8, "cpu", WHOLE)
    wanted = dict(parameters(lm, TensorFile(TINY / LM_FILE), pieces, CPU, WHOLE))
    got = dict(parameters(lm, Held(values), pieces, CPU, WHOLE))
    assert values.keys() == {piece.name for _, group in pieces for piece in group}
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


def test_16_depth_steps_made_of_8_have_the_public_names_and_shapes_and_give_the_8_back():
    eight = read_lm(TINY / LM_FILE, 8, "cpu", WHOLE)
    sixteen = {}
    for name, value in eight.items():
        sixteen.update(fitted(name, value, 8, 16))
    public = load_file(TINY / LM_FILE)
    assert {k: v.shape for k, v in sixteen.items()} == {k: v.shape for k, v in public.items()}
    back = {}
    for name, value in sixteen.items():
        back.update(fitted(name, value, 16, 8))
    assert back.keys() == eight.keys()
    assert all(torch.equal(back[name], value) for name, value in eight.items())


def test_the_peer_is_told_our_sizes(tiny):
    told = lm_arguments(tiny.lm.config, 8)
    assert (told["dim"], told["dep_q"], told["context"]) == (64, 8, 40)
    assert len(told["delays"]) == told["n_q"] + 1


def test_our_tokens_without_a_codec_are_the_references(tiny):
    expected = TINY / "expected"
    user = load_file(expected / "codec.safetensors")["codes8_streaming"].long().T
    want = load_file(expected / "gen_no_prompt.safetensors")["tokens"]
    got = torch.from_numpy(ours.tokens(tiny, user.tolist()))[1 : len(want) + 1]
    assert torch.equal(got.int(), want[:, :9])


def test_turns_are_ours_theirs_ours_and_the_ratio_is_to_the_mean_of_ours():
    order, own = [], iter(([10.0, 10.0], [10.5, 10.5]))

    def mine() -> list[float]:
        order.append("ours")
        return next(own)

    def theirs() -> list[float]:
        order.append("peer")
        return [20.0, 21.0]

    row = peer.in_turns(mine, theirs)
    assert order == ["ours", "peer", "ours"]
    assert row["peer/ours"] == pytest.approx(20.5 / 10.25)
    assert row["spread"] == pytest.approx(0.5 / 10.25)
    assert row["mark"] == ""


def test_a_row_whose_own_times_differ_by_more_than_a_tenth_is_marked():
    own = iter(([10.0], [11.2]))
    assert peer.in_turns(lambda: next(own), lambda: [1.0])["mark"] == "unsteady"


@pytest.mark.parametrize("kind", ["step", "frame"])
def test_a_row_holds_both_sides_of_one_kind(fake, tiny, kind):
    def ask(verb, **asked):
        assert (asked["kind"], asked["streams"], asked["context"]) == (kind, 2, 30)
        return fake.ask(verb, rings=3, **asked)

    row = peer.row_of(ask, tiny, 2, kind, 30, options())
    assert (row["kind"], row["B"], row["context"], row["peer_ms"]) == (kind, 2, 30, 20.0)
    assert row["ours_before_ms"] > 0 < row["ours_after_ms"]
    assert row["cuda_graphs"] is False


def test_a_peer_whose_memory_could_not_be_filled_is_not_said_to_have_a_past(fake, tiny):
    def ask(verb, **asked):
        return fake.ask(verb, rings=0, **asked)

    assert peer.row_of(ask, tiny, 1, "step", 30, options())["context"] == 0


def test_a_peer_that_ends_is_named_with_what_it_was_asked(fake):
    with pytest.raises(ModelError, match="ended with code 3 when asked to break; its own words"):
        fake.ask("break")


def test_a_package_is_found_at_the_path_or_in_its_moshi_folder(tmp_path):
    for place in (tmp_path / "installed", tmp_path / "checkout" / "moshi"):
        (place / "moshi").mkdir(parents=True)
        (place / "moshi" / "__init__.py").touch()
    assert package_at("--moshi", str(tmp_path / "installed")) == tmp_path / "installed"
    checkout = tmp_path / "checkout"
    assert package_at("--reference", str(checkout)) == checkout / "moshi"


def test_a_path_without_a_package_is_named_with_what_was_looked_for(tmp_path):
    with pytest.raises(ConfigError) as raised:
        peer.run(options("--reference", str(tmp_path)))
    said = str(raised.value)
    assert said.startswith(f"--reference {tmp_path} holds no package moshi")
    assert str(tmp_path / "moshi" / "moshi" / "__init__.py") in said
    assert "pip install --no-deps" in said


def test_without_a_peer_one_line_says_how_to_get_one(capsys):
    assert peer.run(options()) == 2
    said = capsys.readouterr().err
    assert "--moshi PATH" in said
    assert said.count("\n") == 1
