"""How a director hears its user: the transcript's words become events, and arm the hand-over."""

from engine.dialogue import events as ev
from engine.dialogue.transcript import Transcript
from engine.dialogue.trigger import Latch
from engine.runtime.backend import HeardRow, Transcription


class Ears:
    """One conversation's. Events go into `events`, which the director owns."""

    def __init__(
        self, transcription: Transcription | None, latch: Latch, events: list[ev.Event]
    ) -> None:
        self.floor = Transcript(transcription)
        self._latch = latch
        self._events = events

    def hear(self, peak: float, heard: HeardRow) -> None:
        """One frame of the user."""
        self._note(self.floor.hear(peak, heard))
        self._latch.tick(self.floor)

    def flush(self, heard: HeardRow) -> None:
        """A step of the recogniser that belongs to no frame."""
        self._note(self.floor.flush(heard))

    def user_turn(self, text: str) -> None:
        """A turn of the user has ended with these words."""
        self._latch.turned(text)
        self._events.append(ev.UserTurn(text))

    def _note(self, heard: list[ev.UserText]) -> None:
        for event in heard:
            self._events.append(event)
            if event.final:
                self.user_turn(event.text)
