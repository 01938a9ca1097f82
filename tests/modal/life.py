"""One container's life in a plain process, driven like the platform does: start, signal, stop.

`python -m tests.modal.life PORT [FAULT]`; a fault is a name of FAULTS, planted before the start.
A life with one has no page, for nobody asks for it there, and Gradio takes seconds to load.
"""

import signal
import sys
import threading
from collections.abc import Callable

from demo.app import LatePage
from demo.cloud.container import Container
from engine.commands import serve
from engine.commands.serve import tell
from engine.runtime.embedded import EmbeddedBackend


def broken_tick(*_: object) -> None:
    raise RuntimeError("the GPU fell off the bus")


def plant_broken_tick() -> None:
    EmbeddedBackend.listen = broken_tick


def plant_broken_load() -> None:
    def load(*_: object) -> None:
        raise RuntimeError("CUDA is broken on this machine")

    serve.load_backend = load


def plant_hanging_load() -> None:
    serve.load_backend = lambda *_: threading.Event().wait()


FAULTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "pageless": lambda: None,
    "tick": plant_broken_tick,
    "load": plant_broken_load,
    "hang": plant_hanging_load,
}


def main(port: str, fault: str = "") -> None:
    FAULTS[fault]()
    if fault:
        LatePage._make = lambda *_: None
    over = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: over.set())
    container = Container(port=int(port), commit=lambda: tell("committed"))
    container.start()
    tell("started")
    container.resume()
    over.wait()
    container.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
