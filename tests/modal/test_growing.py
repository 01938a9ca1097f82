"""When a container asks for a spare one, and that it never gets in a conversation's way."""

import asyncio
import logging
import subprocess
import sys

import pytest
from aiohttp import web

from demo.cloud.growing import CALM_SECONDS, RENEW_SECONDS, Growing, autoscale
from engine.runtime.load import Overload, TickTable
from tests.modal.platform import Platform
from tests.modal.rehearsal import ROOT, SECRETS, clean, deploy
from tests.runtime.rig import Rig


class Double:
    """The platform, as far as growing sees it."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.kept: list[int] = []
        self.fault = fault

    async def keep(self, count: int) -> None:
        self.kept.append(count)
        if self.fault:
            raise self.fault


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


async def test_the_last_slot_taken_asks_for_one_spare_once(clock):
    spare = Double()
    growing = Growing(spare.keep, clock=clock)
    await growing.look(free=0, slots=0)  # the model still loads
    await growing.look(free=1, slots=4)
    assert spare.kept == []
    for _ in range(5):
        clock.now += 1
        await growing.look(free=0, slots=4)
    assert spare.kept == [1]


async def test_while_full_it_asks_again_each_minute(clock):
    spare = Double()
    growing = Growing(spare.keep, clock=clock)
    for _ in range(3):
        await growing.look(free=0, slots=4)
        clock.now += RENEW_SECONDS
    assert spare.kept == [1, 1, 1]


async def test_the_spare_is_given_back_after_two_free_slots_for_a_minute(clock):
    spare = Double()
    growing = Growing(spare.keep, base=1, clock=clock)
    await growing.look(free=0, slots=4)
    await growing.look(free=2, slots=4)
    clock.now += CALM_SECONDS - 1
    await growing.look(free=2, slots=4)
    assert spare.kept == [2]
    await growing.look(free=1, slots=4)  # one came: the minute begins anew
    clock.now += 2
    await growing.look(free=3, slots=4)
    clock.now += CALM_SECONDS - 1
    await growing.look(free=3, slots=4)
    assert spare.kept == [2]
    clock.now += 1
    await growing.look(free=3, slots=4)
    await growing.look(free=4, slots=4)
    assert spare.kept == [2, 1]  # back to what was deployed, and only once


async def test_one_slot_alone_is_room_enough(clock):
    spare = Double()
    growing = Growing(spare.keep, clock=clock)
    await growing.look(free=0, slots=1)
    await growing.look(free=1, slots=1)
    clock.now += CALM_SECONDS
    await growing.look(free=1, slots=1)
    assert spare.kept == [1, 0]


async def test_a_container_of_more_slots_than_it_holds_in_time_asks_and_gives_back(clock):
    spare = Double()
    growing = Growing(spare.keep, clock=clock)
    rig = Rig(slots=16)
    rig.scheduler.overload = Overload(lambda: rig.now, TickTable({1: 0.05, 2: 0.09, 16: 0.2}))
    await growing.look(rig.scheduler.free, slots=16)
    assert spare.kept == []
    seat = rig.join()
    await growing.look(rig.scheduler.free, slots=16)
    assert spare.kept == [1]
    rig.scheduler.leave(seat, "left")
    for _ in range(2):
        clock.now += CALM_SECONDS
        await growing.look(rig.scheduler.free, slots=16)
    assert spare.kept == [1, 0]


async def test_a_refused_call_is_logged_once_and_raises_nothing(clock, caplog):
    spare = Double(RuntimeError("not allowed"))
    growing = Growing(spare.keep, clock=clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await growing.look(free=0, slots=1)
            clock.now += RENEW_SECONDS
    assert len(spare.kept) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "no spare container: RuntimeError: not allowed"
    ]


async def test_an_application_looks_by_itself_and_gives_back_when_it_ends():
    class Full:
        free, slots = 0, 2

    class Heard(Double):
        async def keep(self, count: int) -> None:
            await super().keep(count)
            asked.set()

    asked, spare = asyncio.Event(), Heard()
    app = web.Application()
    app.cleanup_ctx.append(autoscale(Full(), Growing(spare.keep)))
    runner = web.AppRunner(app)
    await runner.setup()
    await asyncio.wait_for(asked.wait(), 60)
    await runner.cleanup()
    assert spare.kept == [1, 0]


def test_modals_autoscaler_is_told_and_keeps_its_other_bounds(tmp_path):
    """The deployed class is looked up by name and asked for one container more, by real calls."""
    code = (
        "import asyncio\n"
        "from demo.cloud.growing import keep_modal_spares\n"
        "asyncio.run(keep_modal_spares('personaplex', 'PersonaPlexServer', 1))"
    )
    with Platform(secrets=dict(SECRETS)) as platform:
        done = deploy(platform, tmp_path)
        assert done.returncode == 0, done.stdout
        environ = clean(tmp_path, PYTHONPATH=str(ROOT), **platform.environ)
        subprocess.run([sys.executable, "-c", code], env=environ, check=True)
        (told,) = platform.requests("FunctionUpdateSchedulingParams")
    assert told.function_id == "fu-PersonaPlexServer.*"
    assert told.settings.buffer_containers == 1
    assert {field.name for field, _ in told.settings.ListFields()} == {"buffer_containers"}
