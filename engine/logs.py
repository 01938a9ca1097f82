"""What may stand in a log: never a user's word, a token or a body, whoever writes the line.

Every record of the process is made by `make_record`. Our own lines keep their text, because our
code puts no such words into it. A library's line loses whatever may be somebody's: quotations,
queries, reprs, all but its first line. An exception is its type and its place in both, because its
message often holds the value that was wrong. `RepeatLimit` bounds what one line of code can write.
"""

import asyncio
import logging
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from engine.errors import describe_fault, shorten_path

logger = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OURS = ("engine", "demo", "modal_app", "tests")
LIBRARY_CHARS, OWN_CHARS = 300, 4000  # the longest line
LINES_A_MINUTE = 60  # that one line of code may write
MINUTE_SECONDS = 60.0
QUERY = re.compile(r"[?#]\S*")  # of an address
SECRET = re.compile(r"((?:token|key|authorization|cookie)\"?\s*[=:])\s*(?:bearer\s+)?\S+", re.I)
QUOTATION = re.compile(r"b?\"[^\"]*\"?|\bb?'[^']*'?|(?<!\w)'[^']*'?|<[^>]*>?")
WARNING_TEXT = re.compile(r"(:\d+: \w+):.*", re.DOTALL)  # of the warnings module, after its place
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def set_up_logs(log_format: str = LOG_FORMAT) -> None:
    """One handler for the whole process; the main thread's first act. Again: nothing new."""
    handler = logging.StreamHandler()
    handler.addFilter(RepeatLimit())
    logging.basicConfig(level=logging.INFO, format=log_format, handlers=[handler])
    guard_records()


def guard_records() -> None:
    """From now on records are made here, also for handlers that libraries bring themselves."""
    logging.setLogRecordFactory(make_record)
    logging.raiseExceptions = False  # a line that cannot be written would be printed with its words
    logging.captureWarnings(True)


def guard_faults(loop: asyncio.AbstractEventLoop) -> None:
    """What nobody catches is logged by type and place too: in this loop, and in all threads."""
    loop.set_exception_handler(_note_loop_fault)
    if sys.excepthook is sys.__excepthook__:  # else a test runner watches them
        sys.excepthook = lambda _kind, error, _trace: _note_fault("uncaught", error)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda args: _note_fault("a thread ended", args.exc_value)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = lambda args: _note_fault("could not be raised", args.exc_value)


def _note_loop_fault(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    what = str(context.get("message", "")).partition("\n")[0]  # fixed words of asyncio's
    _note_fault(QUOTATION.sub("…", what), context.get("exception"))


def _note_fault(what: str, error: BaseException | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        return
    logger.error("%s: %s", what, describe_fault(error) if error else "no exception")


def make_record(
    name: str, level: int, path: str, line: int, msg: object, args: Any, exc_info: Any,
    func: str | None = None, sinfo: str | None = None, **_more: Any,
) -> logging.LogRecord:  # fmt: skip
    """A record whose message is safe already, with its exception told in it."""
    record = logging.LogRecord(name, level, path, line, msg, args, None, func, None)
    try:
        text = record.getMessage()
    except Exception:  # logging's own answer would be to print all arguments
        text = "a line that does not fit its arguments"
    if name == "py.warnings":
        text = WARNING_TEXT.sub(r"\1", text)
    if name.partition(".")[0] in OURS:
        text = SECRET.sub(r"\1…", text)[:OWN_CHARS]
    else:
        text = text.partition("\n")[0][: 4 * LIBRARY_CHARS]
        for pattern, instead in ((QUOTATION, "…"), (SECRET, r"\1…"), (QUERY, "?…")):
            text = pattern.sub(instead, text)
        text = text[:LIBRARY_CHARS]
    if isinstance(exc_info, tuple) and exc_info[1] is not None:
        text = f"{text}: {describe_fault(exc_info[1])}"
    record.msg = CONTROL.sub("·", text)
    record.args = None
    return record


class RepeatLimit(logging.Filter):
    """Lets 60 lines a minute pass from one line of code, and says how many more there were."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], threading.Timer] = threading.Timer,
    ) -> None:
        super().__init__()
        self._clock, self._later = clock, later
        self._lock = threading.Lock()
        self._lines: Counter[tuple[str, int]] = Counter()  # in this minute, by (file, line)
        self._since = clock()
        self._timer: threading.Timer | None = None  # it tells of what was left out

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == __name__ and record.levelno == logging.WARNING:
            return True  # our own count
        with self._lock:
            left_out = self._begin_minute() if self._is_over() else {}
            place = (record.pathname, record.lineno)
            self._lines[place] += 1
            passes = self._lines[place] <= LINES_A_MINUTE
            if not passes and self._timer is None:
                self._timer = self._later(MINUTE_SECONDS, self._end_minute)
                self._timer.daemon = True
                self._timer.start()
        self._tell(left_out)
        return passes

    def _is_over(self) -> bool:
        return self._clock() - self._since >= MINUTE_SECONDS

    def _begin_minute(self) -> dict[tuple[str, int], int]:
        """How many lines were left out in the one that is over, by place."""
        left_out = {place: n - LINES_A_MINUTE for place, n in self._lines.items()}
        self._lines.clear()
        self._since = self._clock()
        return {place: n for place, n in left_out.items() if n > 0}

    def _end_minute(self) -> None:
        with self._lock:
            left_out = self._begin_minute()
            self._timer = None
        self._tell(left_out)

    def _tell(self, left_out: dict[tuple[str, int], int]) -> None:
        for (path, line), count in left_out.items():
            logger.warning("%d more lines like those of %s:%d", count, shorten_path(path), line)
