"""Faults that are not ours, each with the words and the close code of docs/api.md.

Our own faults are `assert`. For those a client gets `internal error: ` and an id of the log.
"""

import logging
import uuid

logger = logging.getLogger(__name__)


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
    """The conversation ends: the client gets the reason as 0x05, then the close code."""


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


class InternalError(EndError):
    close_code, prefix = 1011, "internal error: "


def logged_fault(what: str) -> InternalError:
    """Log the current exception under an id; the error that tells a client that id."""
    error_id = uuid.uuid4().hex[:8]
    logger.exception("%s, error %s", what, error_id)
    return InternalError(f"{error_id}; the server's log has the details")
