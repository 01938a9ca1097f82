"""Voices: their names, their archive, their loudness."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from engine.commands.voices import write_samples
from engine.errors import ModelError
from engine.runtime.embedded import EmbeddedBackend
from engine.weights.voices import Voices, loudness, normalise, read_audio, unpack
from engine.wire.audio import OpusCodec

TINY = Path(__file__).parents[1] / "golden" / "tiny"
LOUDNESS_TOLERANCE = 1e-4  # dB
REFERENCE_LUFS = -25.47350180336711


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return read_audio(TINY / "voices" / "TINYM0.wav")


def test_loudness_of_a_recorded_voice_is_the_references(speech):
    assert loudness(speech) == pytest.approx(REFERENCE_LUFS, abs=LOUDNESS_TOLERANCE)


def test_normalised_samples_are_the_references(speech):
    want = load_file(TINY / "expected" / "voice_wav_details.safetensors")
    got = normalise(speech)
    np.testing.assert_allclose(got[:2000], want["normalised_audio_first_2000"], atol=1e-6, rtol=0)
    assert np.abs(got).max() == pytest.approx(0.5041389465332031, abs=1e-6)


def test_louder_and_softer_speech_end_up_the_same(speech):
    np.testing.assert_allclose(normalise(speech * 0.3), normalise(speech), atol=1e-5)


def test_too_short_and_silent_voices_are_refused():
    with pytest.raises(ModelError, match=r"0\.10 s is too short; use 0\.4 s"):
        loudness(np.ones(2400, np.float32))
    with pytest.raises(ModelError, match="without any sound"):
        loudness(np.zeros(24_000, np.float32))


def test_other_rates_and_stereo_become_24_khz_mono(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.ones((44_100, 2)) * 0.1, 44_100)
    assert read_audio(path).shape == (24_000,)


def test_names_come_with_the_default_first_and_saved_voices_before_recorded(tmp_path):
    folder = tmp_path / "voices"
    folder.mkdir()
    for name in ("NATM0.pt", "NATF2.wav", "ABC.wav", "ABC.pt"):
        (folder / name).touch()
    voices = Voices(tmp_path)
    assert voices.names == ("NATF2", "ABC", "NATM0")
    assert voices.path("ABC").suffix == ".pt"


def test_the_archive_is_unpacked_once(tmp_path):
    shutil.copy(TINY / "voices.tgz", tmp_path)
    assert Voices(tmp_path).names == ("TINYF0", "TINYM0")
    (tmp_path / "voices.tgz").write_bytes(b"no longer looked at")
    assert Voices(tmp_path).names == ("TINYF0", "TINYM0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["voices", "voices.tgz"]


def test_an_archive_that_reaches_outside_is_refused(tmp_path):
    archive = tmp_path / "voices.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("../evil.pt")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"evil"))
    with pytest.raises(ModelError, match=r"cannot be unpacked.*outside"):
        unpack(archive, tmp_path / "here")
    assert not (tmp_path / "evil.pt").exists()


def test_a_damaged_archive_says_how_to_get_a_good_one(tmp_path):
    whole = (TINY / "voices.tgz").read_bytes()
    (tmp_path / "voices.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"cannot be unpacked .* `python -m engine download`"):
        Voices(tmp_path)


def test_a_folder_without_voices_says_so(tmp_path):
    with pytest.raises(ModelError, match="holds no voices"):
        Voices(tmp_path)


def test_a_file_that_is_no_sound_is_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no sound")
    with pytest.raises(ModelError, match="cannot be read as audio"):
        read_audio(tmp_path / "a.wav")


def test_every_voice_says_a_sample_without_silence_around_it(tmp_path):
    backend = EmbeddedBackend(1)
    backend.voices = ("NATF2", "VARM4")
    write_samples(backend, tmp_path / "embedded")
    for voice in backend.voices:
        codec = OpusCodec()
        pcm = np.concatenate(list(codec.decode((tmp_path / f"embedded/{voice}.opus").read_bytes())))
        assert 1 < len(pcm) / 24_000 < 8
        assert np.abs(pcm[:4800]).max() > 0.01
