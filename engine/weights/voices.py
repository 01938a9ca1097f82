"""Voices of a model: names, the archive they come in, and the loudness of recorded ones.

Knows no torch: saved voices (`.pt`) are only named here; loading.py reads them.
"""

import atexit
import logging
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from engine.config import SAMPLE_RATE, VOICE_NAMES
from engine.errors import BadParameterError, ConfigError, EngineError, ModelError
from engine.weights.hub import DEFAULT_REPOSITORY, VOICES_FILE, Progress, fetch, find_folder

logger = logging.getLogger(__name__)

TARGET_LUFS = -24.0
BLOCK_SECONDS, OVERLAP = 0.4, 0.75  # of loudness blocks
RINGING_SAMPLES = 1 << 14  # after which a filter's response is below rounding
SILENCE_LUFS, RELATIVE_LU = -70.0, -10.0  # the two gates
MOST_UNPACKED = 1 << 30  # bytes of an archive's voices
UNSIZED_BYTES = 200  # a header takes less
SUFFIXES = (".pt", ".wav")  # the first found of a name is used


def find_voice(wanted: str, names: tuple[str, ...]) -> str | None:
    """The voice that is meant, with or without .pt or .wav, whatever the case."""
    stem = wanted.strip()
    for suffix in SUFFIXES:
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
    if stem in names:
        return stem
    return next((name for name in names if name.lower() == stem.lower()), None)


def choose_voice(wanted: str | None, default: str, names: tuple[str, ...]) -> str:
    """The name of a client's voice, or of the default. Raises BadParameterError."""
    if wanted is None:
        return find_voice(default, names) or names[0]
    name = find_voice(wanted, names)
    if name is None:
        known = ", ".join(names)
        raise BadParameterError(
            f"voice_prompt is {wanted[:40]!r}; use one of {known}", "voice_prompt: unknown"
        )
    return name


def check_default(wanted: str, names: tuple[str, ...]) -> str:
    """The voice that a server's setting means. Raises ConfigError.

    A model without our own default has its first voice; every other name was somebody's choice.
    """
    name = find_voice(wanted, names)
    if name is None and wanted != VOICE_NAMES[0]:
        raise ConfigError(f"--voice {wanted!r} not found; use one of {', '.join(names)}")
    return name or names[0]


class Voices:
    """The voices of one model folder: `voices/`, or what `voices.tgz` beside it unpacks to.

    A file that cannot be a voice is left out, and the log says why.
    """

    def __init__(self, model_folder: Path) -> None:
        self.folder = find_or_unpack(model_folder)
        files = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        files = [p for p in files if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
        files.sort(key=lambda path: -SUFFIXES.index(path.suffix.lower()))
        found = {}
        for path in files:
            if fault := find_fault(path):
                logger.warning("a voice is left out: %s", fault)
            else:
                found[path.stem] = path
        if not found:
            raise ModelError(
                f"{self.folder} holds no voices (*.pt, *.wav) that can be used; "
                "run `python -m engine download`, or put one there"
            )
        self.names = tuple(sorted(found, key=lambda name: (name != VOICE_NAMES[0], name)))
        self._paths = found

    def path(self, name: str) -> Path:
        """The file of a voice. Raises ModelError naming those there are."""
        if name not in self._paths:
            some = ", ".join(self.names[:4])
            raise ModelError(f"voice {name!r} not found; try {some} (python -m engine voices)")
        return self._paths[name]

    def audio(self, name: str) -> np.ndarray:
        """A recorded voice as the model hears it: float32 [T], 24 kHz, -24 LUFS."""
        path = self.path(name)
        try:
            return normalise(read_audio(path))
        except ModelError as error:
            raise name_file(path, error) from None


def find_fault(path: Path) -> str:
    """Why a file can be no voice; "": nothing speaks against it."""
    try:
        if path.suffix.lower() == ".wav":
            loudness(read_audio(path), SAMPLE_RATE)
        elif path.stat().st_size == 0:
            return f"{path} is empty"
    except (ModelError, OSError) as error:
        return str(name_file(path, error))
    return ""


def name_file(path: Path, error: Exception) -> ModelError:
    """The fault with its file's name in front, where it is not there yet."""
    text = str(error)
    return ModelError(text if str(path) in text else f"{path}: {text}")


def open_voices(source: str, revision: str | None, progress: Progress) -> Voices:
    """The voices of a folder or a repository; nothing else is fetched. Raises ModelError."""
    folder = find_folder(source, "model", DEFAULT_REPOSITORY)
    return Voices(folder or fetch(source, revision, progress, (VOICES_FILE,)))


def find_or_unpack(model_folder: Path) -> Path:
    """The folder of voice files, unpacked from the archive where that has not happened yet."""
    folder, archive = model_folder / "voices", model_folder / VOICES_FILE
    if any(folder.glob("*")) or not archive.exists():
        return folder
    if not os.access(model_folder, os.W_OK):
        scratch = Path(tempfile.mkdtemp(prefix="voices-"))
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)  # whole or not
        return unpack(archive, scratch)
    with tempfile.TemporaryDirectory(prefix=".voices-", dir=model_folder) as scratch:
        unpacked = unpack(archive, Path(scratch))
        if not folder.exists():  # another process may have been faster
            unpacked.rename(folder)
    return folder


def unpack(archive: Path, folder: Path) -> Path:
    """Extract an archive's plain files: nothing outside the folder, no links, no devices.

    Returns where its voices are then. Raises ModelError, whatever is wrong with it.
    Not `extractall`: Python's filters for it came with 3.11.4, and Debian 12 has 3.11.2.
    """
    voices, left = folder / "voices", MOST_UNPACKED
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                place = (folder / member.name).resolve()
                if not place.is_relative_to(folder.resolve()):
                    raise tarfile.TarError(f"{member.name!r} would lie outside of it")
                if member.isdir():
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or member.issparse():  # sparse: a few bytes that fill a disk
                    raise tarfile.TarError(f"{member.name!r} is no plain file")
                left -= member.size
                if left < 0:
                    raise tarfile.TarError(f"it holds more than {MOST_UNPACKED >> 30} GiB")
                place.parent.mkdir(parents=True, exist_ok=True)
                with content, place.open("wb") as file:
                    shutil.copyfileobj(content, file)
            while left > 0 and (rest := tar.fileobj.read(1 << 20)):
                left -= len(rest)  # to the end, where the sum of all that was read stands
        if not voices.is_dir():
            raise tarfile.TarError("it holds no folder `voices`")
        return voices
    except Exception as error:  # a damaged one raises what zlib, lzma or int() raise, too
        why = str(error).partition("\n")[0].rstrip(":")  # of several lines, the first says it
        raise ModelError(
            f"{archive} cannot be unpacked ({why}); "
            "run `python -m engine download` to fetch it again"
        ) from error


def read_audio(path: str | Path, fault: type[EngineError] = ModelError) -> np.ndarray:
    """A sound file, its channels mixed, at 24 kHz, float32 [T]. Raises `fault`.

    Samples that are no numbers count as silence: one of them would reach far, through filters.
    """
    import soundfile  # here: a client that reads no file needs neither
    import soxr

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        why = str(error).removeprefix(f"Error opening {str(path)!r}: ").rstrip(". ")
        raise fault(
            f"{path} cannot be read as audio ({why}); use a wav, flac or ogg file"
        ) from None
    if not len(samples):
        unsized = Path(path).stat().st_size > UNSIZED_BYTES
        why = (
            "says that it holds none, as one that was written into a pipe"
            if unsized
            else "is empty"
        )
        raise fault(f"{path} holds no samples (it {why}); use a recording in a file of its own")
    mono = samples.mean(axis=1)
    broken = ~np.isfinite(mono)
    if count := int(broken.sum()):
        logger.warning("%s: %d samples are not finite and count as silence", path, count)
        mono[broken] = 0
    return mono if rate == SAMPLE_RATE else soxr.resample(mono, rate, SAMPLE_RATE)


def normalise(pcm: np.ndarray, rate: int = SAMPLE_RATE) -> np.ndarray:
    """pcm [T] float32 scaled to -24 LUFS; one gain, no limiter."""
    gain = 10 ** ((TARGET_LUFS - loudness(pcm, rate)) / 20)
    return (pcm * gain).astype(np.float32)


def loudness(pcm: np.ndarray, rate: int = SAMPLE_RATE) -> float:
    """Gated loudness of pcm [T] in LUFS: BS.1770 as the reference uses it. Raises ModelError."""
    length = len(pcm) / rate
    if length < BLOCK_SECONDS:
        raise ModelError(f"a voice of {length:.2f} s is too short; use {BLOCK_SECONDS} s or more")
    weighted = biquad(pcm.astype(np.float64), *high_shelf(rate))
    weighted = biquad(weighted, *high_pass(rate))
    step = 1 - OVERLAP
    blocks = round((length - BLOCK_SECONDS) / (BLOCK_SECONDS * step)) + 1
    starts = [int(BLOCK_SECONDS * j * step * rate) for j in range(blocks)]
    ends = [int(BLOCK_SECONDS * (j * step + 1) * rate) for j in range(blocks)]
    sums = [np.square(weighted[a:b]).sum() for a, b in zip(starts, ends, strict=True)]
    power = np.array(sums) / (BLOCK_SECONDS * rate)  # mean square of every block
    level = -0.691 + 10 * np.log10(np.maximum(power, np.finfo(float).tiny))
    loud = level >= SILENCE_LUFS
    if not loud.any():
        raise ModelError("a voice without any sound; record speech")
    gate = -0.691 + 10 * np.log10(power[loud].mean()) + RELATIVE_LU
    kept = power[(level > SILENCE_LUFS) & (level > gate)]
    return float(-0.691 + 10 * np.log10(kept.mean()))


def high_shelf(rate: int, gain_db: float = 4.0, corner_hz: float = 1500.0):
    """Biquad (b, a) that lifts what the head lifts; Q = 1 / sqrt 2."""
    amp, w = 10 ** (gain_db / 40), 2 * np.pi * corner_hz / rate
    cos, alpha = np.cos(w), np.sin(w) / np.sqrt(2)
    plus, minus, root = amp + 1, amp - 1, 2 * np.sqrt(amp) * alpha
    b = amp * np.array(
        [plus + minus * cos + root, -2 * (minus + plus * cos), plus + minus * cos - root]
    )
    a = np.array([plus - minus * cos + root, 2 * (minus - plus * cos), plus - minus * cos - root])
    return b / a[0], a / a[0]


def high_pass(rate: int, corner_hz: float = 38.0, q: float = 0.5):
    """Biquad (b, a) that drops what no ear hears."""
    w = 2 * np.pi * corner_hz / rate
    cos, alpha = np.cos(w), np.sin(w) / (2 * q)
    b = np.array([(1 + cos) / 2, -(1 + cos), (1 + cos) / 2])
    a = np.array([1 + alpha, -2 * cos, 1 - alpha])
    return b / a[0], a / a[0]


def biquad(x: np.ndarray, b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Second-order filter over x [T] float64, from rest.

    By its frequency response: what rings on past the end has died away before it wraps around to
    the start. A loop over the samples would hold the interpreter's lock for a quarter second.
    """
    n = 1 << (len(x) + RINGING_SAMPLES - 1).bit_length()
    z = np.exp(-2j * np.pi * np.arange(n // 2 + 1) / n)
    response = (b[0] + z * (b[1] + z * b[2])) / (a[0] + z * (a[1] + z * a[2]))
    return np.fft.irfft(np.fft.rfft(x, n) * response, n)[: len(x)]
