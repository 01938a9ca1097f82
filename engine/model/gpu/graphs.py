"""The frame loop as a backend calls it: numpy in and out, on a GPU by CUDA graphs.

A graph is work on fixed addresses that is recorded once and launched whole from then on.

- `Ticks` runs a tick as two launches, `listen` and `speak`. There is a graph for every bucket: the
  first 1, 2, 4, 8, 16 … slots of one loop, the same memory in smaller tensors. The smallest bucket
  that covers the active slots runs. Samples go up in one copy and random numbers in another,
  results come down in one, and the host waits once a graph.
- With a recogniser there are two graphs more: `transcribe` is `listen` and the recogniser's step,
  `flush` is that step alone, on silence. Where nobody is transcribed, plain `listen` runs.
- `Prefill` runs pieces of prompts between two ticks.

With `graphs` False, and on a CPU, the same work is launched piece by piece.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.config import FRAME_SAMPLES
from engine.model.lm import Temporal
from engine.model.loop import PIECES, Loop
from engine.model.stt import Hearing
from engine.model.transformer import Active, Rings

logger = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96)
# Columns of the input behind the samples: the slots that advance, are encoded, are transcribed.
ACTIVE, ENCODING, WRITING = range(FRAME_SAMPLES, FRAME_SAMPLES + 3)
Words = tuple[np.ndarray, np.ndarray | None]  # the recogniser's [S] int64, [S, heads] float32
WARM_UPS = 3  # runs before a recording, compilers and all


# -- what graphs are made of -----------------------------------------------------------------------


class Recorded(NamedTuple):
    """One graph, and the tensor that its replay fills, if the work gives one."""

    graph: "torch.cuda.CUDAGraph"
    out: Tensor | None


def record(work: Callable[[], Tensor | None], pool: object = None) -> Recorded:
    """Record work on fixed addresses after running it; graphs of a pool never run side by side."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = work()
    return Recorded(graph, out)


class Prefill:
    """Runs pieces of prompts, of up to so many columns as the largest of `sizes`, for some rings.

    One graph of each size serves every slot and every shorter piece: a piece is filled up to the
    size above it, and what fills it is not written. A column's bits depend neither on where a
    prompt was cut nor on the sizes. The plain modules (`Temporal.prefill`) run a piece that would
    push columns out of the ring, and every piece where there are no kernels.
    """

    def __init__(
        self,
        lm: Temporal,
        rings: Rings,
        sizes: tuple[int, ...] = PIECES,
        graphs: bool = True,
        pool: object = None,
    ) -> None:
        self.lm, self.rings, self.sizes = lm, rings, sizes
        table = lm.embedding.table
        self.embedded = table.new_zeros(max(sizes), table.shape[1])
        self.target = torch.zeros(2, dtype=torch.int64, device=table.device)  # slot, columns
        recorded = lm.fused and graphs and table.is_cuda
        self.recorded = {
            size: record(partial(self._launch, size), pool) for size in sizes if recorded
        }

    def run(self, slot: int, embedded: Tensor) -> None:
        """The next columns of a slot, embedded [T, dim]."""
        count, pushed = len(embedded), self.rings.pushed[slot]
        if not self.lm.fused or pushed + count > self.rings.capacity:
            self.lm.prefill(embedded, self.rings, slot)
            return
        self.embedded[:count].copy_(embedded)
        self.target.copy_(torch.tensor([slot, count]))
        size = min(size for size in self.sizes if size >= count)
        if self.recorded:
            self.recorded[size].graph.replay()
        else:
            self._launch(size)
        self.rings.pushed[slot] = pushed + count

    def _launch(self, size: int) -> None:
        """Nothing counts while it is recorded, so nothing is written."""
        slot, count = self.target.split(1)
        self.lm.fused.prefill(self.lm, self.embedded[:size], self.rings, slot, count)


# -- ticks -----------------------------------------------------------------------------------------


def buckets_for(slots: int, every: bool) -> tuple[int, ...]:
    """Sizes of buckets up to `slots`, which is the last; the only one unless `every`."""
    return (*(b for b in BUCKETS if b < slots and every), slots)


class Block:
    """Rows of all slots on the host, pinned where there is a GPU, and on the device."""

    def __init__(self, slots: int, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self.device = torch.zeros(slots, columns, dtype=dtype, device=device)
        self.host = torch.zeros(slots, columns, dtype=dtype)
        if device.type == "cuda":
            self.host = self.host.pin_memory()
        self.rows = self.host.numpy()  # the host's side, to write into

    def send(self, slots: int) -> None:
        """Copy the first rows up."""
        self.device[:slots].copy_(self.host[:slots], non_blocking=True)


class Ticks:
    """Runs ticks of a loop for the backend, which has the same two verbs."""

    def __init__(
        self,
        loop: Loop,
        graphs: bool = True,
        every: bool = False,
        hearing: Hearing | None = None,
    ) -> None:
        self.loop, device = loop, loop.device
        self.cuda = cuda = device.type == "cuda"
        self.graphs = graphs and cuda
        # One for all graphs: they never run side by side, and share nothing by what lies in it.
        self.pool = torch.cuda.graph_pool_handle() if self.graphs else None
        self.buckets = buckets_for(loop.slots, every or cuda)
        self.loops = {size: loop.narrow(size) for size in self.buckets}
        self.hearings = {size: hearing.narrow(size) for size in self.buckets if hearing}
        self.hearing = hearing
        self.up = Block(loop.slots, FRAME_SAMPLES + 3, torch.float32, device)
        self.up_text = Block(loop.slots, 2, torch.int64, device)
        self.up_flush = Block(loop.slots, 1, torch.float32, device)
        self.down: dict[str, Tensor] = {}  # by verb: where results arrive, pinned
        self.captured: dict[tuple[str, int], Recorded] = {}
        # Which slots take part in this tick, and in a flush.
        self._taking: dict[int, list[int]] = {ACTIVE: [], ENCODING: [], WRITING: []}
        self._flushing: list[int] = []
        self._size = self.buckets[-1]
        if cuda:
            torch.backends.cudnn.allow_tf32 = False  # the codec is float32
        self.prefill = Prefill(loop.lm, loop.rings, graphs=self.graphs, pool=self.pool)
        if self.graphs:
            self.capture()

    # -- a tick ------------------------------------------------------------------------------------

    def listen(
        self, pcm: np.ndarray, active: np.ndarray, writing: Iterable[int] = ()
    ) -> tuple[np.ndarray, np.ndarray, Words | None]:
        """pcm [S, 1920], active [S] -> text [S], codes [S, Q], words of slots `writing` or None."""
        slots, writing = np.flatnonzero(active).tolist(), list(writing)
        self._size = self._bucket(slots)
        loop = self.loops[self._size]
        encoding = [slot for slot in slots if slot not in loop.booting]
        self._taking = {ACTIVE: slots, ENCODING: encoding, WRITING: writing}
        rows = self.up.rows
        rows[:, :FRAME_SAMPLES], rows[:, FRAME_SAMPLES:] = pcm, 0
        for column, some in self._taking.items():
            rows[some, column] = 1
        self.up.send(self._size)
        loop.sampler.draw(Active(self.up.device[: self._size, ACTIVE], tuple(slots)))
        verb = "transcribe" if writing else "listen"
        out = self._launch(verb, self._size)
        if loop.sampler.special:
            out[:, 0] = loop.sampler.pick_text(loop.logits)
        heard = self._fetch(verb, out, self._count_listened)
        q = loop.codebooks
        text, codes = heard[:, 0].astype(np.int64), heard[:, 1 : 1 + q].astype(np.int64)
        return text, codes, _words(heard[:, 1 + q :]) if writing else None

    def speak(self, text: np.ndarray, hush: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """text [S], hush [S] -> pcm [S, 1920], codes [S, Q] of the slots of the last listen."""
        loop, rows = self.loops[self._size], self.up_text.rows
        rows[:, 0], rows[:, 1] = text, hush
        self.up_text.send(self._size)
        out = self._launch("speak", self._size)
        spoken = self._fetch("speak", out, self._count_spoken)
        loop.booting.difference_update(self._taking[ACTIVE])
        return spoken[:, :FRAME_SAMPLES], spoken[:, FRAME_SAMPLES:].astype(np.int64)

    def flush(self, slots: list[int]) -> Words:
        """The recogniser's step on silence for these slots, between two ticks."""
        self._flushing, size = slots, self._bucket(slots)
        rows = self.up_flush.rows
        rows[:], rows[slots, 0] = 0, 1
        self.up_flush.send(size)
        count = partial(self.hearing.rings.count, slots, 1)
        return _words(self._fetch("flush", self._launch("flush", size), count))

    def _bucket(self, slots: list[int]) -> int:
        """The smallest bucket that covers these slots."""
        return next(size for size in self.buckets if size > max(slots, default=0))

    def _launch(self, verb: str, size: int) -> Tensor:
        if self.graphs:
            graph, out = self.captured[verb, size]
            graph.replay()
            return out
        return getattr(self, f"_{verb}")(size)

    def _fetch(self, verb: str, out: Tensor, meanwhile: Callable[[], None]) -> np.ndarray:
        """Results of a bucket on the host, as rows of all slots; works while it waits."""
        if verb not in self.down:
            rows = torch.zeros(self.loop.slots, out.shape[1], dtype=out.dtype)
            self.down[verb] = rows.pin_memory() if self.cuda else rows
        rows = self.down[verb]
        rows[: len(out)].copy_(out, non_blocking=True)
        if out.is_cuda:
            done = torch.cuda.Event()
            done.record()
            meanwhile()
            done.synchronize()
        return rows.numpy().copy()

    # A graph counts nothing on the host: what it pushes is added to `pushed` of the rings here.

    def _count_listened(self) -> None:
        taking = self._taking
        self.loop.rings.count(taking[ACTIVE], 1)
        self.loop.encoder.rings.count(taking[ENCODING], self.loop.mimi.frame_columns)
        if taking[WRITING]:
            self.hearing.rings.count(taking[WRITING], 1)

    def _count_spoken(self) -> None:
        """The same for `speak`; and the random numbers of the next tick are drawn."""
        speaking = self._taking[ACTIVE]
        self.loop.decoder.rings.count(speaking, self.loop.mimi.frame_columns)
        self.loop.sampler.draw_ahead(speaking)

    # -- what is launched, for a bucket of `size` slots --------------------------------------------

    def _listen(self, size: int) -> Tensor:
        """-> [B, 1 + Q] float32, which holds such tokens exactly: text and the user's codes."""
        pcm = self.up.device[:size, :FRAME_SAMPLES]
        active, encoding = self._select(size, ACTIVE), self._select(size, ENCODING)
        text, codes, _ = self.loops[size].encode_and_step(pcm, active, encoding)
        return torch.cat([text[:, None], codes], 1).float()

    def _transcribe(self, size: int) -> Tensor:
        """-> the same, then the recogniser's token and pauses [B, 1 + Q + 1 + heads]."""
        hearing, pcm = self.hearings[size], self.up.device[:size, :FRAME_SAMPLES]
        active, encoding = self._select(size, ACTIVE), self._select(size, ENCODING)
        read = hearing.stt.config.n_q
        most = max(read, self.loop.codebooks)
        text, codes, encoded = self.loops[size].encode_and_step(pcm, active, encoding, most)
        written = _row(*hearing.step(encoded[:, :read], self._select(size, WRITING)))
        return torch.cat([text[:, None].float(), codes.float(), written], 1)

    def _flush(self, size: int) -> Tensor:
        """-> the recogniser's token and pauses [B, 1 + heads]."""
        slots = () if self.cuda else tuple(self._flushing)
        active = Active(self.up_flush.device[:size, 0] > 0.5, slots)
        silence = self.hearing.silence.expand(size, -1)  # it brings out what is to be written
        return _row(*self.hearings[size].step(silence, active))

    def _speak(self, size: int) -> Tensor:
        """-> [B, 1920 + Q]: the agent's samples and codes."""
        text, hush = self.up_text.device[:size].unbind(1)
        active = self._select(size, ACTIVE)
        pcm, codes = self.loops[size].step_depth_and_decode(text, hush != 0, active)
        return torch.cat([pcm, codes.float()], 1)

    def _select(self, size: int, column: int) -> Active:
        """Who takes part. On a GPU only the device knows, so that a graph can be replayed."""
        slots = () if self.cuda else tuple(self._taking[column])
        return Active(self.up.device[:size, column] > 0.5, slots)

    # -- graphs ------------------------------------------------------------------------------------

    def capture(self) -> None:
        """Record every verb for every bucket; no slot is active meanwhile."""
        verbs = ["listen", "speak"] + (["transcribe", "flush"] if self.hearing else [])
        for size in reversed(self.buckets):
            for verb in verbs:
                work = partial(getattr(self, f"_{verb}"), size)
                self.captured[verb, size] = record(work, self.pool)
        logger.info("captured %d graphs for %s slots", len(self.captured), self.buckets)


def _row(text: Tensor, pause: Tensor | None) -> Tensor:
    """The recogniser's token [B] and pauses [B, heads] as one block [B, 1 + heads]."""
    return text[:, None].float() if pause is None else torch.cat([text[:, None], pause], 1)


def _words(rows: np.ndarray) -> Words:
    """`_row` taken apart again."""
    return rows[:, 0].astype(np.int64), rows[:, 1:] if rows.shape[1] > 1 else None
