"""How many callers a fleet of containers serves, how long they wait, and what it costs. Simulated.

Nothing is started. Callers arrive, load a page, connect, and talk; containers are ordered, take
callers after some seconds and are warm later; the platform's autoscaler adds and removes them. What
the platform does with spare containers is not published for ours. Therefore each way to grow is
played against two readings of it:

    sum     containers = inputs / target, rounded up, plus the spares asked for
    beside  containers that have inputs, plus the spares asked for, each of them idle

Ways to grow: `fixed` asks for one spare when anybody is full; `spare` for one per full container,
and while it wakes for as many as its waiting callers will fill; `places` lets a container take only
as many inputs as it has places, and the platform starts others for those who wait at its door.
Source of the formula: Modal's client 1.3.5.
"""

import argparse
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from engine.bench.report import duration, positive, save, table

STEP = 0.5  # s of simulated time
LOOK_SECONDS = 2.0  # between two looks of the autoscaler (assumed)
TARGET = 100  # inputs of a container, as deployed
RETRY_SECONDS = (2.0, 3.0)  # after `busy`, as the page does
CALM_SECONDS = 60.0  # with two free places, before a spare is given back
RENEW_SECONDS = 60.0  # before a container tells a smaller number of full ones
READINGS = ("sum", "beside")
WAYS = ("fixed", "spare", "places")
SCENARIOS = {  # name -> (callers, seconds over which they arrive)
    "30 in a minute": (30, 60.0),
    "1000 in an hour": (1000, 3600.0),
    "flash of 300": (300, 10.0),
}
MOST_CONTAINERS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--places", type=positive, default=4, help="conversations of a container (default 4)")
    add("--takes-s", type=duration, default=15.0, help="until a new container takes callers (15)")
    add("--warm-s", type=duration, default=105.0, help="until its first conversation (105)")
    add("--talk-s", type=duration, default=300.0, help="mean length of a conversation (300)")
    add("--patience-s", type=duration, default=180.0, help="before, and again after `busy` (180)")
    add("--max-containers", type=containers, default=10, help="as deployed (10), up to 1000")
    add("--scaledown-s", type=duration, default=300.0, help="idle seconds before an end (300)")
    add("--page-requests", type=positive, default=7, help="inputs of a page load (7)")
    add("--page-s", type=duration, default=1.0, help="how long they last together (1)")
    add("--dollars-per-hour", type=duration, default=1.42, help="of a container (1.42: an A10G)")
    add("--seed", type=int, default=1, help="of the arrivals")


def containers(text: str) -> int:
    """The type of an option: what a deployment takes, too."""
    count = positive(text)
    if count > MOST_CONTAINERS:
        raise argparse.ArgumentTypeError(f"it is {text}; use 1 to {MOST_CONTAINERS}")
    return count


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What is simulated."""

    way: str
    reading: str
    places: int
    takes_s: float
    warm_s: float
    patience_s: float
    max_containers: int
    scaledown_s: float
    page_requests: int
    page_s: float

    @property
    def inputs(self) -> int:
        """How many a container takes at once, and what the autoscaler aims at."""
        return self.places if self.way == "places" else TARGET


@dataclass(slots=True, eq=False)
class Caller:
    """One who arrives, and talks once a place is free."""

    arrives: float
    talks: float  # s
    patient_from: float = 0.0  # it arrived then, or heard `busy` for the first time
    refused: bool = False
    next_try: float = 0.0
    served_at: float | None = None
    ends_at: float = math.inf


@dataclass(slots=True, eq=False)
class Machine:
    """One container: those who talk, and those who wait in it until it is warm."""

    ordered: float
    plan: FleetPlan
    talking: list[Caller] = field(default_factory=list)
    waiting: list[Caller] = field(default_factory=list)
    used: float = 0.0  # when it last had an input
    roomy_since: float = math.inf
    asks: int = 0  # for how many spares
    asked_at: float = 0.0  # when that number last grew

    def takes(self, now: float) -> bool:
        return now >= self.ordered + self.plan.takes_s

    def is_warm(self, now: float) -> bool:
        return now >= self.ordered + self.plan.warm_s

    @property
    def held(self) -> int:
        return len(self.talking) + len(self.waiting)


@dataclass(frozen=True, slots=True)
class FleetResult:
    """What came of it."""

    callers: int
    waited: list[float]  # s, of those who were served
    most: int  # containers at once
    container_s: float
    talked_s: float


def simulate(plan: FleetPlan, callers: list[Caller], seed: int) -> FleetResult:
    """Play until the last container has ended. Every caller is used once."""
    dice = random.Random(seed)
    now, look_at, container_s, most, spares = 0.0, 0.0, 0.0, 0, 0
    machines: list[Machine] = []
    coming = sorted(callers, key=lambda caller: caller.arrives)
    outside: list[Caller] = []  # at the platform's door, or between two tries
    while coming or outside or machines:
        while coming and coming[0].arrives <= now:
            caller = coming.pop(0)
            caller.next_try = caller.arrives + plan.page_s  # first the page, then the socket
            caller.patient_from = caller.arrives
            outside.append(caller)
        # Who loads the page now. In a closed fleet these requests wait at the door as well.
        pages = sum(plan.page_requests for caller in outside if now - caller.arrives < plan.page_s)
        for machine in machines:
            step_machine(machine, now, outside, dice)
        outside = [c for c in outside if now - c.patient_from <= plan.patience_s]
        admit(plan, machines, outside, now, dice)
        if now >= look_at:
            look_at = now + LOOK_SECONDS
            spares = count_spares(plan, machines, now)
            scale(plan, machines, len(outside), pages, spares, now)
        machines = [m for m in machines if not is_idle(m, now, spares, machines)]
        most = max(most, len(machines))
        container_s += STEP * len(machines)
        now += STEP
    waited = [c.served_at - c.arrives for c in callers if c.served_at is not None]
    talked_s = sum(c.talks for c in callers if c.served_at is not None)
    return FleetResult(len(callers), waited, most, container_s, talked_s)


def step_machine(machine: Machine, now: float, outside: list[Caller], dice: random.Random) -> None:
    """Who has finished leaves; who waited for the model sits down, or hears `busy`."""
    machine.talking = [caller for caller in machine.talking if caller.ends_at > now]
    if machine.is_warm(now):
        for caller in machine.waiting:
            sit_down(machine, caller, now, outside, dice)
        machine.waiting = []
    patience = machine.plan.patience_s
    machine.waiting = [c for c in machine.waiting if now - c.patient_from <= patience]
    if machine.held:
        machine.used = now


def sit_down(
    machine: Machine, caller: Caller, now: float, outside: list[Caller], dice: random.Random
) -> None:
    if len(machine.talking) < machine.plan.places:
        caller.served_at, caller.ends_at = now, now + caller.talks
        machine.talking.append(caller)
    else:  # busy: it tries again
        if not caller.refused:
            caller.refused, caller.patient_from = True, now
        caller.next_try = now + dice.uniform(*RETRY_SECONDS)
        outside.append(caller)


def admit(
    plan: FleetPlan,
    machines: list[Machine],
    outside: list[Caller],
    now: float,
    dice: random.Random,
) -> None:
    """The platform gives each who tries to a container that still takes inputs, by chance."""
    for caller in [c for c in outside if c.next_try <= now]:
        open_ones = [m for m in machines if m.takes(now) and m.held < plan.inputs]
        if not open_ones:
            continue  # it waits at the platform's door
        machine = dice.choice(open_ones)
        outside.remove(caller)
        machine.used = now
        if machine.is_warm(now):
            sit_down(machine, caller, now, outside, dice)
        else:
            machine.waiting.append(caller)


def count_spares(plan: FleetPlan, machines: list[Machine], now: float) -> int:
    """How many spare containers have been asked for."""
    for machine in machines:
        free, filled = plan.places - len(machine.talking), 0
        if machine.is_warm(now):
            filled = int(free == 0)
        elif plan.way == "spare":
            filled = len(machine.waiting) // plan.places
        if filled > machine.asks or (filled and now - machine.asked_at >= RENEW_SECONDS):
            machine.asks, machine.asked_at = filled, now
        if filled or not machine.asks or free < min(2, plan.places):
            machine.roomy_since = math.inf
        else:
            machine.roomy_since = min(machine.roomy_since, now)
            machine.asks *= now - machine.roomy_since < CALM_SECONDS
    full = sum(machine.asks for machine in machines)
    return {"fixed": min(1, full), "spare": full, "places": 0}[plan.way]


def scale(
    plan: FleetPlan, machines: list[Machine], outside: int, pages: int, spares: int, now: float
) -> None:
    """Order what the reading says, up to the most that may run."""
    inputs = sum(machine.held for machine in machines) + outside + pages
    wanted = math.ceil(inputs / plan.inputs)
    if plan.reading == "beside":
        wanted = max(wanted, sum(1 for machine in machines if machine.held))
    for _ in range(min(wanted + spares, plan.max_containers) - len(machines)):
        machines.append(Machine(now, plan, used=now + plan.takes_s))


def is_idle(machine: Machine, now: float, spares: int, machines: list[Machine]) -> bool:
    """Whether its idle time is over. A spare is kept as long as anybody is there."""
    in_use = any(other.held for other in machines)
    idle = sum(1 for other in machines if not other.held)
    kept = in_use and idle <= spares
    return not machine.held and not kept and now - machine.used > machine.plan.scaledown_s


# -- what is printed -------------------------------------------------------------------------------


def make_callers(count: int, seconds: float, talk_s: float, seed: int) -> list[Caller]:
    """Arrivals by chance over a time, and lengths of talks by chance around a mean."""
    dice = random.Random(seed)
    return [
        Caller(dice.uniform(0, seconds), min(dice.expovariate(1 / talk_s), 6 * talk_s))
        for _ in range(count)
    ]


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def describe(scenario: str, plan: FleetPlan, result: FleetResult, hourly: float) -> dict[str, Any]:
    minutes, served = result.talked_s / 60, len(result.waited)
    dollars = result.container_s / 3600 * hourly
    return {
        "callers": scenario,
        "grows by": plan.way,
        "read as": "either" if plan.way == "places" else plan.reading,
        "served": f"{served} of {result.callers}",
        "waited p50 s": round(percentile(result.waited, 0.5)) if served else "-",
        "p95 s": round(percentile(result.waited, 0.95)) if served else "-",
        "GPUs": result.most,
        "GPU hours": result.container_s / 3600,
        "$ per minute": f"{dollars / minutes:.4f}" if minutes else "-",
    }


def run(args: argparse.Namespace) -> int:
    rows = []
    for scenario, (count, seconds) in SCENARIOS.items():
        for way in WAYS:
            for reading in READINGS if way != "places" else READINGS[:1]:
                plan = FleetPlan(
                    way, reading, args.places, args.takes_s, args.warm_s, args.patience_s,
                    args.max_containers, args.scaledown_s, args.page_requests, args.page_s,
                )  # fmt: skip
                callers = make_callers(count, seconds, args.talk_s, args.seed)
                result = simulate(plan, callers, args.seed)
                rows.append(describe(scenario, plan, result, args.dollars_per_hour))
    print(table(rows))
    print(
        f"simulated: {args.places} places, callers taken after {args.takes_s:g} s, warm after "
        f"{args.warm_s:g} s, talks of {args.talk_s:g} s, at most {args.max_containers} containers"
    )
    save("fleet", {"options": vars(args), "rows": rows}, args.json)
    return 0
