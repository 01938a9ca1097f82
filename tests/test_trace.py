"""`trace` as a command: golden conversations, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from engine.cli import main

TINY = Path(__file__).parent / "golden" / "tiny"


def trace(tmp_path: Path, *options: str) -> Path:
    out = tmp_path / "trace.safetensors"
    wav, model = str(TINY / "input_user.wav"), ["--model", str(TINY), "--device", "cpu"]
    assert main(["trace", *model, "--input", wav, "--out", str(out), *options]) == 0
    return out


def forced_runs(forced: dict[str, int]) -> list[str]:
    """{"22": 5, "23": 6, "30": 7} as --force options."""
    options, last = [], -9
    for frame, token in ((int(k), v) for k, v in forced.items()):
        if frame == last + 1:
            options[-1] += f",{token}"
        else:
            options += ["--force", f"{frame}:{token}"]
        last = frame
    return options


@pytest.mark.parametrize("name", ["gen_voice_wav", "gen_forced_text"])
def test_row_i_of_a_greedy_trace_is_the_references_row_i_plus_1(tmp_path, name):
    expected = TINY / "expected" / name
    want = load_file(expected.with_suffix(".safetensors"))
    about = json.loads(expected.with_suffix(".json").read_text())
    options = ["--voice", about["voice"], "--text-prompt", about["text_prompt"], "--greedy"]
    out = trace(tmp_path, *options, *forced_runs(about.get("forced", {})), "--frames", "81")
    got, rows = load_file(out), want["tokens"][1:]
    assert np.array_equal(got["text"], rows[:, 0])
    assert np.array_equal(got["agent_codes"], rows[:, 1:9])
    assert np.array_equal(got["user_codes"], rows[:, 9:])
    if "pcm" in want:
        np.testing.assert_allclose(got["pcm"], want["pcm"][1920:], atol=1e-5, rtol=0)
    where = {int(frame) for frame in about.get("forced", {})}
    free = [i for i in range(81) if i not in where]
    assert np.array_equal(got["sampled_text"][free], got["text"][free])


def test_the_file_says_what_it_is_of(tmp_path):
    out = trace(tmp_path, "--seed", "5", "--frames", "3", "--text-prompt", "Hi.")
    with safe_open(out, "np") as file:
        about = file.metadata()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert about["voice"] == "TINYF0"
    assert about["seed"] == "5"
    assert int(about["prompt_frames"]) > 26 + 12
    assert shapes == {
        "user_codes": (3, 8),
        "agent_codes": (3, 8),
        "sampled_text": (3,),
        "text": (3,),
        "pcm": (3 * 1920,),
    }


def test_a_seed_repeats_a_sampled_trace(tmp_path):
    options = ["--seed", "5", "--frames", "6", "--text-prompt", ""]
    one, two = (load_file(trace(tmp_path, *options)) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_say_has_its_text_spoken_from_that_frame_on(tmp_path):
    options = ["--greedy", "--frames", "60", "--text-prompt", "", "--say", "2:Good day"]
    got = load_file(trace(tmp_path, *options))
    from engine.weights.loading import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer(TINY / "tokenizer_spm_32k_3.model")
    ids, told = tokenizer.encode("Good day"), got["text"].tolist()
    spoken = [t for t in told[2:] if t in ids]
    assert spoken[: len(ids)] == ids
    assert not np.array_equal(got["text"], got["sampled_text"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--force", "3:99999"], "--force 3:99999; use frames from 0 and ids from 0 to 383"),
        (["--voice", "Bob"], "voice 'Bob' not found; use one of TINYF0, TINYM0"),
        (["--frames", "0"], "--frames is 0; use 1 or more"),
        (["--model", "embedded"], "has no tokens to trace"),
        (["--model", "no/such/place"], "is no directory and no repository"),
    ],
)
def test_what_it_refuses_is_one_clear_line(tmp_path, capsys, options, words):
    wav = str(TINY / "input_user.wav")
    given = ["trace", "--model", str(TINY), "--input", wav, "--out", str(tmp_path / "x"), *options]
    assert main(given) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last


def test_with_a_recogniser_the_words_tokens_and_pauses_are_the_references(tmp_path):
    golden = TINY.parent / "stt_tiny"
    want = load_file(golden / "expected" / "stt.safetensors")
    said = json.loads((golden / "expected" / "stt.json").read_text())["words"]
    out = trace(tmp_path, "--greedy", "--text-prompt", "", "--transcribe", str(golden))
    got = load_file(out)
    assert np.array_equal(got["stt_tokens"], want["tokens"][1:83])
    np.testing.assert_allclose(got["stt_pause"], want["pause"][1:83], atol=1e-4, rtol=0)
    with safe_open(out, "np") as file:
        words = json.loads(file.metadata()["words"])
    assert words == [{name: word[name] for name in ("text", "start", "end")} for word in said]


def test_offline_writes_the_users_words_beside_the_agents(tmp_path):
    golden, json_file = TINY.parent / "stt_tiny", tmp_path / "out.json"
    command = ["offline", "--model", str(TINY), "--transcribe", str(golden), "--device", "cpu"]
    files = ["--input", str(TINY / "input_user.wav"), "--output", str(tmp_path / "out.wav")]
    assert main([*command, *files, "--output-text", str(json_file), "--text-prompt", ""]) == 0
    said = json.loads(json_file.read_text())
    assert len(said["text"]) == 82
    assert said["words"][0] == {"text": "du", "start": 0.0, "end": 0.16}
