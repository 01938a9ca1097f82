"""Asks the platform for a spare container when this one is full, and gives it back later.

The platform cannot know how many conversations fit into a container. It counts inputs, and every
picture of the page is one. Therefore the container itself asks. A call that fails is logged once
and never reaches a conversation.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from engine.dialogue.service import Service

logger = logging.getLogger(__name__)

CALM_SECONDS = 60.0  # with room for newcomers, before the spare is given back
RENEW_SECONDS = 60.0  # while full: another container may have given the spare back meanwhile
LOOK_SECONDS = 1.0  # between two looks at the places
CALL_SECONDS = 10.0  # what one call to the platform may take
ROOM = 2  # free places that mean a newcomer needs no other container


KeepSpares = Callable[[int], Awaitable[None]]  # the number of them


async def keep_modal_spares(app: str, cls: str, count: int) -> None:
    """Keep `count` idle containers of a deployed class beside those in use. May raise anything."""
    import modal  # only where the platform is

    await modal.Cls.from_name(app, cls)().update_autoscaler.aio(buffer_containers=count)


class Growing:
    """When to ask and when to give back. Belongs to one event loop."""

    def __init__(
        self, keep: KeepSpares, base: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keep_spares = keep
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
                await self._keep(self._base + 1)
        elif self._asked_at is not None:
            if free < min(ROOM, self._most):
                self._roomy_since = None
            elif self._roomy_since is None:
                self._roomy_since = now
            elif now - self._roomy_since >= CALM_SECONDS:
                await self.give_back()

    async def give_back(self) -> None:
        """Give the spare back: the container ends, or has room again."""
        if self._asked_at is not None and await self._keep(self._base):
            self._asked_at = None
        self._roomy_since = None

    async def _keep(self, count: int) -> bool:
        """Ask the platform; whether it agreed."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._keep_spares(count)
        except Exception as error:  # the platform's boundary: growing is a favour, talking is not
            if not self._complained:
                logger.warning("no spare container: %s: %s", type(error).__name__, error)
            self._complained = True
            return False
        logger.info("spare containers wanted: %d", count)
        return True


def autoscale(
    service: Service, growing: Growing
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
