"""Looks through all that is logged while tests run, for words that nobody may find there.

What is looked for: every persona, text, question, token and key that a test gives to a server of
ours, and the words that tests plant on purpose.
"""

import io
import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import patch
from urllib.parse import quote, quote_plus

import pytest

from engine.config import DeepSeekConfig, ServerConfig
from engine.dialogue.session import Session
from engine.logs import LOG_FORMAT, guard_records

PLANTED = ("xylophone", "Zebulon", "open sesame", "sk-very-secret", "zanzibarine")
SHORTEST = 12  # letters of a text that is looked for as a whole; "hello" stands in many logs
PIECE = 24  # letters of a long text: a log often holds its beginning only


class LogSweep:
    """Keeps what the process logs, as production would write it."""

    def __init__(self) -> None:
        self.needles: set[str] = set()
        self._stream = io.StringIO()
        self._handler = logging.StreamHandler(self._stream)
        self._handler.setFormatter(logging.Formatter(LOG_FORMAT))
        for word in PLANTED:
            self.add(word, shortest=0)

    def start(self) -> None:
        guard_records()
        logging.getLogger().addHandler(self._handler)
        logging.getLogger().setLevel(logging.INFO)
        for owner, name, take in (
            (Session, "say", lambda _self, text, *_args, **_more: text),
            (Session, "ask", lambda _self, text: text),
            (Session, "__init__", lambda _self, _engine, config: config.text_prompt),
            (ServerConfig, "__post_init__", lambda config: config.token),
            (DeepSeekConfig, "__post_init__", lambda config: config.api_key),
        ):
            patch.object(owner, name, self._watch(getattr(owner, name), take)).start()

    def _watch(self, method: Callable[..., Any], take: Callable[..., str | None]) -> Callable:
        def watched(*args: Any, **more: Any) -> Any:
            self.add(take(*args, **more))
            return method(*args, **more)

        return watched

    def add(self, text: str | None, shortest: int = SHORTEST) -> None:
        """Look for this from now on, and for it as it stands in an address or in a repr."""
        if not isinstance(text, str) or len(text := text.strip()) < shortest:
            return
        for piece in {text[:PIECE], text[-PIECE:]}:
            if len(set(piece)) > 3:  # "aaaa" tells nothing
                self.needles |= {piece, quote(piece), quote_plus(piece), repr(piece)[1:-1]}

    def check(self) -> None:
        """Fail the test if what was logged since the last call holds a planted word."""
        with self._handler.lock:  # threads log meanwhile
            new = self._stream.getvalue()
            self._stream.seek(0)
            self._stream.truncate()
        if leaks := self.search(new):
            pytest.fail(f"{len(leaks)} lines of the log hold planted words: {leaks[0]}")

    def search(self, text: str) -> list[str]:
        """The lines of an output that hold a planted word."""
        there = [needle for needle in self.needles if needle in text]
        return [line for line in text.splitlines() if any(needle in line for needle in there)]


SWEEP = LogSweep()
