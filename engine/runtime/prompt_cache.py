"""States of prompts that were run before, so that a known voice and persona connect at once."""

from collections import OrderedDict

from engine.model.loop import Ready

MEGABYTE = 1_000_000
Key = tuple[str, tuple[int, ...]]  # hash of the voice's file, text ids of the persona


class PromptCache:
    """Least recently used out, within a budget in MB. Only the scheduler's thread uses it."""

    def __init__(self, budget_mb: float) -> None:
        self._budget = budget_mb * MEGABYTE
        self._kept: OrderedDict[Key, Ready] = OrderedDict()

    def get(self, key: Key) -> Ready | None:
        """The state of a prompt, if it is kept; it counts as used now."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Key, ready: Ready) -> None:
        """Keep a state; those unused for longest make room. Too large a one is not kept."""
        if ready.bytes > self._budget:
            return
        self._kept[key] = ready
        self._kept.move_to_end(key)
        while sum(kept.bytes for kept in self._kept.values()) > self._budget:
            self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)
