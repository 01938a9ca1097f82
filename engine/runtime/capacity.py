"""How many conversations a machine holds: from free memory and a timed tick per bucket.

Arithmetic and a stopwatch; nothing here is guessed and nothing knows a card's name. Loads no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

TICK_LIMIT_SECONDS = 0.070  # of 80 ms: the rest is for what lies around the backend
GIB = 1 << 30
RESERVE_BYTES = int(0.9 * GIB)  # kept back: context, libraries, fragmentation
WORK_BYTES = int(0.45 * GIB)  # graphs, activations, staging
MOST_SLOTS = 16


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
    piece: float = 0.0  # seconds of the longest piece of a prompt

    def tick(self, slots: int) -> float:
        """Of the smallest bucket that covers so many slots; beyond the largest, never in time."""
        covering = [size for size in self.seconds if size >= slots]
        return self.seconds[min(covering)] if covering else float("inf")

    def upto(self, slots: int) -> "TickTable":
        """The same for a server with fewer slots."""
        seconds = {size: taken for size, taken in self.seconds.items() if size <= slots}
        return TickTable(seconds, self.piece)

    def slots_in_time(self) -> int:
        """The largest bucket whose tick is within the limit; 0 if none is."""
        good = [size for size, taken in self.seconds.items() if taken <= TICK_LIMIT_SECONDS]
        return max(good, default=0)


def time_ticks(
    buckets: tuple[int, ...],
    tick: Callable[[int], float],
    piece: Callable[[], float],
    times: int = 10,
) -> TickTable:
    """Time each bucket: `tick(slots)` runs one and returns its seconds; the slow tenth counts.

    piece: the same for a piece of a prompt; the first is a rehearsal.
    """
    table = {}
    for size in buckets:
        taken = sorted(tick(size) for _ in range(times))
        table[size] = taken[min(times - 1, int(0.9 * times))]
    return TickTable(table, max([piece() for _ in range(3)][1:]))
