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


def test_download_that_fails_exits_1_with_one_line(monkeypatch, capsys):
    def offline(*args, **kwargs):
        raise errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    assert main(["download"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: huggingface.co cannot be reached")
    assert "\n" not in said
