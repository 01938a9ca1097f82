"""What the server counts: Prometheus counters, and the latency record of the last minute.

Numbers only: never a word, a sample, an address or a key.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum, auto
from functools import partial

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from engine.config import LATE_SECONDS

WINDOW_SECONDS = 60.0  # that a percentile looks back: no shorter than a usual scrape
RECENT_SECONDS = 0.5  # that what clients are told may be old
WINDOW_VALUES = 1 << 17  # kept at most; a minute of 96 conversations is 72 000 frames
QUANTILES = (0.5, 0.95, 0.99, 1.0)  # that are exported; 1 is the largest
STEP_BUCKETS = (  # seconds; fine enough to read percentiles from
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.010, 0.012, 0.014, 0.016),
    *(0.018, 0.020, 0.025, 0.030, 0.035, 0.040, 0.045, 0.050, 0.055, 0.060, 0.065, 0.070, 0.075),
    *(0.080, 0.090, 0.100, 0.120, 0.150, 0.200, 0.250),
)


class Stage(StrEnum):
    """A part of a frame's way, by the host's clock."""

    DECODE = auto()  # from the message that completed the user frame to its samples
    QUEUE = auto()  # from the complete user frame to the start of its tick
    LISTEN = auto()  # the first half of the tick, with the wait for the device
    CHOOSE = auto()  # the directors, between the halves
    SPEAK = auto()  # the second half, with the wait for the device
    HOST = auto()  # of the tick, around its halves: frames taken in, directors, frames handed out
    SEND = auto()  # from the agent frame's samples to their message, sent
    ANSWER = auto()  # from the complete user frame to the agent frame sent: what makes it late


class Dropped(StrEnum):
    """Why frames of a user were not heard."""

    OVERLOAD = auto()  # quiet ones: the server is too slow, and more than three of them waited
    LATE = auto()  # quiet ones: silence had been taken in their place before they came
    BEHIND = auto()  # the oldest of more than 30 s: the server has stopped or is far behind
    EARLY = auto()  # they are older than the handshake


class Window:
    """The values of the last minute, for percentiles. Thread-safe.

    A ring buffer of numbers: copied under the lock, which takes no time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._when, self._values = np.empty(WINDOW_VALUES), np.empty(WINDOW_VALUES)
        self._added = 0
        self._lock = threading.Lock()

    def add(self, *values: float) -> None:
        now = self._clock()
        with self._lock:
            start = self._added % WINDOW_VALUES
            end = start + len(values)
            self._added += len(values)
            self._when[start:end], self._values[start:end] = now, values[: WINDOW_VALUES - start]
            if end > WINDOW_VALUES:  # the rest begins anew
                rest = end - WINDOW_VALUES
                self._when[:rest], self._values[:rest] = now, values[-rest:]

    def values(self) -> np.ndarray:
        """Those of the last minute [n], in no order."""
        with self._lock:
            there = slice(min(self._added, WINDOW_VALUES))
            when, values = self._when[there].copy(), self._values[there].copy()
        return values[when >= self._clock() - WINDOW_SECONDS]

    def percentiles(self, wanted: Iterable[float]) -> list[float]:
        """Percentiles (0 to 100) of the window; zeros while it is empty."""
        values, wanted = self.values(), list(wanted)
        return find_percentiles(values, wanted) if len(values) else [0.0] * len(wanted)


def find_percentiles(values: np.ndarray, wanted: Sequence[float]) -> list[float]:
    """Percentiles (0 to 100) of values [n], n > 0, straight between neighbours; reorders them.

    As `np.percentile`, whose first call imports a package for 20 ms: event loops call this.
    """
    places = np.array(wanted) / 100 * (len(values) - 1)
    low = places.astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    values.partition([*low, *high])
    return (values[low] + (places - low) * (values[high] - values[low])).tolist()


class LatencyRecord:
    """The latency record (docs/internals.md): each frame's stages, and the slots of each tick.

    Without what the client's loudspeaker still has to play: the protocol does not tell it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.stages = {stage: Window(clock) for stage in Stage}
        self.slots = Window(clock)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For the registry; where a minute brought nothing, there is no value."""
        seconds = GaugeMetricFamily(
            "personaplex_frame_seconds",
            "A stage of the frames of the last minute",
            labels=("stage", "quantile"),
        )
        slots = GaugeMetricFamily(
            "personaplex_active_slots",
            "Slots that took part in a tick, of the last minute",
            labels=("quantile",),
        )
        rows = [(seconds, (stage,), window) for stage, window in self.stages.items()]
        for family, labels, window in [*rows, (slots, (), self.slots)]:
            if len(values := window.values()):
                found = find_percentiles(values, [100 * quantile for quantile in QUANTILES])
                for quantile, value in zip(QUANTILES, found, strict=True):
                    family.add_metric((*labels, f"{quantile:g}"), value)
        yield from (seconds, slots)


class Metrics:
    """One server's counters. Methods may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.registry = CollectorRegistry()
        self.record = LatencyRecord(clock)
        self.step = Window(clock)  # seconds of backend work per tick
        self._recent, self._recent_at = (0.0, 0.0, 0.0), -math.inf
        self.registry.register(self.record)
        counter = partial(Counter, registry=self.registry)
        self._ticks = counter("personaplex_ticks", "Ticks of the scheduler")
        self._frames = counter("personaplex_frames", "Agent frames made")
        self._late = counter(
            "personaplex_late_frames", "Frames sent > 120 ms after their user frame"
        )
        self._step = Histogram(
            "personaplex_step_seconds",
            "Backend time of a tick",
            buckets=STEP_BUCKETS,
            registry=self.registry,
        )
        self._live = Gauge(
            "personaplex_conversations", "Open conversations", registry=self.registry
        )
        self._lost = Gauge(
            "personaplex_conversations_dropped",
            "Conversations that wait for their clients",
            registry=self.registry,
        )
        self._ended = counter("personaplex_conversations_ended", "Ended conversations", ["reason"])
        self._resumed = counter("personaplex_conversations_resumed", "Gone on after a lost line")
        self._ignored = counter("personaplex_ignored_messages", "Unknown kinds and empty messages")
        self._dropped = counter(
            "personaplex_dropped_user_frames",
            "User frames that were not heard: too many in overload, too late, too early",
            ["reason"],
        )
        for reason in Dropped:  # there from the start, at 0
            self._dropped.labels(reason)
        self._renewals = counter(
            "personaplex_renewals", "Calls whose memory was made anew before it was full"
        )
        self._routes = counter("personaplex_routes", "Questions looked up", ["source", "state"])
        self._markers = counter(
            "personaplex_ignored_markers", "Markers that came when none was due"
        )

    def recent(self) -> tuple[float, float, float]:
        """Seconds of the last minute: p50 and p99 of a step, p50 of the queue.

        At most RECENT_SECONDS old: every client is told them each second, and a minute of 96
        conversations takes a millisecond to sort.
        """
        now = self.clock()
        if now - self._recent_at > RECENT_SECONDS:
            self._recent_at = now
            queue = self.record.stages[Stage.QUEUE]
            self._recent = *self.step.percentiles((50, 99)), *queue.percentiles((50,))
        return self._recent

    def ticked(self, frames: int, step_seconds: float) -> None:
        self._ticks.inc()
        self._frames.inc(frames)
        self._step.observe(step_seconds)
        self.step.add(step_seconds)
        self.record.slots.add(frames)

    def took(self, stage: Stage, *seconds: float) -> None:
        """How long a stage took for each of some live frames."""
        self.record.stages[stage].add(*seconds)

    def sent(self, seconds: float) -> bool:
        """An agent frame left this long after its user frame was complete; whether it was late."""
        self.took(Stage.ANSWER, seconds)
        late = seconds > LATE_SECONDS
        self._late.inc(late)
        return late

    def opened(self) -> None:
        self._live.inc()

    def ended(self, reason: str) -> None:
        self._live.dec()
        self._ended.labels(reason).inc()

    def renewed(self) -> None:
        self._renewals.inc()

    def line_lost(self) -> None:
        """A conversation waits for its client."""
        self._live.dec()
        self._lost.inc()

    def line_found(self) -> None:
        """It goes on, or is about to end."""
        self._live.inc()
        self._lost.dec()

    def resumed(self) -> None:
        self._resumed.inc()

    def ignored(self) -> None:
        self._ignored.inc()

    def routed(self, source: str, state: str) -> None:
        self._routes.labels(source, state).inc()

    def marker_ignored(self) -> None:
        self._markers.inc()

    def dropped(self, frames: float, reason: Dropped) -> None:
        self._dropped.labels(reason).inc(frames)

    def text(self) -> bytes:
        """The Prometheus exposition of all counters. May take 10 ms: not in the event loop."""
        return generate_latest(self.registry)
