"""A TCP proxy that is a bad network: jitter, in order; stalls and narrowness on demand."""

import asyncio
import random
import threading
from types import TracebackType

JITTER_SECONDS = 0.08
PIECE_BYTES = 16 * 1024


class BadNetwork:
    """`with BadNetwork(port) as net:` … connect to `net.port`; `net.stall(1.0)` stops both ways."""

    def __init__(self, port: int, seed: int = 1) -> None:
        self.port = 0
        self.shaking = False  # whether there is jitter
        self._target = port
        self._random = random.Random(seed)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._rate = 0.0

    def __enter__(self) -> "BadNetwork":
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def stall(self, seconds: float) -> None:
        """Nothing arrives anywhere for so long, then everything at once."""
        self._loop.call_soon_threadsafe(self._stall, seconds)

    def _stall(self, seconds: float) -> None:
        if self._end_of_stall:
            self._end_of_stall.cancel()
        self._moving.clear()
        self._end_of_stall = self._loop.call_later(seconds, self._moving.set)

    def cut(self) -> None:
        """Every connection breaks, on both sides, and nobody says goodbye."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def narrow(self, bytes_per_second: float) -> None:
        """From now on no more than this goes each way of each connection; 0: any number."""
        self._rate = bytes_per_second

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over, self._moving = asyncio.Event(), asyncio.Event()
        self._moving.set()
        self._end_of_stall: asyncio.TimerHandle | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._open: set[asyncio.Task] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._open)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(asyncio.current_task())
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, back]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, back))
                group.create_task(self._carry(there, writer))
        except* ConnectionError:
            pass
        self._open.discard(asyncio.current_task())

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction; a piece never overtakes the one before it."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deliver(pieces, writer))
            while data := await reader.read(PIECE_BYTES):
                wait = self._random.random() * JITTER_SECONDS if self.shaking else 0.0
                pieces.put_nowait((self._loop.time() + wait, data))
            pieces.put_nowait((0.0, b""))

    async def _deliver(self, pieces: asyncio.Queue, writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await pieces.get()
            await self._sleep_until(due)
            await self._moving.wait()
            if self._rate:
                await asyncio.sleep(len(data) / self._rate)
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    async def _sleep_until(self, time: float) -> None:
        await asyncio.sleep(max(0.0, time - self._loop.time()))
