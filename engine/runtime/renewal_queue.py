"""Whose memory is renewed next, and when: all slots share one spare, and its work takes its time.

The fullest goes first, and begins once any slot would else lose the start of its prompt before its
own renewal is over. So a lone call talks on until its ring is almost full, and of slots that fill
up together the first is renewed early, the others after it. Arithmetic only; a column is a frame.
"""

from collections.abc import Iterable, Mapping

SHORT = 8  # columns that are caught up together with the swap


class RenewalQueue:
    """Rings of `capacity` columns of so many slots, which are made anew in pieces of `piece`.

    spare: columns that the memory holds in which they are made.
    """

    def __init__(self, capacity: int, piece: int, slots: int, spare: int) -> None:
        self._capacity, self._piece, self._whole, self._spare = capacity, piece, slots, spare
        self._lasts: dict[int, int] = {}  # slot -> frames that its renewal lasts

    @property
    def slots(self) -> Iterable[int]:
        return self._lasts

    def enter(self, slot: int, prompt: int, frames: int) -> int:
        """How many frames a slot keeps behind its prompt; 0: none, so it is not renewed.

        It is not where prompt and all `frames` leave no room for two renewals. Fewer are kept where
        the spare holds no more, with what is said meanwhile, or where slots that are all full like
        this one would wait for it too long.
        """
        columns = prompt + frames
        if not self._leaves_room(columns, 2):
            return 0
        while columns > prompt and not (
            columns + 2 * self.lasts(columns) <= self._spare  # at half the pace too
            and self._leaves_room(columns, self._whole + 1)
        ):
            columns -= 1
        if columns <= prompt:
            return 0
        self._lasts[slot] = self.lasts(columns)
        return columns - prompt

    def _leaves_room(self, columns: int, renewals: int) -> bool:
        """Whether so many renewals to so many columns are over before the ring is full again."""
        return columns + renewals * self.lasts(columns) < self._capacity

    def leave(self, slot: int) -> None:
        self._lasts.pop(slot, None)

    def lasts(self, columns: int) -> int:
        """Frames of a renewal to so many columns, at a piece a frame."""
        return -(-columns // (self._piece - 1)) + 1  # each frame adds a column; the last one swaps

    def next(self, pushed: Mapping[int, int]) -> int | None:
        """The slot to begin with now; None: there is time. pushed: slot -> columns that it ran."""
        order = sorted(pushed, key=lambda slot: -pushed[slot])
        if not order:
            return None
        over = self._lasts[order[0]]  # one to spare: prompts of newcomers go before renewals
        for slot in order:
            over += self._lasts[slot]
            if pushed[slot] + over >= self._capacity:
                return order[0]
        return None
