"""When the user speaks and when a turn is over, with a recogniser (listening.md 1.3).

Not the words themselves: it is told that a piece came, how loud the frame was, and the pause heads.
Without heads the energy rule stands in for them (floor.py). No clock but the frames it is given.
"""

from dataclasses import dataclass, field

import numpy as np

from engine.dialogue.floor import LOUD, Floor

HEAD = 2  # the pause of 2 s
DONE, TALKING = 0.6, 0.4  # above: the user is done; below: still talking
HITS = 2  # frames in a row that count
MIN_FRAMES = 12  # of a conversation before its first turn can end
QUIET_FRAMES = 5  # 400 ms
LAST_PIECE_FRAMES = 7  # since the last piece, for the fallback
PIECE_FRAMES = 4  # for which a piece shows that the user speaks
AUDIBLE = 10 ** (-45 / 20)


@dataclass
class TurnRule:
    """One conversation's rule; `hear` once a frame."""

    speaking: bool = False  # user_speaking
    sounding: bool = False  # the part of it that is heard, not written
    energy: Floor = field(default_factory=Floor)  # heard beside it, for where heads are missing
    spoke: bool = False  # a piece came since the last turn
    flushed: bool = False  # TURN_END was given for it
    frames: int = 0
    last_piece: int = -PIECE_FRAMES  # frame
    hits: int = 0  # frames in a row in which the user was done
    talking: int = 0  # and still talking
    quiet: int = 0  # and not loud

    def hear(self, peak: float, piece: bool, pause: np.ndarray | None) -> bool:
        """Take a frame: its peak, whether a piece was written, pause [4]. True: TURN_END."""
        self.frames += 1
        self.energy.hear(peak)
        if piece:
            self.spoke, self.flushed, self.hits = True, False, 0
            self.last_piece = self.frames
        done = None if pause is None else float(pause[min(HEAD, len(pause) - 1)])
        self.hits = self.hits + 1 if done is not None and done > DONE else 0
        self.talking = self.talking + 1 if done is not None and done < TALKING else 0
        self.quiet = self.quiet + 1 if peak < LOUD and not piece else 0
        self._update_speaking(peak, done)
        return self._is_over()

    def _update_speaking(self, peak: float, done: float | None) -> None:
        self.sounding = self.talking >= HITS and peak > AUDIBLE
        if done is None:
            self.sounding = self.energy.speaking
        self.speaking = self.sounding or self._since_piece < PIECE_FRAMES

    @property
    def _since_piece(self) -> int:
        """Frames since the last piece; 0 in its own."""
        return self.frames - self.last_piece

    def _is_over(self) -> bool:
        if not self.spoke or self.flushed or self.frames < MIN_FRAMES:
            return False
        silent = self.quiet >= QUIET_FRAMES and self._since_piece >= LAST_PIECE_FRAMES
        self.flushed = self.hits >= HITS or silent
        return self.flushed

    def finish(self) -> None:
        """The turn's words are out: what is written from now on is the next one."""
        self.spoke, self.hits = False, 0
