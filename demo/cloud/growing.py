"""How a full container gets others started. Two ways; which is better only a live account tells.

`spare`, the usual one: a full container asks the platform for as many spare containers as are full.
The platform's own count of containers is one as long as its count of inputs is small (every picture
of the page is an input, so containers are declared to take a hundred), and so there is always one
more than the full ones. `places`: a container takes only as many inputs as it has places, and the
platform starts others for those who wait. `bench fleet` plays both.

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
EXPECTED_PLACES = {"L40S": 8, "A100-40GB": 15, "A100": 15}  # projected; every other kind: 4


class Fleet(Protocol):
    """The containers of one deployment, as one of them sees them. Every call may raise anything."""

    async def report(self, is_full: bool) -> int:
        """Tell the others whether this one is full; how many are, this one included."""

    async def keep_spares(self, count: int) -> None:
        """Keep this many idle containers beside those in use."""

    def take_inputs(self, count: int) -> None:
        """Take at most this many requests and sockets at once in this container."""


class ModalFleet:
    """The containers of a deployed class. Full ones are listed in a shared dictionary."""

    def __init__(self, app: str, cls: str) -> None:
        self._app, self._cls = app, cls
        self._name = os.environ.get("MODAL_TASK_ID", "")

    async def report(self, is_full: bool) -> int:
        import modal  # only where the platform is

        full = modal.Dict.from_name(f"{self._app}-full", create_if_missing=True)
        await full.put.aio(self._name, time.time() if is_full else 0.0)
        young = time.time() - FORGET_SECONDS
        return len([name async for name, at in full.items.aio() if at > young])

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
        self, fleet: Fleet, base: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fleet = fleet
        self._base = base  # spares that were deployed: never fewer
        self._clock = clock
        self._asked_at: float | None = None
        self._roomy_since: float | None = None
        self._most = 0  # places that were ever free: a slow machine has fewer than slots
        self._complained = False

    async def look(self, free: int, slots: int) -> None:
        """Act on how many would be admitted. `slots` is 0 while the model loads."""
        now, self._most = self._clock(), max(self._most, free)
        if slots and not free:
            self._roomy_since = None
            if self._asked_at is None or now - self._asked_at >= RENEW_SECONDS:
                self._asked_at = now
                await self._ask(is_full=True)
        elif self._asked_at is not None:
            if free < min(ROOM, self._most):
                self._roomy_since = None
            elif self._roomy_since is None:
                self._roomy_since = now
            elif now - self._roomy_since >= CALM_SECONDS:
                await self.give_back()

    async def give_back(self) -> None:
        """Give the spare back: the container ends, or has room again."""
        if self._asked_at is not None and await self._ask(is_full=False):
            self._asked_at = None
        self._roomy_since = None

    async def _ask(self, is_full: bool) -> bool:
        """Ask the platform for a spare per full container; whether it agreed."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                count = self._base + await self._fleet.report(is_full)
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

    async def look(self, free: int, slots: int) -> None:
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


def choose_growing(environ: Mapping[str, str], fleet: Fleet | None) -> Growing | Door | None:
    """What PERSONAPLEX_AUTOSCALE asks for; None: nothing."""
    way = environ.get("PERSONAPLEX_AUTOSCALE") or "1"
    if fleet is None or way == "0":
        return None
    if way != "places":
        return Growing(fleet, int(environ.get("PERSONAPLEX_BUFFER_CONTAINERS") or 0))
    asked, kind = environ.get("PERSONAPLEX_SLOTS") or "0", environ.get("PERSONAPLEX_GPU", "")
    return Door(fleet, int(asked) or EXPECTED_PLACES.get(kind.split(",")[0], 4))


def autoscale(
    service: Service, growing: Growing | Door
) -> Callable[[web.Application], AsyncIterator[None]]:
    """A cleanup context that watches the free places while the application runs."""

    async def poll() -> None:
        while True:
            await growing.look(service.free, service.slots)
            await asyncio.sleep(LOOK_SECONDS)

    async def context(_app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(poll())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await growing.give_back()

    return context
