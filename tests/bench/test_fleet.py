"""The simulated fleet: what must come out where one can reckon it by hand, and the table."""

import json
from dataclasses import replace

import pytest

from engine.bench.fleet import Caller, FleetPlan, simulate
from engine.cli import main

PLAN = FleetPlan("spare", "sum", 4, 15.0, 105.0, 180.0, 10, 300.0, 25, 1.0)


def arrive(count: int, seconds: float = 0.0, talks: float = 300.0) -> list[Caller]:
    return [Caller(seconds * i / count, talks) for i in range(count)]


@pytest.mark.parametrize("way", ["fixed", "spare", "places"])
@pytest.mark.parametrize("reading", ["sum", "beside"])
def test_one_caller_waits_for_one_container_that_then_sleeps(way, reading):
    result = simulate(replace(PLAN, way=way, reading=reading, page_requests=1), arrive(1), seed=1)
    assert result.waited == [105.0]
    assert result.most == 1
    assert abs(result.container_s - (105 + 300 + 300)) < 2  # waking, talking, idle
    assert result.talked_s == 300


def test_a_constant_spare_serves_few_of_thirty_and_one_for_each_full_one_serves_all():
    thirty = 30, 60.0
    fixed = simulate(replace(PLAN, way="fixed"), arrive(*thirty), seed=1)
    assert len(fixed.waited) < 20
    assert fixed.most == 2
    for way in ("spare", "places"):
        for reading in ("sum", "beside"):
            plan = replace(PLAN, way=way, reading=reading)
            result = simulate(plan, arrive(*thirty), seed=1)
            assert len(result.waited) == 30
            assert result.most >= 8  # four places each


def test_no_more_containers_than_may_run_and_nobody_beyond_their_places():
    plan = replace(PLAN, max_containers=2, patience_s=90.0)
    result = simulate(plan, arrive(100, 10.0, talks=10_000.0), seed=1)
    assert result.most == 2
    assert len(result.waited) <= 8


def test_who_gives_up_is_not_served():
    assert simulate(replace(PLAN, patience_s=60.0), arrive(5), seed=1).waited == []


def test_a_page_load_counts_as_inputs_only_where_containers_take_few():
    many = replace(PLAN, way="places", page_requests=25)
    assert simulate(many, arrive(1), seed=1).most == 7  # 25 requests at four a container
    assert simulate(replace(many, way="spare"), arrive(1), seed=1).most == 1


def test_the_table_has_a_row_for_each_way_and_reading(tmp_path, capsys):
    options = ["--json", str(tmp_path / "f.json"), "--talk-s", "30", "--scaledown-s", "60"]
    assert main(["bench", "fleet", *options]) == 0
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert len(rows) == 3 * 5
    assert set(rows[0]) == {
        "callers", "grows by", "read as", "served", "waited p50 s", "p95 s", "GPUs", "GPU hours",
        "$ per minute",
    }  # fmt: skip
    assert "simulated: 4 places" in said


@pytest.mark.parametrize("count", ["0", "1001", "99999999"])
def test_more_containers_than_a_deployment_takes_are_refused(count, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "fleet", "--max-containers", count])
    assert f"it is {count}; use 1" in capsys.readouterr().err
