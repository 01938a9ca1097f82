"""Asking each seat's director: what it makes of its inbox, which text is fed, what a flush brings.

One conversation's fault ends that conversation, never its neighbours'. Scheduler's thread only.
"""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from engine.config import PAD
from engine.errors import EngineError, InternalError
from engine.runtime.backend import Backend, Heard
from engine.runtime.seat import Notice, Seat

logger = logging.getLogger(__name__)


def logged_fault(what: str) -> InternalError:
    """Log the exception at hand under an id; the error that tells a client that id."""
    error_id = uuid.uuid4().hex[:8]
    logger.exception("%s, error %s", what, error_id)
    return InternalError(f"{error_id}; the server's log has the details")


@dataclass(slots=True)
class Batch:
    """Who takes part in a tick."""

    seats: list[Seat]
    pcm: np.ndarray  # [S, 1920] float32
    active: np.ndarray  # [S] bool
    peaks: dict[Seat, float] = field(default_factory=dict)  # of the user frames
    due: dict[Seat, float] = field(default_factory=dict)  # when the user frames were complete


class Directing:
    """All seats' directors, each behind its own fence."""

    def __init__(self, backend: Backend, give_up: Callable[[Seat, EngineError], None]) -> None:
        self._backend, self._give_up = backend, give_up

    def read_inboxes(self, seats: list[Seat]) -> None:
        for seat in seats:
            self._tell(seat, seat.obey)

    def flush(self, seats: list[Seat]) -> bool:
        """One step of the recogniser alone for all whose turn has just ended; whether there was."""
        if not (self._backend.transcribes and self._backend.transcribing):
            return False
        flushing = {seat.slot: seat for seat in seats if seat.flushing and not seat.left}
        if flushing:
            for slot, heard in self._backend.flush(list(flushing)).items():
                self._tell(flushing[slot], partial(flushing[slot].director.flush, heard))
        return bool(flushing)

    def choose(self, batch: Batch, heard: Heard) -> tuple[np.ndarray, np.ndarray]:
        """Which token is fed to each slot: text [S] int64, hush [S] bool."""
        text = np.full(self._backend.slots, PAD, np.int64)
        hush = np.zeros(self._backend.slots, bool)
        for seat in batch.seats:
            slot = seat.slot
            try:
                text[slot], hush[slot] = seat.director.step(
                    int(heard.text[slot]), heard.row(slot), batch.peaks[seat], seat.peak_out
                )
                seat.chosen = seat.director.events()
            except Exception:  # one conversation's fault must not reach its neighbours
                self._give_up(seat, logged_fault("director failed"))
        return text, hush

    def _tell(self, seat: Seat, report: Callable[[], list[Any]]) -> None:
        """Deliver what a director reports between two frames."""
        try:
            events = report()
        except Exception:  # one conversation's fault must not reach its neighbours
            self._give_up(seat, logged_fault("director failed"))
            return
        if events:
            seat.deliver([Notice(events)])
