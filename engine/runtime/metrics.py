"""What the server counts: Prometheus counters, and the sliding windows behind `stats`.

Numbers only: never a word, a sample, an address or a key.
"""

import threading
from collections import deque
from collections.abc import Iterable

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from engine.config import LATE_SECONDS

WINDOW = 512  # ticks or frames a percentile looks back
STEP_BUCKETS = (  # seconds; fine enough to read percentiles from
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.010, 0.012, 0.014, 0.016),
    *(0.018, 0.020, 0.025, 0.030, 0.035, 0.040, 0.045, 0.050, 0.055, 0.060, 0.065, 0.070, 0.075),
    *(0.080, 0.090, 0.100, 0.120, 0.150, 0.200, 0.250),
)


class Window:
    """The last values of something, for percentiles. Thread-safe."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        with self._lock:
            self._values.append(value)

    def percentiles(self, wanted: Iterable[float]) -> list[float]:
        """Percentiles (0 to 100) of the window; zeros while it is empty."""
        with self._lock:
            values = list(self._values)
        wanted = list(wanted)
        return np.percentile(values, wanted).tolist() if values else [0.0] * len(wanted)


class Metrics:
    """One server's counters. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.step = Window()  # seconds of backend work per tick
        self.queue = Window()  # seconds from a complete user frame to the start of its tick
        self.answer = Window()  # seconds from a complete user frame to its agent frame sent
        self.late_frames = 0
        registry = self.registry
        self._ticks = Counter("personaplex_ticks", "Ticks of the scheduler", registry=registry)
        self._frames = Counter("personaplex_frames", "Agent frames made", registry=registry)
        self._late = Counter(
            "personaplex_late_frames",
            "Frames sent > 120 ms after their user frame",
            registry=registry,
        )
        self._step = Histogram(
            "personaplex_step_seconds",
            "Backend time of a tick",
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self._live = Gauge("personaplex_conversations", "Open conversations", registry=registry)
        self._ended = Counter(
            "personaplex_conversations_ended", "Ended conversations", ["reason"], registry=registry
        )
        self._ignored = Counter(
            "personaplex_ignored_messages", "Unknown kinds and empty messages", registry=registry
        )
        self._dropped = Counter(
            "personaplex_dropped_user_frames", "User frames that came too late", registry=registry
        )

        self._routes = Counter(
            "personaplex_routes", "Questions looked up", ["source", "state"], registry=registry
        )
        self._markers = Counter(
            "personaplex_ignored_markers", "Markers that came when none was due", registry=registry
        )

    def ticked(self, frames: int, step_seconds: float) -> None:
        self._ticks.inc()
        self._frames.inc(frames)
        self._step.observe(step_seconds)
        self.step.add(step_seconds)

    def sent(self, seconds: float) -> bool:
        """An agent frame left this long after its user frame was complete; whether it was late."""
        self.answer.add(seconds)
        late = seconds > LATE_SECONDS
        if late:
            self.late_frames += 1
            self._late.inc()
        return late

    def opened(self) -> None:
        self._live.inc()

    def ended(self, reason: str) -> None:
        self._live.dec()
        self._ended.labels(reason).inc()

    def ignored(self) -> None:
        self._ignored.inc()

    def routed(self, source: str, state: str) -> None:
        self._routes.labels(source, state).inc()

    def marker_ignored(self) -> None:
        self._markers.inc()

    def dropped(self, frames: int) -> None:
        self._dropped.inc(frames)

    def text(self) -> bytes:
        """The Prometheus exposition of all counters."""
        return generate_latest(self.registry)
