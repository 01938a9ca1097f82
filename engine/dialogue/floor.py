"""Who has the floor: the energy rule (listening.md 1.3), frame by frame.

Not a recogniser: it hears loud and quiet, not words. One instance per conversation; no clock but
the frames it is given.
"""

from collections import deque
from dataclasses import dataclass, field

LOUD = 10 ** (-36 / 20)  # peak of a frame that counts as speech
START_LOUD, START_WINDOW = 3, 4  # speaking starts after 3 loud frames of 4
END_QUIET = 5  # and ends after 5 quiet ones
TURN_LOUD, TURN_QUIET = 4, 9  # a turn is >= 4 loud frames and then 9 quiet ones (0.72 s)


@dataclass
class Floor:
    """The user's side of the conversation as far as loudness tells."""

    speaking: bool = False  # user_speaking
    onset_frames: int = 0  # frames of speaking since it started; 0 while silent
    loud_frames: int = 0  # of the turn so far
    turn_ended: bool = False  # true in the one frame in which a turn ends
    quiet_frames: int = 0  # in a row
    loud: bool = False  # this frame
    window: deque[bool] = field(default_factory=lambda: deque(maxlen=START_WINDOW))

    def hear(self, peak: float) -> None:
        """Take the peak (0 to 1) of one user frame."""
        self.loud = loud = peak > LOUD
        self.window.append(loud)
        self.quiet_frames = 0 if loud else self.quiet_frames + 1
        self.loud_frames += loud
        self._update_speaking()
        self._update_turn()

    def _update_speaking(self) -> None:
        if self.speaking and self.quiet_frames >= END_QUIET:
            self.speaking = False
        elif not self.speaking and sum(self.window) >= START_LOUD:
            self.speaking = True
            self.onset_frames = 0
        self.onset_frames = self.onset_frames + 1 if self.speaking else 0

    def _update_turn(self) -> None:
        self.turn_ended = self.quiet_frames >= TURN_QUIET and self.loud_frames >= TURN_LOUD
        if self.quiet_frames >= TURN_QUIET:
            self.loud_frames = 0
