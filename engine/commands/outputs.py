"""The files that a command writes: looked at before its work, written whole after it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.config import SAMPLE_RATE
from engine.errors import ConfigError

SOUND_ENDINGS = (".wav", ".flac", ".ogg")


def check_output(option: str, path: str | Path | None, endings: tuple[str, ...] = ()) -> None:
    """Find now what would else be found when the work is done. Raises ConfigError.

    A folder that is missing is made; what is there is kept.
    """
    if path is None:
        return
    path = Path(path)
    if endings and path.suffix.lower() not in endings:
        known = ", ".join(ending for ending in endings if ending)
        raise ConfigError(f"{option} {path} has another ending than {known}; use one of these")
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise cannot_write(option, path, error) from None
    if not there:
        path.unlink()


def write_output(option: str, path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file. Raises ConfigError, where since the look at it something has happened."""
    try:
        write(Path(path))
    except (OSError, RuntimeError) as error:  # soundfile's own fault is a RuntimeError
        raise cannot_write(option, path, error) from None


def write_sound(option: str, path: str | Path, pcm: np.ndarray) -> None:
    """Write samples [n] at 24 kHz."""
    import soundfile  # here: without files it is not needed

    write_output(option, path, lambda file: soundfile.write(file, pcm, SAMPLE_RATE))


def cannot_write(option: str, path: str | Path, error: Exception) -> ConfigError:
    why = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"{option} {path} cannot be written ({why}); give another")
