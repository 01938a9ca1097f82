"""Faults that are not ours, each with the words and the close code of docs/api.md.

Our own faults are `assert`. For those a client gets `internal error: ` and an id of the log.
"""

import logging
import sys
import traceback
import uuid
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)

ROOT = str(Path(__file__).parents[1])
MOST_PLACES = 12  # of one exception
DEEPEST_CAUSE = 5  # of chained and grouped exceptions


class EngineError(Exception):
    """A fault that the other side can mend. Its text goes out as one 0x05 sentence."""

    close_code = 1011
    prefix = ""

    def __str__(self) -> str:
        return self.prefix + super().__str__()


class ConfigError(EngineError):
    """A setting or option out of range; the text names it, its value and the range."""


class ModelError(EngineError):
    """A checkpoint, voice or download that cannot be used; the text names the file and the fix."""


class ProtocolError(EngineError):
    """A message that the protocol does not know. The conversation goes on."""

    close_code = 1003


class RefusedError(EngineError):
    """A request inside a conversation that is refused. The conversation goes on."""


class EndError(EngineError):
    """The conversation ends: the client gets the reason as 0x05, then the close code.

    told: what a log may say of it: names and kinds, never a value of the client's.
    """

    def __init__(self, text: str = "", told: str = "") -> None:
        super().__init__(text)
        self.told = told


class BusyError(EndError):
    close_code, prefix = 1013, "busy: "


class UnauthorizedError(EndError):
    close_code, prefix = 1008, "unauthorized: "


class BadParameterError(EndError):
    close_code, prefix = 1008, "bad parameter: "


class BadAudioError(EndError):
    close_code, prefix = 1003, "bad audio: "


class TooFastError(EndError):
    close_code, prefix = 1008, "too fast: "


class IdleError(EndError):
    close_code, prefix = 1000, "idle: "


class TimeLimitError(EndError):
    close_code, prefix = 1000, "time limit: "


class ClosingError(EndError):
    close_code, prefix = 1001, "closing: "


class GoneError(EndError):
    close_code, prefix = 1008, "gone: "


class InternalError(EndError):
    close_code, prefix = 1011, "internal error: "


def logged_fault(what: str) -> InternalError:
    """Log the current exception under an id; the error that tells a client that id.

    Its message stays out of the log: it may hold what the user wrote.
    """
    error_id = uuid.uuid4().hex[:8]
    error = sys.exception()
    assert error, "no exception is being handled"
    logger.error("%s, error %s: %s", what, error_id, describe_fault(error))
    return InternalError(f"{error_id}; the server's log has the details")


def describe_fault(error: BaseException, depth: int = 0) -> str:
    """An exception's type and where it came from: our own files, and the line that raised it.

    Causes and the parts of a group follow. No message, no value.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    last = frames[-1:]
    places = [
        f"{shorten_path(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"
        for frame, line in [pair for pair in frames[:-1] if _is_ours(pair[0])] + last
    ]
    told = f"{type(error).__name__} at {' > '.join(places[-MOST_PLACES:]) or 'an unknown place'}"
    if depth < DEEPEST_CAUSE:
        parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        told += "".join(f" [{describe_fault(part, depth + 1)}]" for part in parts[:DEEPEST_CAUSE])
        if cause := error.__cause__ or (not error.__suppress_context__ and error.__context__):
            told += f"; after {describe_fault(cause, depth + 1)}"
    return told


def describe_end(error: BaseException) -> str:
    """Why a process ends: our own words for operators, of everything else type and place.

    Any other message may hold what a user wrote.
    """
    return str(error) if isinstance(error, ConfigError | ModelError) else describe_fault(error)


def _is_ours(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    return path.startswith(f"{ROOT}/") and "site-packages" not in path


def shorten_path(path: str) -> str:
    """A file as a log names it: from our root on, or from the package on."""
    return path.rpartition("site-packages/")[2].removeprefix(f"{ROOT}/")
