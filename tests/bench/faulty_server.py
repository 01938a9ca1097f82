"""`engine serve` with the faults of its first argument (leak, error, slot), for `soak` to find."""

import sys
import threading
import time

import numpy as np

from engine.cli import main
from engine.runtime.scheduler import Scheduler
from engine.wire.socket import ChatSocket

LEAKED = []


def leak() -> None:
    """80 MB more every second."""

    def grow() -> None:
        while True:
            LEAKED.append(np.ones(1_000_000))
            time.sleep(0.1)

    threading.Thread(target=grow, daemon=True).start()


def nth(method, n: int, instead):
    """`method`, but its n-th call is another's."""
    calls = iter(range(1, 1_000_000))
    return lambda *args: (instead if next(calls) == n else method)(*args)


def fail(_conversation) -> bytes:
    raise RuntimeError("a fault of ours")


faults = sys.argv.pop(1).split(",")
if "leak" in faults:
    leak()
if "error" in faults:
    ChatSocket._send_stats = nth(ChatSocket._send_stats, 3, fail)
if "slot" in faults:
    Scheduler.leave = nth(Scheduler.leave, 2, lambda *_args: None)
sys.exit(main(["serve", *sys.argv[1:]]))
