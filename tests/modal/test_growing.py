"""When a container asks for a spare one, and that it never gets in a conversation's way."""

import asyncio
import logging
import subprocess
import sys

import pytest
from aiohttp import web

from demo.cloud.growing import (
    CALM_SECONDS,
    EXPECTED_PLACES,
    RENEW_SECONDS,
    Door,
    Growing,
    autoscale,
    choose_growing,
)
from engine.runtime.load import Overload, TickTable
from tests.modal.platform import Platform
from tests.modal.rehearsal import ROOT, SECRETS, clean, deploy
from tests.runtime.rig import Rig


class Double:
    """The platform, as far as growing sees it."""

    def __init__(self, fault: Exception | None = None, others: int = 0) -> None:
        self.kept: list[int] = []
        self.taken: list[int] = []
        self.fault = fault
        self.others = others  # full containers beside this one

    async def report(self, filled: int) -> int:
        return self.others + filled

    async def keep_spares(self, count: int) -> None:
        self.kept.append(count)
        if self.fault:
            raise self.fault

    def take_inputs(self, count: int) -> None:
        self.taken.append(count)
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
    growing = Growing(spare, clock=clock)
    await growing.look(free=0, slots=0, callers=0)  # the model still loads
    await growing.look(free=1, slots=4, callers=0)
    assert spare.kept == []
    for _ in range(5):
        clock.now += 1
        await growing.look(free=0, slots=4, callers=0)
    assert spare.kept == [1]


async def test_while_full_it_asks_again_each_minute(clock):
    spare = Double()
    growing = Growing(spare, clock=clock)
    for _ in range(3):
        await growing.look(free=0, slots=4, callers=0)
        clock.now += RENEW_SECONDS
    assert spare.kept == [1, 1, 1]


async def test_the_spare_is_given_back_after_two_free_slots_for_a_minute(clock):
    spare = Double()
    growing = Growing(spare, base=1, clock=clock)
    await growing.look(free=0, slots=4, callers=0)
    await growing.look(free=2, slots=4, callers=0)
    clock.now += CALM_SECONDS - 1
    await growing.look(free=2, slots=4, callers=0)
    assert spare.kept == [2]
    await growing.look(free=1, slots=4, callers=0)  # one came: the minute begins anew
    clock.now += 2
    await growing.look(free=3, slots=4, callers=0)
    clock.now += CALM_SECONDS - 1
    await growing.look(free=3, slots=4, callers=0)
    assert spare.kept == [2]
    clock.now += 1
    await growing.look(free=3, slots=4, callers=0)
    await growing.look(free=4, slots=4, callers=0)
    assert spare.kept == [2, 1]  # back to what was deployed, and only once


async def test_one_slot_alone_is_room_enough(clock):
    spare = Double()
    growing = Growing(spare, clock=clock)
    await growing.look(free=0, slots=1, callers=0)
    await growing.look(free=1, slots=1, callers=0)
    clock.now += CALM_SECONDS
    await growing.look(free=1, slots=1, callers=0)
    assert spare.kept == [1, 0]


async def test_a_container_of_more_slots_than_it_holds_in_time_asks_and_gives_back(clock):
    spare = Double()
    growing = Growing(spare, clock=clock)
    rig = Rig(slots=16)
    rig.scheduler.overload = Overload(lambda: rig.now, TickTable({1: 0.05, 2: 0.09, 16: 0.2}))
    await growing.look(rig.scheduler.free, slots=16, callers=0)
    assert spare.kept == []
    seat = rig.join()
    await growing.look(rig.scheduler.free, slots=16, callers=0)
    assert spare.kept == [1]
    rig.scheduler.leave(seat, "left")
    for _ in range(2):
        clock.now += CALM_SECONDS
        await growing.look(rig.scheduler.free, slots=16, callers=0)
    assert spare.kept == [1, 0]


async def test_a_refused_call_is_logged_once_and_raises_nothing(clock, caplog):
    spare = Double(RuntimeError("not allowed"))
    growing = Growing(spare, clock=clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await growing.look(free=0, slots=1, callers=0)
            clock.now += RENEW_SECONDS
    assert len(spare.kept) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "no spare container: RuntimeError: not allowed"
    ]


async def test_an_application_looks_by_itself_and_gives_back_when_it_ends():
    class Full:
        free, slots, sessions = 0, 2, frozenset()

    class Heard(Double):
        async def keep_spares(self, count: int) -> None:
            await super().keep_spares(count)
            asked.set()

    asked, spare = asyncio.Event(), Heard()
    app = web.Application()
    app.cleanup_ctx.append(autoscale(Full(), Growing(spare)))
    runner = web.AppRunner(app)
    await runner.setup()
    await asyncio.wait_for(asked.wait(), 60)
    await runner.cleanup()
    assert spare.kept == [1, 0]


async def test_it_asks_for_one_more_than_the_full_containers(clock):
    spare = Double(others=2)
    growing = Growing(spare, base=1, clock=clock)
    await growing.look(free=0, slots=4, callers=0)
    assert spare.kept == [4]  # three are full; the platform counts one by itself
    spare.others = 1
    await growing.give_back()
    assert spare.kept == [4, 2]  # another one is still full


async def test_while_it_wakes_it_asks_for_as_many_as_its_callers_will_fill(clock):
    spare = Double()
    growing = Growing(spare, expected=4, clock=clock)
    for callers in (3, 4, 7, 8, 30, 29):
        clock.now += 1
        await growing.look(free=0, slots=0, callers=callers)
    assert spare.kept == [1, 2, 7]
    await growing.look(free=0, slots=4, callers=4)  # warm: the others try again elsewhere
    assert spare.kept == [1, 2, 7]
    clock.now += RENEW_SECONDS
    await growing.look(free=0, slots=4, callers=4)
    assert spare.kept == [1, 2, 7, 1]


async def test_a_door_takes_the_expected_number_then_the_true_one_and_never_moves_again():
    fleet = Double()
    door = Door(fleet, expected=4)
    for slots in (0, 0, 3, 3, 3):
        await door.look(free=1, slots=slots, callers=9)
    await door.give_back()
    assert fleet.taken == [4, 3]


async def test_a_door_that_cannot_be_set_is_a_line_in_the_log(caplog):
    door = Door(Double(RuntimeError("no such thing")), expected=4)
    await door.look(free=1, slots=4, callers=0)
    assert "the number of inputs stays: RuntimeError: no such thing" in caplog.text


@pytest.mark.parametrize(
    ("environ", "kind", "taken"),
    [
        ({}, Growing, []),
        ({"PERSONAPLEX_AUTOSCALE": "1"}, Growing, []),
        ({"PERSONAPLEX_AUTOSCALE": "0"}, type(None), []),
        ({"PERSONAPLEX_AUTOSCALE": "places"}, Door, [4]),
        ({"PERSONAPLEX_AUTOSCALE": "places", "PERSONAPLEX_GPU": "L40S,A10G"}, Door, [16]),
    ],
)
def test_the_setting_chooses_how_to_grow(environ, kind, taken):
    fleet = Double()
    assert type(choose_growing(environ, fleet)) is kind
    assert fleet.taken == taken
    assert choose_growing(environ, None) is None


def test_places_that_are_set_are_the_door():
    fleet = Double()
    choose_growing({"PERSONAPLEX_AUTOSCALE": "places"}, fleet, slots=2)
    assert fleet.taken == [2]


def test_modals_autoscaler_is_told_and_keeps_its_other_bounds(tmp_path):
    """Two full containers are counted, and the deployed class is asked for, by real calls."""
    code = (
        "import asyncio, os\n"
        "from demo.cloud.growing import Growing, ModalFleet\n"
        "async def fill(name):\n"
        "    os.environ['MODAL_TASK_ID'] = name\n"
        "    growing = Growing(ModalFleet('personaplex', 'PersonaPlexServer'))\n"
        "    await growing.look(free=0, slots=4, callers=0)\n"
        "    return growing\n"
        "async def main():\n"
        "    first, second = await fill('ta-1'), await fill('ta-2')\n"
        "    await first.give_back()\n"
        "    await second.give_back()\n"
        "asyncio.run(main())"
    )
    with Platform(secrets=dict(SECRETS)) as platform:
        done = deploy(platform, tmp_path)
        assert done.returncode == 0, done.stdout
        environ = clean(tmp_path, PYTHONPATH=str(ROOT), **platform.environ)
        subprocess.run([sys.executable, "-c", code], env=environ, check=True)
        told = platform.requests("FunctionUpdateSchedulingParams")
    assert [one.settings.buffer_containers for one in told] == [1, 2, 1, 0]
    assert told[0].function_id == "fu-PersonaPlexServer.*"
    assert {field.name for field, _ in told[0].settings.ListFields()} == {"buffer_containers"}


def test_expected_places_are_those_of_the_table_of_gpus():
    table = (ROOT / "docs" / "modal-scaling.md").read_text(encoding="utf-8")
    heads = next(line for line in table.splitlines() if "A10G (24 GB)" in line).split("|")
    row = next(line for line in table.splitlines() if "at once, bf16 (default)" in line).split("|")
    told = {head.split()[0]: int(places) for head, places in zip(heads, row, strict=True)
            if places.strip().isdecimal()}  # fmt: skip
    assert len(told) >= 3
    assert told == {kind: EXPECTED_PLACES.get(kind, 4) for kind in told}
