"""A scheduler on a clock that a test turns by hand, with a backend that only takes notes."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, PAD
from engine.runtime.backend import Heard, HeardRow, Opening, Spoken, Transcription
from engine.runtime.embedded import ByteTokenizer
from engine.runtime.metrics import Dropped, Metrics
from engine.runtime.scheduler import Scheduler
from engine.runtime.seat import Frame, Notice, Output, Seat


class Inline(Executor):
    """Runs at once, in the caller's thread."""

    def submit(self, work: Callable, /, *args: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class NotingBackend:
    """Frame number n of a slot sounds as n / 1000; the bootstrap's as 0.999."""

    limited_by = "asked"
    name, voices, transcribes, ticks = "noting", ("V",), False, None

    transcription = Transcription(ByteTokenizer(), 6)

    def __init__(self, slots: int, pieces: int = 0) -> None:
        self.slots, self.pieces = slots, pieces
        self.works = lambda seconds: None  # what a tick or a piece does to the clock
        self.tick_seconds = self.piece_seconds = 0.0
        self.tokenizer = ByteTokenizer()
        self.masks: list[list[bool]] = []  # active of every tick
        self.heard: list[np.ndarray] = []  # the first sample of every slot, per tick
        self.fed: list[list[int]] = []
        self.log: list[Any] = []
        self._made = [0] * slots
        self.renewals: dict[int, Any] = {}  # slot -> the work of a renewal that is due

    def prepare(self, opening: Opening) -> None:
        """There are no files to read."""

    def open(self, slot: int, opening: Opening):
        self.log.append(("open", slot, opening.sampling.text_temperature))
        self._made[slot] = -1
        for _ in range(self.pieces):
            self.log.append(("piece", slot))
            self.works(self.piece_seconds)
            yield

    def limit_piece(self, columns: int) -> None:
        """All pieces take as long here."""

    def tune(self, slot: int, sampling) -> None:
        self.log.append(("tune", slot, sampling.text_temperature))

    def listen(self, pcm: np.ndarray, active: np.ndarray) -> Heard:
        self.masks.append(active.tolist())
        self.heard.append(pcm[:, 0].copy())
        return Heard(text=np.full(self.slots, 100 + len(self.masks)))

    def speak(self, text: np.ndarray, hush: np.ndarray) -> Spoken:
        self.fed.append(text.tolist())
        self.works(self.tick_seconds)
        pcm = np.zeros((self.slots, FRAME_SAMPLES), np.float32)
        for slot in np.flatnonzero(self.masks[-1]):
            pcm[slot] = 0.999 if self._made[slot] < 0 else self._made[slot] / 1000
            self._made[slot] += 1
        return Spoken(pcm)

    def renew(self, slot: int):
        return self.renewals.pop(slot, None)

    def make_due(self, slot: int, pieces: int = 3) -> None:
        """This slot's memory is to be renewed."""
        self.renewals[slot] = self._renewal(slot, pieces)

    def _renewal(self, slot: int, pieces: int):
        try:
            for _ in range(pieces):
                self.log.append(("renewing", slot))
                self.works(self.piece_seconds)
                yield
            return 7  # frames
        finally:
            self.log.append(("renewal over", slot))

    def close(self, slot: int) -> None:
        self.log.append(("close", slot))

    def context_used(self, slot: int) -> float:
        return 0.25


class NotingDirector:
    """Feeds what was sampled, and names each step in an event."""

    def __init__(self, wants_frames: bool = False) -> None:
        self.wants_frames = wants_frames
        self.awaits_words = False
        self.taken: list[Any] = []
        self.steps: list[tuple[float, float]] = []
        self.fails = False

    def take(self, command: Any) -> list[Any]:
        if command == "fail":
            raise RuntimeError("take failed")
        self.taken.append(command)
        return [f"took {command}"]

    def step(self, sampled: int, heard: HeardRow, peak_in: float, peak_out: float):
        if self.fails:
            raise RuntimeError("step failed")
        self.steps.append((round(peak_in, 4), round(peak_out, 4)))
        return (PAD if sampled % 2 else sampled), False

    def events(self) -> list[Any]:
        return [f"text of frame {len(self.steps) - 1}"]


class Rig:
    """Time stands still but for `advance` and `play`, and for what ticks and pieces take."""

    def __init__(
        self,
        slots: int = 2,
        pieces: int = 0,
        tick: float = 0,
        piece: float = 0,
        backend: NotingBackend | None = None,
    ) -> None:
        self.now = 1000.0
        self.backend = backend or NotingBackend(slots, pieces)
        self.backend.tick_seconds, self.backend.piece_seconds = tick, piece
        self.backend.works = self._work
        self.metrics = Metrics(lambda: self.now)
        self.scheduler = Scheduler(
            self.backend, self.metrics, clock=lambda: self.now, loader=Inline()
        )
        self.outputs: dict[Seat, deque[Output]] = {}
        self.delays: dict[Seat, list[float]] = {}  # from a complete user frame to its answer

    def _work(self, seconds: float) -> None:
        self.now += seconds

    def join(self, director: NotingDirector | None = None, ready: bool = True) -> Seat:
        """A newcomer; by default after its handshake."""
        outputs: deque[Output] = deque()
        delays: list[float] = []

        def deliver(new: list[Output]) -> None:
            outputs.extend(new)
            delays.extend(self.now - output.due_at for output in new if isinstance(output, Frame))

        seat = self.scheduler.join(Opening("V"), director or NotingDirector(), deliver)
        self.outputs[seat], self.delays[seat] = outputs, delays
        if ready:
            self.advance(0)
        while ready and not (seat.live or seat.left):
            self.advance(0.05)
        return seat

    def turn(self) -> float | None:
        return self.scheduler.turn()

    def advance(self, seconds: float) -> None:
        """Let so much time pass, with every turn the scheduler asks for on the way."""
        end = self.now + seconds
        while (at := self.turn()) is not None and at <= end + 1e-9:
            self.now = max(self.now, at)
        self.now = max(self.now, end)

    def play(
        self,
        talking: dict[Seat, float],
        seconds: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Let time pass while these seats' clients send a frame each 80 ms.

        talking: seat -> when its first frame is complete, in seconds from now. Frames arrive at
        their time also while a tick is running. meanwhile: what others do before each turn.
        """
        start, end = self.now, self.now + seconds
        coming = sorted(
            (start + first + number * FRAME_SECONDS, seat.joined, seat)
            for seat, first in talking.items()
            for number in range(int((seconds - first) / FRAME_SECONDS))
        )
        while self.now <= end:
            while coming and coming[0][0] <= self.now + 1e-9:
                at, _, seat = coming.pop(0)
                seat.push_audio(np.full(FRAME_SAMPLES, 0.5, np.float32), at)
            meanwhile()
            wanted = self.turn()
            times = [end + 1e-6, *(c[0] for c in coming[:1]), *([] if wanted is None else [wanted])]
            self.now = max(self.now, min(times))

    def hear(self, seat: Seat, frames: float = 1, level: float = 0.5) -> None:
        seat.push_audio(np.full(int(frames * FRAME_SAMPLES), level, np.float32), self.now)

    def frames(self, seat: Seat) -> list[Frame]:
        return [output for output in self.outputs[seat] if isinstance(output, Frame)]

    def notices(self, seat: Seat) -> list[Any]:
        return [e for out in self.outputs[seat] if isinstance(out, Notice) for e in out.events]

    def dropped(self, *reasons: Dropped) -> int:
        """User frames that were not heard, for these reasons or for any."""
        name = "personaplex_dropped_user_frames_total"
        values = [
            self.metrics.registry.get_sample_value(name, {"reason": reason})
            for reason in reasons or Dropped
        ]
        return int(sum(values))

    @property
    def ticks(self) -> int:
        return len(self.backend.masks)


def ticks_within(rig: Rig, seconds: float, act: Callable[[], None] = lambda: None) -> int:
    """How many ticks run while so much time passes."""
    before = rig.ticks
    act()
    rig.advance(seconds)
    return rig.ticks - before
