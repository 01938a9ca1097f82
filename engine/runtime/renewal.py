"""Conversations longer than the context: before a ring is full, it is made anew between ticks.

A spare ring is filled with the prompt and the conversation's last frames, in pieces; then it takes
the slot's place. What the codec and the sampler remember is untouched; only what the temporal
transformer reads is made anew. After the swap a slot equals a fresh one that was given the same
prompt and the same frames. Only the scheduler's thread calls it; each `next` is one piece.
"""

import logging
import math
from collections import deque
from collections.abc import Generator, Mapping

import numpy as np
import torch
from torch import Tensor

from engine.config import PAD
from engine.model.gpu.graphs import Prefill, Ticks
from engine.model.loop import Loop
from engine.model.prompt import Prompt, Voice, build_prompt

logger = logging.getLogger(__name__)

SWAP_COLUMNS = 8  # columns that are caught up together with the swap
PACES = 5  # renewals whose median pace counts
SLOWEST_PACE = 2.0  # frames a piece; what is slower has no room in a spare either


class Renewal:
    """Makes slots' rings anew, one at a time: there is one spare."""

    def __init__(self, loop: Loop, frames: int, columns: int, runner: Ticks) -> None:
        """frames: kept of a call, at most; columns: that the spare holds."""
        self.loop, self.frames, self.config = loop, frames, loop.lm.config
        self.spare = loop.lm.transformer.rings(1, columns, loop.rings.kv.dtype)
        with torch.inference_mode():
            self.prefill = Prefill(loop.lm, self.spare, graphs=runner.graphs, pool=runner.pool)
        self.histories = [self._empty() for _ in range(loop.slots)]
        self.kept: dict[int, int] = {}  # slot -> frames that its renewal keeps
        self.queue = RenewalQueue(loop.rings.capacity, loop.piece_columns, loop.slots, columns)
        self.first: int | None = None  # the slot to renew next, as of the last tick
        self.busy = False  # there is one spare: one renewal at a time

    def _empty(self) -> "FrameHistory":
        return FrameHistory(self.spare.capacity, 1 + self.config.n_q)  # more would not fit

    def enter(self, slot: int, prompt_frames: int) -> bool:
        """Whether a slot with this prompt has room to talk once it is renewed; only then it is."""
        self.kept[slot] = self.queue.enter(slot, prompt_frames, self.frames)
        if not self.kept[slot]:
            logger.warning(
                "a prompt of %d columns leaves no room to renew: past its context this call loses "
                "voice and persona; use a shorter persona", prompt_frames
            )  # fmt: skip
        return self.kept[slot] > 0

    def due(self, slot: int) -> bool:
        return slot == self.first and not self.busy

    def forget(self, slot: int) -> None:
        """A slot begins a new conversation."""
        self.histories[slot], self.first = self._empty(), None
        self.queue.leave(slot)

    def note(self, slots: list[int], text: np.ndarray, heard: np.ndarray, said: np.ndarray) -> None:
        """After a tick: text fed [S], user codes [S, Q] and complete agent codes [S, Q]."""
        for slot in slots:
            self.histories[slot].add(said[slot], heard[slot], int(text[slot]))
        pushed, histories = self.loop.rings.pushed, self.histories
        ripe = [slot for slot in self.queue.slots if histories[slot].total >= self.kept[slot]]
        self.first = self.queue.next({slot: pushed[slot] for slot in ripe})

    def begin(self, slots: list[int], text: np.ndarray) -> None:
        """After a bootstrap tick: only the text of the first frame is known."""
        for slot in slots:
            self.histories[slot].text = int(text[slot])

    def run(self, slot: int, voice: Voice, prompt: Tensor) -> Generator[None, None, int]:
        """Prefill the spare, catch up with what was said meanwhile, swap. prompt [T, K] frames.

        Returns the number of frames that the slot's new memory holds. Where little slack was left,
        the spare may not take all that was said meanwhile: then it begins again, with half the
        frames, as there may be no more slack than before.
        """
        self.busy = True
        try:
            history, kept, done = self.histories[slot], self.kept[slot], 0
            began, pieces = history.total, 0
            first = history.total - kept  # of the frames that are kept
            while True:
                whole = self._columns(slot, voice, prompt, first)
                if whole.frames > self.spare.capacity:
                    kept, done = max(1, kept // 2), 0
                    first = history.total - kept
                    self.spare.set_position(0, 0)
                    whole = self._columns(slot, voice, prompt, first)
                left, end = whole.frames - done, min(done + self.loop.piece_columns, whole.frames)
                self._push(whole, done, end)
                done, pieces = end, pieces + 1
                if left <= SWAP_COLUMNS:
                    self._swap(slot)
                    self.queue.set_pace(history.total - began, pieces)
                    return history.total - first
                yield
        except Exception:  # whatever it was, it would be tried again in every frame
            self.queue.leave(slot)
            raise
        finally:
            self.busy, self.first = False, None
            if self.spare.pushed[0]:  # it was broken off: nothing of a conversation stays behind
                self.spare.clear(0)

    def _columns(self, slot: int, voice: Voice, prompt: Tensor, first: int) -> Prompt:
        """From the prompt's first column to the last that the slot has run."""
        history = self.histories[slot]
        frames = history.last(history.total - first)
        return build_prompt(self.config, voice, torch.cat([prompt, frames]))

    @torch.inference_mode()
    def _push(self, whole: Prompt, start: int, end: int) -> None:
        if start < end:
            self.prefill.run(0, whole.embed(self.loop.lm.embedding, start, end))
            wait_for(self.loop.device)

    @torch.inference_mode()
    def _swap(self, slot: int) -> None:
        """The spare's columns become the slot's."""
        rings, spare = self.loop.rings, self.spare
        rings.set_position(slot, spare.pushed[0])
        for old, new in zip(rings.used(slot), spare.used(0), strict=True):
            old.copy_(new)
        spare.clear(0)
        wait_for(self.loop.device)


class FrameHistory:
    """The last whole frames of one slot on the host: a ring of K small integers each."""

    def __init__(self, most: int, rows: int) -> None:
        self._ring = np.zeros((most, rows), np.int32)  # [frames, K]
        self.total = 0  # frames of the conversation so far
        self.text = PAD  # fed for the frame that comes next

    def add(self, said: np.ndarray, heard: np.ndarray, text: int) -> None:
        """A frame is whole: its agent's codes [Q] and user's [Q]. text: fed for the next one."""
        row = self._ring[self.total % len(self._ring)]
        row[0], row[1 : 1 + len(said)], row[1 + len(said) :] = self.text, said, heard
        self.total += 1
        self.text = text

    def last(self, frames: int) -> Tensor:
        """The newest frames, oldest first [n, K] int64; fewer where it does not hold them all."""
        frames = min(frames, self.total, len(self._ring))
        places = np.arange(self.total - frames, self.total) % len(self._ring)
        return torch.from_numpy(self._ring[places].astype(np.int64))


class RenewalQueue:
    """Whose ring is renewed next, and when: all slots share one spare, and that takes its time.

    The fullest goes first. It begins once any slot would else lose the start of its prompt before
    its own renewal is over. So a lone call talks on until its ring is almost full; of slots that
    fill up together the first is renewed early, the others after it. How long a renewal lasts is
    reckoned at one piece a frame; where the last ones had less slack, at their pace. Arithmetic
    only; a column is a frame.
    """

    def __init__(self, capacity: int, piece: int, slots: int, spare: int) -> None:
        """Columns of a ring, of one piece and of the spare; slots there are."""
        self._capacity, self._whole, self._spare = capacity, slots, spare
        self.piece = piece  # that there is room for where all slots are taken
        self.slots: dict[int, int] = {}  # slot -> columns that its renewal runs
        self._paces: deque[float] = deque([1.0], maxlen=PACES)  # frames a piece, of the last ones

    def enter(self, slot: int, prompt: int, frames: int) -> int:
        """The number of frames a slot keeps behind its prompt; 0: it is not renewed.

        It is not where prompt and all `frames` leave no room for two renewals. Fewer are kept where
        the spare holds no more, with what is said meanwhile. Fewer are kept, too, where slots that
        are all as full as this one would wait for it too long.
        """
        columns = prompt + frames
        if not self._leaves_room(columns, 2):
            return 0
        while columns > prompt and not (
            columns + 2 * self._pieces(columns) <= self._spare  # at half the pace too
            and self._leaves_room(columns, self._whole + 1)
        ):
            columns -= 1
        if columns <= prompt:
            return 0
        self.slots[slot] = columns
        return columns - prompt

    def _leaves_room(self, columns: int, renewals: int) -> bool:
        """Whether this many renewals to `columns` are over before the ring is full again."""
        return columns + renewals * self.lasts(columns) < self._capacity

    def leave(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def set_pace(self, frames: int, pieces: int) -> None:
        """A renewal took so many pieces and frames. One slow moment is not the machine's pace."""
        self._paces.append(min(max(1.0, frames / pieces), SLOWEST_PACE))

    def lasts(self, columns: int) -> int:
        """Frames that a renewal to `columns` takes, at the pace of the last ones."""
        pace = sorted(self._paces)[len(self._paces) // 2]
        return math.ceil(pace * self._pieces(columns))

    def _pieces(self, columns: int) -> int:
        """Every frame adds a column, and the last piece swaps."""
        return -(-columns // (self.piece - 1)) + 1

    def next(self, pushed: Mapping[int, int]) -> int | None:
        """The slot to begin with now; None: there is time. pushed: slot -> columns that it ran."""
        order = sorted(pushed, key=lambda slot: -pushed[slot])
        if not order:
            return None
        # one to spare: prompts of newcomers go before renewals
        over = self.lasts(self.slots[order[0]])
        for slot in order:
            over += self.lasts(self.slots[slot])
            if pushed[slot] + over >= self._capacity:
                return order[0]
        return None


def wait_for(device: torch.device) -> None:
    """Wait until a piece of work is done, so that what it took is known when it returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
