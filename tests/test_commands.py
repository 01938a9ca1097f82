"""`voices` and `download` as commands."""

from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from engine.cli import main

TINY = Path(__file__).parent / "golden" / "tiny"


def test_voices_lists_a_checkpoints_voices_default_first(capsys):
    assert main(["voices", "--model", str(TINY)]) == 0
    assert capsys.readouterr().out.split() == ["TINYF0", "TINYM0"]


def test_voices_of_the_embedded_backend_are_the_public_names(capsys):
    assert main(["voices", "--model", "embedded"]) == 0
    names = capsys.readouterr().out.split()
    assert (names[0], len(names)) == ("NATF2", 18)


def test_download_says_where_the_files_are(monkeypatch, capsys):
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, name, **options: str(TINY / name)
    )
    assert main(["download", "--revision", "abc"]) == 0
    assert f"is in {TINY}, with 2 voices" in capsys.readouterr().out


def test_download_fetches_a_recogniser_where_it_is_asked_for(monkeypatch, capsys):
    fetched, folders = [], {"kyutai/stt-1b-en_fr-candle": TINY.parent / "stt_tiny"}

    def fetch(repo: str, name: str, **options) -> str:
        fetched.append((repo, name))
        return str(folders.get(repo, TINY) / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert main(["download", "--transcribe", "1"]) == 0
    names = [name for repo, name in fetched if repo in folders]
    assert names == ["config.json", "tokenizer_en_fr_audio_8000.model", "model.safetensors"]
    assert f"the recogniser is in {TINY.parent / 'stt_tiny'}" in capsys.readouterr().out


def test_download_that_fails_exits_1_with_one_line(monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    assert main(["download"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: huggingface.co cannot be reached")
    assert "\n" not in said
