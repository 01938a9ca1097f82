"""Lines that drop again and again, under conversations that must go on as if nothing had been.

Each client talks through a wire of its own, which is cut at random moments: reset, ended without a
goodbye, or silent for ever. It comes back with its secret and what it has heard. In the end the
agent's frames are compared with those of an undisturbed run that was given the same user frames.

    python -m tests.wire.drops [--model embedded|DIR] [--drops 200] [--talks 16] [--seed 1]
"""

import argparse
import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import numpy as np

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, PAD, ServerConfig
from engine.dialogue.director import Director
from engine.dialogue.floor import UserFloor
from engine.runtime.backend import Backend, HeardRow, Opening, Spoken
from engine.runtime.embedded import EmbeddedBackend
from engine.runtime.load import Overload
from engine.runtime.seat import QUIET_PEAK
from engine.runtime.starting import load_personaplex
from engine.wire.protocol import Kind
from tests.serving import ApiServer
from tests.wire.peer import Peer, connected, eventually

TINY = Path(__file__).parents[1] / "golden" / "tiny"
CUTS = ("reset", "ended", "silent")
PATIENCE_SECONDS = 60.0
LAST_FRAMES = 12  # of the agent that a caller hears before its goodbye
MOST_SAYS = 10  # of one caller: so many may wait
SENTENCE = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen."


def make_backend(model: str, slots: int) -> Backend:
    if model == "embedded":
        return EmbeddedBackend(slots)
    return load_personaplex(ServerConfig(model=model, device="cpu", slots=slots))


# -- a wire that can be cut ------------------------------------------------------------------------


class Wire:
    """A TCP proxy of one client. `cut` ends what is open; what comes after it is a new line."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._lines: list[tuple[asyncio.Task, list[asyncio.StreamWriter]]] = []

    @contextlib.asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        """The address of its near end."""
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()
        for task, writers in self._lines:
            task.cancel()
            for writer in writers:
                writer.transport.abort()
        await asyncio.sleep(0)  # until they are closed

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        self._lines.append((asyncio.current_task(), writers))
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(back)
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):  # one side has ended: the other hears so
            writer.close()

    def cut(self, how: str) -> None:
        for task, writers in self._lines:
            task.cancel()
            for writer in writers:
                match how:
                    case "reset":
                        writer.transport.abort()
                    case "ended":
                        writer.close()
                    case "silent":  # both ends stay open, and nothing comes through any more
                        writer.transport.pause_reading()
        if how != "silent":
            self._lines.clear()


# -- what the backend and the directors did --------------------------------------------------------


@dataclass
class Record:
    """One conversation at its backend: what went in and what came out, tick by tick."""

    opening: Opening
    heard: list[np.ndarray] = field(default_factory=list)
    fed: list[tuple[int, bool]] = field(default_factory=list)
    codes: list[list[int]] = field(default_factory=list)  # of the agent; none: embedded
    pcm: list[np.ndarray] = field(default_factory=list)

    def note(self, fed: tuple[int, bool], spoken: Spoken, slot: int) -> None:
        self.fed.append(fed)
        self.pcm.append(spoken.pcm[slot].copy())
        if spoken.codes is not None:
            self.codes.append(spoken.codes[slot].tolist())


class RecordingBackend:
    """A backend that remembers its conversations; else it is the one inside."""

    def __init__(self, inside: Backend) -> None:
        self.inside = inside
        self.records: dict[int, Record] = {}  # slot -> its newest conversation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def open(self, slot: int, opening: Opening):
        self.records[slot] = Record(opening)
        return self.inside.open(slot, opening)

    def listen(self, pcm: np.ndarray, active: np.ndarray):
        self._active = np.flatnonzero(active)
        for slot in self._active:
            self.records[slot].heard.append(pcm[slot].copy())
        return self.inside.listen(pcm, active)

    def speak(self, text: np.ndarray, hush: np.ndarray):
        spoken = self.inside.speak(text, hush)
        for slot in self._active:
            self.records[slot].note((int(text[slot]), bool(hush[slot])), spoken, slot)
        return spoken


class RecordedDirector(Director):
    """Remembers what it was told, and before which step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.steps = 0
        self.told: list[tuple[int, Any]] = []

    def take(self, command: Any) -> list[Any]:
        self.told.append((self.steps, command))
        return super().take(command)

    def step(self, *row: Any) -> tuple[int, bool]:
        self.steps += 1
        return super().step(*row)


def run_undisturbed(backend: Backend, record: Record, told: list[tuple[int, Any]]) -> Record:
    """The same conversation alone, without a pause: the same user frames and commands."""
    run, slot, told = Record(record.opening), 0, list(told)
    director = Director(backend.tokenizer, floor=UserFloor(None, words_come=False))
    for _ in backend.open(slot, record.opening):
        pass
    peak_out, size = 0.0, backend.slots
    for tick, heard in enumerate(record.heard):
        pcm, active = np.zeros((size, FRAME_SAMPLES), np.float32), np.arange(size) == slot
        pcm[slot] = heard
        while told and told[0][0] <= tick:
            director.take(told.pop(0)[1])
        sampled = int(backend.listen(pcm, active).text[slot])
        token, hush = director.step(sampled, HeardRow(), float(np.abs(heard).max()), peak_out)
        director.events()
        spoken = backend.speak(np.where(active, token, PAD), active & hush)
        run.note((token, hush), spoken, slot)
        peak_out = float(np.abs(run.pcm[-1]).max()) if tick else 0.0
    backend.close(slot)
    return run


# -- a client that comes back ----------------------------------------------------------------------


class Caller:
    """One conversation over a bad wire; what it heard, without a gap and without a repetition."""

    def __init__(self, wire: Wire, url: str, server: ApiServer, seed: int) -> None:
        self.wire, self.url, self.server = wire, url, server
        self.random = random.Random(seed)
        self.seed = seed
        self.secret = ""
        self.session = ""
        self.pcm = np.zeros(0, np.float32)
        self.cuts: Counter[str] = Counter()
        self.waits: list[float] = []  # from the new connection to its 0x00
        self.says = 0
        self.leaks: list[Any] = []  # what a second holder of a secret was given

    async def talk(self, drops: int) -> None:
        """Talk, with so many drops, and say goodbye."""
        for number in range(drops + 1):
            last = number == drops
            while not await self._talk_once(first=not self.secret, last=last):
                pass
            if not last and not number % 2:
                await asyncio.sleep(self.random.uniform(0, 0.3))  # else it is back at once

    async def _talk_once(self, first: bool, last: bool) -> bool:
        """One line, up to its cut; False: it was cut before its 0x00."""
        used, query = self.secret, {"events": 1, "format": "pcm16"}
        if first:
            query |= {"seed": self.seed, "text_prompt": "You are calm."}
        else:
            query |= {"resume": used, "heard": len(self.pcm) / 24_000}
        early = not first and not last and self.random.random() < 0.2
        async with contextlib.AsyncExitStack() as stack:
            began = time.monotonic()
            if early:  # the next cut comes while it connects
                cut_after = self.random.uniform(0, 0.05)
                asyncio.get_running_loop().call_later(cut_after, self._cut)
            try:
                async with asyncio.timeout(1.0 if early else PATIENCE_SECONDS):
                    peer = await stack.enter_async_context(connected(self.url, **query))
                    await self._shake_hands(peer, first)
            except (aiohttp.ClientError, TimeoutError, AssertionError) as error:
                if not early:
                    raise AssertionError(f"a line was not taken over: {error!r}") from error
                return False
            self.waits.append(time.monotonic() - began)
            if used and not early:
                await self._try_again(used)
            if self.says < MOST_SAYS and self.random.random() < 0.5:
                self.says += 1
                with contextlib.suppress(aiohttp.ClientError):
                    await peer.say(SENTENCE)
            if last:  # a busy machine may have sent next to nothing so far
                await self._chat(peer, PATIENCE_SECONDS, frames=LAST_FRAMES)
            else:
                await self._chat(peer, self.random.uniform(0.05, 1.5))
            if last:
                await peer.ws.close()
                return True
            if not early:
                self._cut()
            if connection := peer.ws._response.connection:
                connection.transport.abort()  # a client that is cut off asks nobody
        return True

    def _cut(self) -> None:
        how = self.random.choice(CUTS)
        self.cuts[how] += 1
        self.wire.cut(how)

    async def _shake_hands(self, peer: Peer, first: bool) -> None:
        ready = await peer.event("ready")
        assert ready.get("resumed", False) is not first
        self.secret = ready["resume"]
        self.session = ready["session"]
        await peer.until(Kind.HANDSHAKE)
        if not first:  # it goes on where this client stopped to hear
            assert abs(ready["t"] - len(self.pcm) / 24_000) < 1e-3, ready["t"]

    async def _chat(self, peer: Peer, seconds: float, frames: float = float("inf")) -> None:
        """Send a frame each 80 ms and take what comes, for so long or until so much has come."""
        mark = len(peer.heard)
        sending = asyncio.create_task(self._send(peer))
        end = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):  # only where nothing comes: the line is cut
            async with asyncio.timeout(seconds + 1.0):
                while await peer.next() is not None and time.monotonic() < end:
                    if sum(kind is Kind.AUDIO for kind, _ in peer.heard[mark:]) >= frames:
                        break
        sending.cancel()
        heard = [data for kind, data in peer.heard[mark:] if kind is Kind.AUDIO]
        self.pcm = np.concatenate(
            [self.pcm, np.frombuffer(b"".join(heard), "<i2").astype(np.float32) / 32768]
        )
        assert not peer.errors, peer.errors

    async def _send(self, peer: Peer) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            while True:
                hum = 2 * QUIET_PEAK * np.sin(np.arange(FRAME_SAMPLES) * self.random.random())
                await peer.send(Kind.AUDIO, (hum * 32767).astype("<i2").tobytes())
                await asyncio.sleep(FRAME_SECONDS)

    async def _try_again(self, used: str) -> None:
        """Somebody else has the secret that was used."""
        async with connected(self.server.url, resume=used, events=1) as second:
            reason, code = await second.end()
        got = [(kind.name, data[:40]) for kind, data in second.heard if kind is not Kind.ERROR]
        if got or not reason.startswith("gone: ") or code != 1008:
            self.leaks.append((reason, code, got))


async def drop_lines(model: str, drops: int, talks: int, seed: int) -> dict[str, Any]:
    """Run the conversations; figures. Raises AssertionError where one did not go on."""
    backend = RecordingBackend(make_backend(model, talks))
    patches = (
        patch.object(Overload, "add_tick", lambda overload, seconds: None),
        patch("engine.dialogue.session.Director", RecordedDirector),
    )
    with contextlib.ExitStack() as stack:
        for patched in patches:
            stack.enter_context(patched)
        server = stack.enter_context(ApiServer(load=lambda progress: backend))
        port = int(server.url.rpartition(":")[2])
        kept: dict[str, tuple[Record, RecordedDirector]] = {}

        async def call(number: int) -> Caller:
            wire = Wire(port)
            async with wire.laid() as url:
                caller = Caller(wire, url, server, seed * 1000 + number)
                watching = asyncio.create_task(keep_records(caller))
                await caller.talk(drops // talks + (number < drops % talks))
                await watching
            return caller

        async def keep_records(caller: Caller) -> None:
            await eventually(lambda: bool(caller.session))
            (session,) = [s for s in server.engine.sessions if s.id == caller.session]
            kept[session.id] = backend.records[session._seat.slot], session.director

        callers = await asyncio.gather(*(call(number) for number in range(talks)))
        await eventually(lambda: not server.engine.sessions)
        assert server.engine.free == talks, "a slot was lost"
        assert not len(server.engine.ghosts)
        ended = server.engine.metrics.text().decode()
    alone = make_backend(model, 1)
    frames = 0
    for caller in callers:
        record, director = kept[caller.session]
        run = await asyncio.to_thread(run_undisturbed, alone, record, director.told)
        assert run.fed == record.fed, "other text tokens than without a drop"
        assert run.codes == record.codes, "other audio tokens than without a drop"
        whole = np.concatenate(record.pcm[1:])  # without the bootstrap
        np.testing.assert_allclose(np.concatenate(run.pcm[1:]), whole, atol=1e-5)
        heard = np.clip(whole, -1, 1)[: len(caller.pcm)]
        assert len(caller.pcm) <= len(whole)
        np.testing.assert_allclose(caller.pcm, heard, atol=2 / 32768, err_msg="not all was heard")
        assert not caller.leaks, caller.leaks
        frames += len(caller.pcm) // FRAME_SAMPLES
    waits = np.array([wait for caller in callers for wait in caller.waits])
    return {
        "model": Path(model).name,
        "conversations": talks,
        "drops": sum(sum(caller.cuts.values()) for caller in callers),
        "cuts": dict(sum((caller.cuts for caller in callers), Counter())),
        "frames heard": frames,
        "audio tokens": sum(8 * len(r.codes) for r, _ in kept.values()),
        "words said": sum(token > PAD for r, _ in kept.values() for token, _ in r.fed),
        "0x00 after (ms, p50, p99)": np.percentile(waits * 1e3, (50, 99)).round(1).tolist(),
        "ended": [line for line in ended.splitlines() if "ended_total{" in line],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="embedded", help="embedded, or a checkpoint")
    parser.add_argument("--drops", type=int, default=200)
    parser.add_argument("--talks", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(drop_lines(args.model, args.drops, args.talks, args.seed))))


if __name__ == "__main__":
    main()
