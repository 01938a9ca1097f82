"""Sentence vectors: meaning, and what is kept on disk. The weights are a package's."""

import os
import subprocess
import sys

import numpy as np
import pytest

from engine.lookup import vectors as module
from engine.lookup.vectors import SentenceVectors, read_vectors


@pytest.fixture(scope="module")
def vectors() -> SentenceVectors:
    return SentenceVectors()


def test_the_same_meaning_in_other_words_is_near(vectors):
    price, paraphrase, dogs = vectors.embed(
        ["What does it cost?", "How much is it?", "My dog is asleep."]
    )
    assert price @ paraphrase > 0.6 > 0.3 > price @ dogs
    assert np.linalg.norm(price) == pytest.approx(1, abs=1e-5)


def test_a_sentence_is_the_same_beside_longer_ones():
    text, long = "How much is it?", "It has twenty hours of transcription a month. " * 4
    (alone,) = SentenceVectors().embed([text])
    beside = SentenceVectors().embed([long, text, long + text])[1]
    assert np.allclose(alone, beside, atol=1e-5)


def test_what_is_remembered_has_a_limit(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 2)
    vectors = SentenceVectors()
    vectors.embed(["one", "two", "three"])
    assert list(vectors._remembered) == ["two", "three"]


def test_nothing_has_no_rows(vectors):
    assert vectors.embed([]).shape == (0, module.WIDTH)


def test_a_very_long_text_is_read_up_to_its_limit(vectors):
    assert np.isfinite(vectors.embed(["word " * 5000])).all()


def test_a_second_start_computes_only_what_is_new(vectors, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    computed: list[str] = []
    embed = vectors._embed_one
    monkeypatch.setattr(vectors, "_embed_one", lambda text: computed.append(text) or embed(text))
    first = vectors.embed_facts(["one lamp", "two lamps"], tmp_path)
    second = vectors.embed_facts(["two lamps", "three lamps"], tmp_path)
    assert computed == ["one lamp", "two lamps", "three lamps"]
    assert np.array_equal(first[1], second[0])


def test_a_damaged_cache_is_made_anew(vectors, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vectors.embed_facts(["one lamp"], tmp_path)
    (file,) = (tmp_path / "personaplex" / "vectors").iterdir()
    file.write_bytes(b"PK nonsense")
    assert vectors.embed_facts(["one lamp"], tmp_path).shape == (1, module.WIDTH)
    assert "is damaged" in caplog.text
    assert len(read_vectors(file)) == 1


def test_a_disk_that_cannot_be_written_is_no_fault(vectors, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert vectors.embed_facts(["one lamp"], tmp_path).shape == (1, module.WIDTH)


def test_a_process_that_ends_while_vectors_are_made_waits_for_none_and_ends_well(tmp_path):
    """A thread that is inside the model when the interpreter goes would abort the process."""
    facts = "".join(
        f"## Section {n}\nThe plan number {n} costs {n} dollars.\n" for n in range(4000)
    )
    (tmp_path / "facts.md").write_text(facts)
    code = (  # it ends as soon as the first of them is there, and says how many were made
        "import atexit, sys, threading; from pathlib import Path\n"
        "from engine.lookup.knowledge import Knowledge; from engine.lookup.router import Router\n"
        "from engine.lookup.vectors import SentenceVectors\n"
        "made, begun, embed = [], threading.Event(), SentenceVectors._embed_one\n"
        "def count(self, text):\n"
        "    vector = embed(self, text); made.append(text); begun.set(); return vector\n"
        "SentenceVectors._embed_one = count; atexit.register(lambda: print(len(made)))\n"
        "Router(Knowledge.load(Path(sys.argv[1]))).prepare(); begun.wait()\n"
    )
    environ = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert 1 <= int(done.stdout) < 4000  # however long it had until its end
