"""`bench hostile`, small: each kind of fault makes its row red, and an attack really attacks."""

import argparse
import asyncio
import json
import sys

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from engine.bench import hostile
from engine.bench.__main__ import load_subject
from engine.bench.clients import beside
from engine.bench.hostile import (
    ALONE,
    FLOODS,
    find_parts,
    find_reds,
    list_gaps,
    load_pages,
    run_outliers,
    run_scenario,
)
from engine.bench.report import parse_options

WELL = {
    "scenario": "ping", "gap_p95": 84.0, "lag_p99": 5.0, "late_share": 0.0, "lost": 0, "hung_up": 0,
    "files": 0, "threads": 1, "log_bytes": 1000, "talks": 3, "attacks": 9,
}  # fmt: skip
OF_THE_MACHINE = ("gap_p95", "lag_p99", "late_share", "lost")  # a busy one makes them bad


def parsed(*options: str) -> argparse.Namespace:
    return parse_options(
        load_subject("hostile"), ["--neighbours", "2", "--seconds", "1.5", *options]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gap_p95": 127.0}, "gap over 1.5 x alone"),
        ({"gap_p95": 127.0, "lag_p99": 21.0}, "gap over 1.5 x alone (the clients lag, too)"),
        ({"late_share": 0.06}, "frames late"),
        ({"lost": 1}, "frames lost"),
        ({"hung_up": 1}, "neighbours hung up on"),
        ({"files": 9}, "files left over"),
        ({"threads": 9}, "threads left over"),
        ({"log_bytes": 70_000}, "too long a log"),
        ({"attacks": 0}, "nothing was attacked"),
        ({"fault": "the server ended with 1"}, "the server ended with 1"),
        ({"all_in_s": 2.1}, "all in after more than 2 s"),
        ({"all_in_s": 1.9, "waiting": 1}, "newcomers still waiting"),
        ({"all_in_s": 0.1, "slow_s": 0.3}, "there was no slow moment"),
        ({"scenario": ALONE, "lag_p99": 21.0}, "the machine is not quiet, and nothing can be"),
    ],
)
def test_every_fault_makes_its_row_red(change, said):
    alone = {**WELL, "scenario": ALONE, "attacks": 0}
    assert find_reds(alone, alone) == find_reds(WELL, alone) == []
    (red,) = find_reds({**WELL, **change}, alone)
    assert red.startswith(said)


def test_a_log_may_have_its_lines_for_every_conversation_and_the_page_its_pool_of_threads():
    busy = {**WELL, "scenario": "pages", "log_bytes": 600_000, "talks": 1000, "threads": 45}
    assert find_reds(busy, WELL) == []


def test_silence_at_either_end_of_the_time_is_a_gap():
    steady = [0.01 + 0.08 * i for i in range(13)]
    assert list_gaps(steady, 0.0, 1.0) == pytest.approx([80.0] * 12)
    assert list_gaps([0.3, 0.38], 0.0, 1.0) == pytest.approx([80.0, 300.0, 620.0])
    assert list_gaps([], 0.0, 1.0)[0] == 1000.0


def test_the_longest_text_there_is_is_said():
    assert len(FLOODS["say"][0][1:].decode()) == 2000


def test_a_server_with_faults_is_red_for_each_of_them(monkeypatch):
    faults = "stall,chatter,handles,grudge"
    command = [sys.executable, "-m", "tests.bench.faulty_server", faults]
    monkeypatch.setattr(hostile, "SERVE", command)
    reds = find_reds(run_scenario(parsed(), "ping"), WELL)
    assert {"frames late", "too long a log", "files left over", "frames lost"} <= set(reds)


def test_the_table_has_a_row_for_each_scenario_and_a_red_one_makes_the_exit_code(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "hostile.json"
    args = parsed("--scenarios", "slow", "--json", str(path))
    hostile.run(args)
    alone, attacked = json.loads(path.read_text())["rows"]
    assert (alone["scenario"], attacked["scenario"]) == ("alone", "slow")
    assert attacked["attacks"] > 0
    assert min(row["server_answer_p99"] for row in (alone, attacked)) > 0
    timely = {name: WELL[name] for name in OF_THE_MACHINE}
    assert [find_reds({**row, **timely}, WELL) for row in (alone, attacked)] == [[], []]
    monkeypatch.setattr(hostile, "run_scenario", lambda _args, name: {**WELL, "scenario": name})
    capsys.readouterr()
    assert hostile.run(args) == 0
    assert "RED" not in capsys.readouterr().out
    monkeypatch.setattr(hostile, "run_rows", lambda *_: [{**WELL, "lost": 2}])
    assert hostile.run(args) == 1
    said = capsys.readouterr().out
    assert said.count("RED") == 1
    assert "ping: frames lost" in said


PLANTED_ON_ANY_MACHINE = """
import sys
from engine.bench.hostile import serve_planted
from engine.runtime.load import Overload
Overload.add_tick = lambda overload, seconds: None  # a busy machine refuses nobody
sys.exit(serve_planted())
"""


def test_newcomers_are_timed_after_each_slow_moment(monkeypatch):
    monkeypatch.setattr(hostile, "SERVE_PLANTED", [sys.executable, "-c", PLANTED_ON_ANY_MACHINE])
    monkeypatch.setattr(hostile, "WAITED_SECONDS", 300.0)
    rows = run_outliers(parsed())
    assert [row["scenario"] for row in rows] == ["slow open", "slow tick", "slow piece"]
    assert all(row["slow_s"] >= hostile.SLOW_SECONDS for row in rows)
    assert all(row["waiting"] == 0 for row in rows)
    assert all(0 < row["all_in_s"] < hostile.WAITED_SECONDS for row in rows)


class LoadedTarget:
    """A `Target` of this process."""

    url, loaded = "", 0

    async def begin(self) -> None:
        self.loaded = 0

    def note(self) -> None:
        self.loaded += 1


async def test_the_page_is_loaded_with_all_that_it_links_and_imports():
    asked: list[str] = []
    texts = {
        "/": '<script src="./a/main.js"></script><link rel="x" href="/a/page.css"><img src="">'
        '<link href="a/more.css"><img src="//else.where/x"><link href="data:,"><a href="/b">',
        "/a/main.js": 'import { b } from "./b.js"; import c from "other";',
        "/a/b.js": 'export * from "./main.js";',
        "/a/page.css": "body {}",
        "/a/more.css": "body {}",
    }

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text=texts[request.path], content_type="text/html")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server, asyncio.timeout(60):
        page = str(server.make_url("/"))
        assert sorted(await find_parts(page)) == sorted(page + path[1:] for path in texts)
        asked.clear()
        target = LoadedTarget()
        target.url = page.rstrip("/")
        async with beside(load_pages(target)):
            while target.loaded < hostile.LOADING * len(texts):  # noqa: ASYNC110 - it is not ours
                await asyncio.sleep(0.01)
    assert min(asked.count(path) for path in texts) >= hostile.LOADING
