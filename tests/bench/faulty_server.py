"""`engine serve` with the faults of its first argument, for `soak` and `hostile` to find.

leak, error, slot and wait (the third handshake comes late) are for `soak`. The others follow the
first ping, because a busy machine may send no second one in time. stall: all stops for 0.4 s.
chatter: it is logged at length. handles: files are opened for ever. grudge: the others lose a
frame.
"""

import asyncio
import itertools
import os
import sys
import threading
import time

import numpy as np

from engine.cli import main
from engine.runtime.scheduler import Scheduler
from engine.wire import socket
from engine.wire.protocol import Kind
from engine.wire.socket import ChatSocket

LEAKED = []


def leak() -> None:
    """80 MB more every second, on a busy machine too."""
    begun = time.monotonic()

    def grow() -> None:
        while True:
            while len(LEAKED) < 10 * (time.monotonic() - begun):
                LEAKED.append(np.ones(1_000_000))
            time.sleep(0.1)

    threading.Thread(target=grow, daemon=True).start()


def nth(method, n: int, instead):
    """`method`, but its n-th call is another's."""
    calls = iter(range(1, 1_000_000))
    return lambda *args: (instead if next(calls) == n else method)(*args)


def fail(_conversation) -> bytes:
    raise RuntimeError("a fault of ours")


def on_ping(do) -> None:
    """Do something wrong at the first ping."""
    decode, pings = socket.decode, itertools.count()

    def decode_badly(data: bytes):
        if data[:1] == bytes([Kind.PING]) and not next(pings):
            do()
        return decode(data)

    socket.decode = decode_badly


def lose_a_frame() -> None:
    """The next audio for anybody is not sent."""
    ChatSocket._send_frame = nth(ChatSocket._send_frame, 1, drop)


async def drop(_conversation, _frame) -> None:
    pass


def send_late(method):
    async def send(conversation) -> None:
        await asyncio.sleep(1.2)
        await method(conversation)

    return send


faults = sys.argv.pop(1).split(",")
if "leak" in faults:
    leak()
if "error" in faults:
    ChatSocket._send_stats = nth(ChatSocket._send_stats, 3, fail)
if "slot" in faults:
    Scheduler.leave = nth(Scheduler.leave, 2, lambda *_args: None)
if "wait" in faults:
    ChatSocket._send_ready = nth(ChatSocket._send_ready, 3, send_late(ChatSocket._send_ready))
if "stall" in faults:
    on_ping(lambda: time.sleep(0.4))
if "chatter" in faults:
    on_ping(lambda: print("x" * 1_000_000, file=sys.stderr))
if "handles" in faults:
    on_ping(lambda: LEAKED.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(50)))
if "grudge" in faults:
    on_ping(lose_a_frame)
sys.exit(main(["serve", *sys.argv[1:]]))
