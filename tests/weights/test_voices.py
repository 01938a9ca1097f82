"""Voices: their names, their archive, their loudness."""

import gzip
import io
import lzma
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from engine.commands.voices import write_samples
from engine.config import VOICE_NAMES
from engine.errors import BadParameterError, ConfigError, ModelError
from engine.runtime.embedded import EmbeddedBackend
from engine.weights.voices import (
    Voices,
    check_default,
    choose_voice,
    find_voice,
    loudness,
    normalise,
    open_voices,
    read_audio,
    unpack,
)
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


def record(path: Path, seconds: float = 1.0, level: float = 0.1) -> None:
    """A noise as a recorded voice."""
    noise = np.random.default_rng(1).normal(0, 1, int(24_000 * seconds)) * level
    with path.open("wb") as file:  # soundfile writes by the ending, in its own case
        soundfile.write(file, noise, 24_000, format="WAV")


def test_other_rates_and_stereo_become_24_khz_mono(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.ones((44_100, 2)) * 0.1, 44_100)
    assert read_audio(path).shape == (24_000,)


def test_names_come_with_the_default_first_and_saved_voices_before_recorded(tmp_path):
    folder = tmp_path / "voices"
    folder.mkdir()
    for name in ("NATM0.pt", "ABC.pt"):
        (folder / name).write_bytes(b"PK")
    for name in ("NATF2.wav", "ABC.wav"):
        record(folder / name)
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


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_an_archive_with_anything_but_plain_files_is_refused(tmp_path, kind):
    archive = tmp_path / "voices.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("voices/evil.pt")
        entry.type, entry.linkname = kind, "../../voices.tgz"
        tar.addfile(entry)
    with pytest.raises(ModelError, match=r"cannot be unpacked.*'voices/evil.pt' is no plain file"):
        unpack(archive, tmp_path / "here")
    assert not (tmp_path / "here" / "voices" / "evil.pt").is_symlink()


def archive(change=bytes, name="voices/A.pt", kind=tarfile.REGTYPE, size=0, **pax) -> bytes:
    """The bytes of an archive with one entry, after a change of them all."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size, entry.pax_headers = kind, size, pax
        tar.addfile(entry, io.BytesIO(bytes(size)))
    return change(made.getvalue())


def flip(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 0x55
    return bytes(changed)


SPARSE = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40)}  # a disk, in a few bytes
BAD_ARCHIVES = {
    "empty": b"",
    "of nothing": bytes(10_240),
    "a folder alone": archive(name="voices/", kind=tarfile.DIRTYPE),
    "a file for the folder": archive(name="voices"),
    "files beside the folder": archive(name="A.pt"),
    "a name that ends early": archive(path="voices/A\0.pt"),
    "numbers that are none": archive(**{**SPARSE, "GNU.sparse.map": "x,y"}),
    "more than a disk": archive(**SPARSE),
    **{f"gz, byte {n}": flip(archive(gzip.compress, size=4), n) for n in (0, 12, 30, -6, -2)},
    **{f"xz, byte {n}": flip(archive(lzma.compress, size=4), n) for n in (0, 14, 40, -20, -4)},
}


@pytest.mark.parametrize("data", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES.keys())
def test_whatever_is_wrong_with_an_archive_is_one_error_that_says_what_to_do(tmp_path, data):
    (tmp_path / "voices.tgz").write_bytes(data)
    with pytest.raises(ModelError, match=r"cannot be unpacked .* `python -m engine download`"):
        Voices(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["voices.tgz"]


def test_an_archive_that_unpacks_to_more_than_voices_take_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.weights.voices.MOST_UNPACKED", 3)
    (tmp_path / "voices.tgz").write_bytes(archive(gzip.compress, size=4))
    with pytest.raises(ModelError, match="more than"):
        Voices(tmp_path)


@pytest.mark.parametrize("name", ["/evil.pt", "voices/../../evil.pt"])
def test_an_archive_with_a_path_of_its_own_is_refused(tmp_path, name):
    archive = tmp_path / "voices.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ModelError, match=r"cannot be unpacked.*would lie outside of it"):
        unpack(archive, tmp_path / "here")


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


# -- files that strangers put there ----------------------------------------------------------------


def test_files_that_cannot_be_voices_are_left_out_and_the_log_says_why(tmp_path, caplog):
    folder = tmp_path / "voices"
    folder.mkdir()
    record(folder / "loud.WAV")
    record(folder / "._loud.wav")
    record(folder / "short.wav", seconds=0.08)
    record(folder / "silent.wav", level=0.0)
    (folder / "._saved.pt").write_bytes(b"AppleDouble")
    (folder / "empty.pt").touch()
    (folder / "none.wav").write_bytes(b"no sound")
    (folder / "notes.txt").write_bytes(b"no voice")
    assert Voices(tmp_path).names == ("loud",)
    told = caplog.text
    assert "short.wav: a voice of 0.08 s is too short; use 0.4 s or more" in told
    assert "silent.wav: a voice without any sound; record speech" in told
    assert "empty.pt is empty" in told
    assert "none.wav cannot be read as audio (Format not recognised)" in told
    assert "._" not in told


def test_a_good_file_counts_where_another_of_its_name_is_none(tmp_path):
    folder = tmp_path / "voices"
    folder.mkdir()
    record(folder / "a.wav", level=0.0)
    (folder / "a.pt").write_bytes(b"PK")
    assert Voices(tmp_path).path("a").suffix == ".pt"


def test_all_channels_are_heard(tmp_path):
    path = tmp_path / "right.wav"
    tone = np.sin(np.arange(24_000) / 9)
    soundfile.write(path, np.stack([np.zeros(24_000), tone], 1), 24_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path), tone / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [24_000, 48_000])
def test_samples_that_are_no_numbers_are_silence_and_a_warning(tmp_path, caplog, rate):
    path, samples = tmp_path / "a.wav", np.full(rate, 0.25, np.float32)
    samples[1000:1300] = np.nan
    samples[5000] = np.inf
    soundfile.write(path, samples, rate, subtype="FLOAT")
    got = read_audio(path)
    assert np.isfinite(got).all()
    quiet = slice(1000 * 24_000 // rate + 40, 1300 * 24_000 // rate - 40)
    assert np.abs(got[quiet]).max() < 0.01
    assert got[-2000:-1000] == pytest.approx(0.25, abs=1e-3)
    assert "301 samples are not finite and count as silence" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("NATM1", "NATM1"),
        ("NATM1.pt", "NATM1"),
        ("natm1", "NATM1"),
        ("NatM1.WAV", "NATM1"),
        (" NATM1 ", "NATM1"),
        ("NATM9", None),
        ("", None),
        ("NATM1.mp3", None),
        ("../NATM1", None),
    ],
)
def test_a_voice_is_found_with_or_without_its_ending_in_any_case(wanted, found):
    assert find_voice(wanted, VOICE_NAMES) == found


def test_of_two_names_that_differ_by_case_the_exact_one_is_meant():
    assert find_voice("ann", ("Ann", "ann")) == "ann"
    assert find_voice("Ann.pt", ("Ann", "ann")) == "Ann"


def test_a_client_hears_which_voices_there_are():
    assert choose_voice("natm1.PT", "NATF2", VOICE_NAMES) == "NATM1"
    with pytest.raises(BadParameterError, match=r"voice_prompt is 'Bob'; use one of NATF2, NATF0"):
        choose_voice("Bob", "NATF2", VOICE_NAMES)


def test_a_servers_own_voice_is_resolved_or_refused():
    assert check_default("natm1.pt", VOICE_NAMES) == "NATM1"
    assert check_default("NATF2", ("A", "B")) == "A"  # nobody chose it
    with pytest.raises(ConfigError, match=r"--voice 'NATM9' not found; use one of NATF2, "):
        check_default("NATM9", VOICE_NAMES)


def test_the_voices_of_a_repository_are_all_that_is_fetched(monkeypatch, tmp_path):
    fetched = []

    def download(_repository, name, **_options):
        fetched.append(name)
        return str(shutil.copy(TINY / name, tmp_path))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert open_voices("some/where", None, lambda *_: None).names == ("TINYF0", "TINYM0")
    assert fetched == ["voices.tgz"]


def test_every_voice_says_a_sample_without_silence_around_it(tmp_path):
    backend = EmbeddedBackend(1)
    backend.voices = ("NATF2", "VARM4")
    write_samples(backend, tmp_path / "embedded")
    for voice in backend.voices:
        codec = OpusCodec()
        pcm = np.concatenate(list(codec.decode((tmp_path / f"embedded/{voice}.opus").read_bytes())))
        assert 1 < len(pcm) / 24_000 < 8
        assert np.abs(pcm[:4800]).max() > 0.01
