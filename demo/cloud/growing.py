"""How a full container gets others started. Two ways; which is better only a live account tells.

`spare`, the usual one: a full container asks the platform for as many spare containers as are full,
and one that wakes for as many as its waiting callers will fill. The platform itself counts one
container for a hundred inputs (every picture of the page is an input, so this is what is declared),
and so there is always one more than the full ones. `places`: a container takes only as many inputs
as it has places, and the platform starts others for those who wait. `bench fleet` plays both.

A call that fails is logged once and never reaches a conversation.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from aiohttp import web

from engine.dialogue.service import Service

logger = logging.getLogger(__name__)

CALM_SECONDS = 60.0  # with room for newcomers, before the spare is given back
RENEW_SECONDS = 60.0  # while full: it says that it still is, and counts the others
FORGET_SECONDS = 2.5 * RENEW_SECONDS  # after which a container that says nothing has ended
LOOK_SECONDS = 1.0  # between two looks at the places
CALL_SECONDS = 10.0  # what one call to the platform may take
ROOM = 2  # free places that mean a newcomer needs no other container
EXPECTED_PLACES = {
    "L40S": 16,
    "A100-40GB": 15,
    "A100": 15,
    "H100": 16,
}  # bf16, docs/modal-scaling.md; others: 4


class Fleet(Protocol):
    """The containers of one deployment, as one of them sees them. Every call may raise anything."""

    async def report(self, filled: int) -> int:
        """Tell the others how many containers this one's callers fill; the sum of what all tell."""

    async def keep_spares(self, count: int) -> None:
        """Keep this many idle containers beside those in use."""

    def take_inputs(self, count: int) -> None:
        """Take at most this many requests and sockets at once in this container."""


class ModalFleet:
    """The containers of a deployed class. Full ones are listed in a shared dictionary."""

    def __init__(self, app: str, cls: str) -> None:
        self._app, self._cls = app, cls
        self._name = os.environ.get("MODAL_TASK_ID", "")

    async def report(self, filled: int) -> int:
        import modal  # only where the platform is

        full = modal.Dict.from_name(f"{self._app}-full", create_if_missing=True)
        await full.put.aio(self._name, (filled, time.time()))
        young = time.time() - FORGET_SECONDS
        return sum([count async for _, (count, at) in full.items.aio() if at > young])

    async def keep_spares(self, count: int) -> None:
        import modal

        server = modal.Cls.from_name(self._app, self._cls)()
        await server.update_autoscaler.aio(buffer_containers=count)

    def take_inputs(self, count: int) -> None:
        from modal.experimental import set_local_input_concurrency

        set_local_input_concurrency(count)


class Growing:
    """When to ask for spares and when to give them back. Belongs to one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        base: int = 0,
        expected: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._base = base  # spares that were deployed: never fewer
        self._expected = expected  # places, as long as they are not known
        self._clock = clock
        self._told = 0  # how many containers our callers fill, as the others know it
        self._told_at = 0.0
        self._roomy_since: float | None = None
        self._most = 0  # places that were ever free: a slow machine has fewer than slots
        self._complained = False

    async def look(self, free: int, slots: int, callers: int) -> None:
        """Act on how many would be admitted, and how many are here.

        `slots` is 0 while the model loads: then all callers wait.
        """
        now, self._most = self._clock(), max(self._most, free)
        filled = int(not free) if slots else callers // self._expected
        if filled:
            self._roomy_since = None
            if filled > self._told or now - self._told_at >= RENEW_SECONDS:
                self._told, self._told_at = filled, now
                await self._ask(filled)
        elif self._told:
            if free < min(ROOM, self._most):
                self._roomy_since = None
            elif self._roomy_since is None:
                self._roomy_since = now
            elif now - self._roomy_since >= CALM_SECONDS:
                await self.give_back()

    async def give_back(self) -> None:
        """Give the spares back: the container ends, or has room again."""
        if self._told and await self._ask(0):
            self._told = 0
        self._roomy_since = None

    async def _ask(self, filled: int) -> bool:
        """Ask the platform for a spare per full container; whether it agreed."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                count = self._base + await self._fleet.report(filled)
                await self._fleet.keep_spares(count)
        except Exception as error:  # the platform's boundary: growing is a favour, talking is not
            if not self._complained:
                logger.warning("no spare container: %s: %s", type(error).__name__, error)
            self._complained = True
            return False
        logger.info("spare containers wanted: %d", count)
        return True


class Door:
    """Lets in as many as there are places: the expected number at first, the true one once.

    It never closes, and is not moved again: Modal's own loop may take 15 s to notice a larger
    number, because it is not told in its own thread.
    """

    def __init__(self, fleet: Fleet, expected: int) -> None:
        self._fleet = fleet
        self._places = 0
        self._open(expected)

    async def look(self, free: int, slots: int, callers: int) -> None:
        """Take over the number of places once the model is there. `slots` is 0 until then."""
        if slots and slots != self._places:
            self._open(slots)

    async def give_back(self) -> None:
        """Nothing was asked for."""

    def _open(self, places: int) -> None:
        self._places = places
        try:
            self._fleet.take_inputs(places)
            logger.info("inputs taken at once: %d", places)
        except Exception as error:  # the platform's boundary
            logger.warning("the number of inputs stays: %s: %s", type(error).__name__, error)


def choose_growing(
    environ: Mapping[str, str], fleet: Fleet | None, slots: int = 0
) -> Growing | Door | None:
    """What PERSONAPLEX_AUTOSCALE asks for; None: nothing. `slots`: as set; 0: as many as fit."""
    way = environ.get("PERSONAPLEX_AUTOSCALE") or "1"
    if fleet is None or way == "0":
        return None
    kind = environ.get("PERSONAPLEX_GPU", "")
    expected = slots or EXPECTED_PLACES.get(kind.split(",")[0], 4)
    if way == "places":
        return Door(fleet, expected)
    return Growing(fleet, int(environ.get("PERSONAPLEX_BUFFER_CONTAINERS") or 0), expected)


def autoscale(
    service: Service, growing: Growing | Door
) -> Callable[[web.Application], AsyncIterator[None]]:
    """A cleanup context that watches the free places while the application runs."""

    async def poll() -> None:
        while True:
            await growing.look(service.free, service.slots, len(service.sessions))
            await asyncio.sleep(LOOK_SECONDS)

    async def context(_app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(poll())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await growing.give_back()

    return context
