"""One tick as two launches: `listen` and `speak` captured in CUDA graphs, for buckets of slots.

A bucket is the first 1, 2, 4, 8 or 16 slots of one loop: the same memory, smaller tensors; the
smallest that covers the active slots runs. Input goes up in one copy, output comes down in one,
and the host waits once a graph. `graphs` False launches the same work piece by piece.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.config import FRAME_SAMPLES
from engine.model.attention import Rings
from engine.model.loop import Loop
from engine.model.state import Active

logger = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16)
ACTIVE, HEARING = FRAME_SAMPLES, FRAME_SAMPLES + 1  # columns of the input behind the samples
WARM_UPS = 3


def buckets_for(slots: int, every: bool) -> tuple[int, ...]:
    """Sizes up to `slots`, which is one of them; only it where there is nothing to gain."""
    return (*(b for b in BUCKETS if b < slots and every), slots)


@dataclass
class Captured:
    """One graph and the tensor that its replay fills."""

    graph: "torch.cuda.CUDAGraph"
    out: Tensor


class Ticks:
    """Runs ticks of a loop; `listen` and `speak` take and give numpy, as the backend does."""

    def __init__(self, loop: Loop, graphs: bool = True, every: bool = False) -> None:
        self.loop, device = loop, loop.device
        self.cuda = cuda = device.type == "cuda"
        self.graphs = graphs and cuda
        self.buckets = buckets_for(loop.slots, every or cuda)
        self.loops = {size: loop.narrow(size) for size in self.buckets}
        q = loop.lm.config.codebooks
        shapes = ((FRAME_SAMPLES + 2, torch.float32), (2, torch.int64))
        self.up = [torch.zeros(loop.slots, n, dtype=t, device=device) for n, t in shapes]
        self.up_host = [torch.zeros_like(u, device="cpu") for u in self.up]
        shapes = ((1 + q, torch.int64), (FRAME_SAMPLES + q, torch.float32))
        self.down = [torch.zeros(loop.slots, n, dtype=t) for n, t in shapes]
        if cuda:
            self.up_host, self.down = (
                [t.pin_memory() for t in ts] for ts in (self.up_host, self.down)
            )
        self.captured: dict[tuple[str, int], Captured] = {}
        self._taking: dict[int, list[int]] = {ACTIVE: [], HEARING: []}  # slots of this tick
        self._size = self.buckets[-1]
        if cuda:
            torch.backends.cudnn.allow_tf32 = False  # the codec is float32 (performance.md 2.5)
        if self.graphs:
            self.capture()

    # -- a tick ------------------------------------------------------------------------------------

    def listen(
        self, pcm: np.ndarray, active: np.ndarray, codebooks: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """pcm [S, 1920], active [S] -> text [S], user codes [S, Q].

        codebooks: how many to encode, for a recogniser; a graph has its number from the start.
        """
        slots = np.flatnonzero(active).tolist()
        loop = self.bucket(slots)
        if codebooks and not self.graphs:
            loop.codebooks = codebooks
        hearing = [slot for slot in slots if slot not in loop.booting]
        self._taking = {ACTIVE: slots, HEARING: hearing}
        host = self.up_host[0].numpy()
        host[:, :FRAME_SAMPLES] = pcm
        host[:, ACTIVE], host[:, HEARING] = active, 0
        host[hearing, HEARING] = 1
        self.up[0][: self._size].copy_(self.up_host[0][: self._size], non_blocking=True)
        loop.sampler.draw(Active(self.up[0][: self._size, ACTIVE], tuple(slots)))
        out = self._launch("listen", loop)
        self.loop.heard = self._all_rows(loop.heard)
        if loop.sampler.special:
            out[:, 0] = loop.chosen(out[:, 0])
        heard = self._fetch(0, out, self._count_heard)
        return heard[:, 0], heard[:, 1:]

    def speak(self, text: np.ndarray, hush: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """text [S], hush [S] -> pcm [S, 1920], codes [S, Q] of the slots of the last listen."""
        loop = self.loops[self._size]
        host = self.up_host[1].numpy()
        host[:, 0], host[:, 1] = text, hush
        self.up[1][: self._size].copy_(self.up_host[1][: self._size], non_blocking=True)
        spoken = self._fetch(1, self._launch("speak", loop), self._count_spoken)
        loop.booting.difference_update(self._taking[ACTIVE])
        return spoken[:, :FRAME_SAMPLES], spoken[:, FRAME_SAMPLES:].astype(np.int64)

    def _all_rows(self, rows: Tensor) -> Tensor:
        """Rows of a bucket among those of all slots, for who reads the codes after a tick."""
        missing = self.loop.slots - len(rows)
        return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows

    def bucket(self, slots: list[int]) -> Loop:
        """The smallest loop that covers these slots."""
        need = max(slots, default=0) + 1
        self._size = next(size for size in self.buckets if size >= need)
        return self.loops[self._size]

    def _launch(self, verb: str, loop: Loop) -> Tensor:
        if self.graphs:
            captured = self.captured[verb, loop.slots]
            captured.graph.replay()
            return captured.out
        return getattr(self, f"_{verb}")(loop)

    def _fetch(self, which: int, out: Tensor, meanwhile: Callable[[], None]) -> np.ndarray:
        """Results of a bucket on the host, as rows of all slots; works while it waits."""
        rows = self.down[which]
        rows[: len(out)].copy_(out, non_blocking=True)
        if out.is_cuda:
            done = torch.cuda.Event()
            done.record()
            meanwhile()
            done.synchronize()
        return rows.numpy().copy()

    def _count_heard(self) -> None:
        """What `listen` pushes on a GPU, on the host's side of the counts."""
        self._count(self.loop.rings, ACTIVE, 1)
        self._count(self.loop.encoder.rings, HEARING, self.loop.mimi.config.columns)

    def _count_spoken(self) -> None:
        """The same for `speak`; and the random numbers of the next tick are drawn."""
        self._count(self.loop.decoder.rings, ACTIVE, self.loop.mimi.config.columns)
        self.loop.sampler.draw_ahead(self._taking[ACTIVE])

    def _count(self, rings: Rings, who: int, columns: int) -> None:
        for slot in self._taking[who]:
            rings.pushed[slot] += columns

    # -- what is launched --------------------------------------------------------------------------

    def _listen(self, loop: Loop) -> Tensor:
        """-> [B, 1 + Q]: text and the user's codes."""
        given = self.up[0][: loop.slots]
        active, hearing = self._who(loop, ACTIVE), self._who(loop, HEARING)
        text, codes = loop.listened(given[:, :FRAME_SAMPLES], active, hearing)
        return torch.cat([text[:, None], codes], 1)

    def _speak(self, loop: Loop) -> Tensor:
        """-> [B, 1920 + Q]: the agent's samples and codes."""
        given = self.up[1][: loop.slots]
        pcm, codes = loop.said(given[:, 0], given[:, 1] != 0, self._who(loop, ACTIVE))
        return torch.cat([pcm, codes.float()], 1)

    def _who(self, loop: Loop, who: int) -> Active:
        """Who takes part: on a GPU only the device is told, so that a graph can be replayed."""
        slots = () if self.cuda else tuple(self._taking[who])
        return Active(self.up[0][: loop.slots, who] > 0.5, slots)

    # -- graphs ------------------------------------------------------------------------------------

    def capture(self) -> None:
        """Record both halves of a tick for every bucket; no slot is active meanwhile."""
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        for size in reversed(self.buckets):
            loop = self.loops[size]
            for verb in ("listen", "speak"):
                run = getattr(self, f"_{verb}")
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UPS):
                        run(loop)
                torch.cuda.current_stream().wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    out = run(loop)
                self.captured[verb, size] = Captured(graph, out)
        logger.info("captured %d graphs for %s slots", len(self.captured), self.buckets)
