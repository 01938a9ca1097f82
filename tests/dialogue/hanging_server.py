"""`engine serve` with a backend that hangs for ever where the first argument says.

It says so on its standard output, and ends of it only once it has been sent SIGUSR1.
"""

import math
import signal
import sys
import threading

from engine.cli import main
from engine.runtime.embedded import EmbeddedBackend
from engine.runtime.scheduler import Watchdog

HANGS = "it hangs"
limits: dict[Watchdog, float] = {}
begin = Watchdog.__init__


def wait_for_signal(self: Watchdog, *args, **kwargs) -> None:
    begin(self, *args, **kwargs)
    limits[self], self._limit_s = self._limit_s, math.inf


def go_on(*_: object) -> None:
    for watchdog, limit in limits.items():
        watchdog._limit_s = limit


def hang(*_: object) -> None:
    print(HANGS, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    Watchdog.__init__ = wait_for_signal
    signal.signal(signal.SIGUSR1, go_on)
    setattr(EmbeddedBackend, sys.argv.pop(1), hang)
    sys.exit(main(["serve", *sys.argv[1:]]))
