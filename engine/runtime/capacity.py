"""How many conversations a machine holds: from free memory and a timed tick per bucket.

Arithmetic and a stopwatch; nothing here is guessed and nothing knows a card's name. Loads no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from engine.config import LATE_SECONDS

TICK_LIMIT_SECONDS = 0.070  # of 80 ms: the rest is for what lies around the backend
# A frame that comes when a tick has just begun waits for its end and is made in the next one.
IN_TIME_SECONDS = LATE_SECONDS / 2
GIB = 1 << 30
RESERVE_BYTES = int(0.9 * GIB)  # kept back: context, libraries, fragmentation
WORK_BYTES = int(0.45 * GIB)  # graphs, activations, staging
MOST_SLOTS = 16
WARM_UPS = 2  # rounds that are not counted: kernels are compiled in them, and buffers made
ROUNDS = 20  # that are; all of it should take an A10G less than 6 s


def slots_by_memory(free_bytes: int, slot_bytes: int, most: int = MOST_SLOTS) -> int:
    """Slots whose rings fit into free memory beside the reserve; 0: not even one."""
    return max(0, min(most, room(free_bytes) // slot_bytes))


def room(free_bytes: int) -> int:
    """What is left for conversations of free memory."""
    return free_bytes - RESERVE_BYTES - WORK_BYTES


@dataclass(frozen=True, slots=True)
class TickTable:
    """Measured seconds of a tick per bucket, with every slot's context full."""

    seconds: Mapping[int, float]  # slots of a bucket -> its tick
    piece: float = 0.0  # seconds of a piece of a prompt

    def tick(self, slots: int) -> float:
        """Of the cheapest bucket that covers so many slots; beyond the largest, never in time.

        A larger bucket has more to do: a smaller one that took longer was disturbed meanwhile.
        """
        covering = (taken for size, taken in self.seconds.items() if size >= slots)
        return min(covering, default=float("inf"))

    def upto(self, slots: int) -> "TickTable":
        """The same for a server with fewer slots."""
        seconds = {size: taken for size, taken in self.seconds.items() if size <= slots}
        return TickTable(seconds, self.piece)

    def slots_in_time(self) -> int:
        """The largest bucket in whose ticks no frame is late, and so in all below; 0: none."""
        good = [size for size in self.seconds if self.tick(size) <= IN_TIME_SECONDS]
        return max(good, default=0)


def time_ticks(
    buckets: tuple[int, ...], tick: Callable[[int], float], piece: Callable[[], float]
) -> TickTable:
    """Time a tick of each bucket and a piece of a prompt: what nine in ten keep is what counts.

    `tick(slots)` and `piece()` run one and return its seconds. They take turns, so that a hiccup
    of the machine falls on few of each and not on all of one bucket.
    """
    works = [*(partial(tick, size) for size in buckets), piece]
    rounds = [[work() for work in works] for _ in range(WARM_UPS + ROUNDS)][WARM_UPS:]
    *ticks, of_piece = np.percentile(rounds, 90, axis=0, method="inverted_cdf").tolist()
    return TickTable(dict(zip(buckets, ticks, strict=True)), of_piece)
