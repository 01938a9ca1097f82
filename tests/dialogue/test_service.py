"""A hang is noticed: by rules on a fake clock wherever it is planted, and by real processes."""

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from engine.dialogue.service import Service
from engine.dialogue.session import Session, SessionConfig
from engine.errors import InternalError, ModelError
from engine.runtime.embedded import EmbeddedBackend
from engine.runtime.scheduler import Watchdog
from engine.runtime.seat import Ready
from tests.dialogue.hanging_server import HANGS
from tests.wire.peer import connected
from tests.wire.test_serve import free_port

# -- the rules, on a fake clock --------------------------------------------------------------------


@pytest.fixture
def _by_hand(monkeypatch):
    """The test looks; no watchdog does."""
    monkeypatch.setattr(Watchdog, "start", lambda self: None)


by_hand = pytest.mark.usefixtures("_by_hand")


class HangingBackend(EmbeddedBackend):
    """Hangs where it is told to, until the test is over."""

    def __init__(self, place: str) -> None:
        self.entered, self.over = threading.Event(), threading.Event()
        if place == "load":
            self._hang()
        super().__init__(2)
        if place:
            setattr(self, place, lambda *_: self._hang())

    def _hang(self) -> None:
        self.entered.set()
        self.over.wait(60)


class Watched:
    """A service that a test looks after itself, every second of a clock of its own."""

    def __init__(self, place: str = "", load=None) -> None:
        self.place, self.deaths, self.now = place, [], 1000.0
        self.backends: list[HangingBackend] = []
        self.service = Service(load or self._load, on_death=self.deaths.append)

    def _load(self, _progress) -> EmbeddedBackend:
        backend = HangingBackend.__new__(HangingBackend)
        self.backends.append(backend)
        backend.__init__(self.place)
        return backend

    def look(self, seconds: int) -> bool:
        for _ in range(seconds):
            self.now += 1.0
            scheduler = self.service._scheduler
            if (scheduler.watchdog if scheduler else self.service._load_watch).look(self.now):
                return True
        return False


@asynccontextmanager
async def watched(place: str) -> AsyncIterator[Watched]:
    it = Watched(place)
    it.service.start()
    if place != "load":
        await asyncio.to_thread(it.service.wait, 60)
    yield it
    it.backends[0].over.set()
    it.service.stop()


async def reason_of(session: Session) -> str:
    with pytest.raises(InternalError) as ended:
        async for _ in session.outputs():
            pass
    return str(ended.value)


@by_hand
@pytest.mark.parametrize("place", ["open", "listen", "speak", "prepare"])
async def test_a_hang_is_told_to_health_then_to_callers_then_to_the_owner(place):
    async with watched(place) as it, Session(it.service, SessionConfig()) as session:
        session.connect()
        assert await asyncio.to_thread(it.backends[0].entered.wait, 60)
        assert not it.look(3)
        assert it.service.stuck == ""
        assert not it.look(5)
        assert it.service.stuck
        assert it.deaths == []
        assert it.look(25)
        assert await reason_of(session) == "internal error: the model has stopped"
        [why] = it.deaths
        assert isinstance(why, ModelError)
        assert "for 30 s" in str(why) or "for 31 s" in str(why)
        assert "\n" not in str(why)
        with pytest.raises(InternalError, match="the model has stopped"):
            it.service.session(SessionConfig())


@by_hand
async def test_a_hang_in_close_is_noticed_though_nobody_is_seated():
    async with watched("close") as it:
        async with Session(it.service, SessionConfig()) as session:
            session.connect()
            async for output in session.outputs():
                if isinstance(output, Ready):
                    break
        assert await asyncio.to_thread(it.backends[0].entered.wait, 60)
        assert it.service.free == 2
        assert it.look(35)
        assert "Scheduler._close" in str(it.deaths[0])


@by_hand
async def test_a_loader_that_hangs_is_noticed_and_told_to_who_waits():
    async with watched("load") as it:
        assert await asyncio.to_thread(it.backends[0].entered.wait, 60)
        assert not it.look(595)
        assert "no progress of 'starting'" in it.service.stuck
        assert it.look(10)
        with pytest.raises(ModelError, match="no progress of 'starting'"):
            it.service.wait(1)
        with pytest.raises(InternalError, match="the model has stopped"):
            it.service.check_open()


@by_hand
def test_a_load_that_goes_on_slowly_is_no_hang():
    go, done, reports = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)

    def load(progress):
        while not done.is_set():
            assert go.acquire(timeout=60)
            progress("downloading", 1.0)  # of 17 GB: the percent may well be the same
            reports.release()
        return EmbeddedBackend(1)

    it = Watched(load=load)
    it.service.start()
    for _ in range(3):
        assert not it.look(590)
        go.release()
        assert reports.acquire(timeout=60)
    done.set()
    go.release()
    it.service.wait(60)
    assert not it.look(1)
    assert it.service.stuck == ""
    it.service.stop()


@by_hand
async def test_an_idle_server_and_a_quiet_conversation_are_no_hang():
    async with watched("") as it:
        assert not it.look(100)
        async with Session(it.service, SessionConfig()) as session:
            session.connect()
            async for output in session.outputs():
                if isinstance(output, Ready):
                    break
            scheduler = it.service.scheduler
            turns = scheduler._turns
            for _ in range(1000):
                if scheduler._turns != turns:  # its thread takes one though there is no audio
                    break
                await asyncio.sleep(0.05)
            assert not it.look(20)
            assert scheduler._turns > turns
        assert it.deaths == []


def watchdog(signs: list[int | None], told: list[str]) -> Watchdog:
    """Whose n-th look sees the n-th sign, for ever the last one."""
    seen = iter(signs)
    return Watchdog(30.0, 6, lambda: [("no turn", next(seen, signs[-1]))], told.append)


def test_a_turn_that_comes_back_in_time_is_forgiven():
    told: list[str] = []
    dog = watchdog([1] * 29 + [2] * 29 + [None] * 100 + [3] * 29 + [4], told)
    stuck = {dog.stuck for second in range(188) if not dog.look(float(second))}
    assert "no turn for 28 s" in stuck
    assert not dog.hung
    assert told == []
    assert any(dog.look(200.0 + second) for second in range(40))
    assert told == ["the model has stopped: no turn for 31 s"]


def test_a_pause_of_the_whole_process_is_no_hang():
    dog = watchdog([1], [])
    assert not dog.look(0.0)
    assert not dog.look(4000.0)
    assert dog.stuck == ""


# -- real processes --------------------------------------------------------------------------------


@asynccontextmanager
async def hanging_server(*options: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A server whose `listen` hangs, and which is ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.dialogue.hanging_server", "listen"),
        *("--model", "embedded", "--host", "127.0.0.1", "--port", str(port), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await leave_state(url, process, (0, ""), (503, "waking"))
        yield url, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def leave_state(url: str, process, *states: tuple[int, str]) -> tuple[int, str]:
    """Ask for the server's health until it is none of these; what it is then."""
    async with aiohttp.ClientSession() as http:
        for _ in range(1000):
            assert process.returncode is None
            try:
                async with http.get(url + "/healthz") as answer:
                    state = answer.status, (await answer.json())["status"]
            except aiohttp.ClientConnectionError:
                state = 0, ""
            if state not in states:
                return state
            await asyncio.sleep(0.05)
    raise AssertionError(f"still {states}")


async def test_a_process_that_hangs_says_why_and_ends_with_1():
    async with hanging_server("--hang-s", "3", "--drain-s", "0") as (url, process):
        async with connected(url) as peer:
            told = await leave_state(url, process, (200, "ok"))
            process.send_signal(signal.SIGUSR1)  # it may die of it, however late we saw it
            text, code = await peer.end()
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert told == (503, "stuck")
    assert (text, code) == ("internal error: the model has stopped", 1011)
    assert process.returncode == 1
    [line] = [line for line in out.decode().splitlines() if line.startswith("error: the model has")]
    assert "no turn in Scheduler._tick" in line


async def test_a_signal_ends_a_process_that_hangs():
    async with hanging_server("--drain-s", "0.2") as (url, process), connected(url) as peer:
        assert peer
        while HANGS not in (await process.stdout.readline()).decode():  # the first tick
            assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 100)  # by rights less than three
    assert process.returncode == 1
