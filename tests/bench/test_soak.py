"""`bench soak`: what counts as growth, that faults are noticed, and the whole of it, small."""

import asyncio
import contextlib
import json
import sys
import threading
from types import SimpleNamespace

import pytest

from engine.bench import capacity, hostile, process
from engine.bench.capacity import SOAK, describe_soak, find_faults, measure_growth, soak
from engine.bench.process import Server
from engine.bench.report import parse_options
from engine.errors import EngineError
from tests.bench.test_capacity import ScriptedServer

WELL = {
    "conversations": 9,
    "refused": 1,
    "errors": [],
    "grown": {"own_mb": 3.0},
    "before": {"files": 7, "threads": 4},
    "after": {"files": 9, "threads": 4},
    "slots": 4,
    "slots_lost": 0,
    "attacks": {},
    "wait_ms_worst": 1200.0,
    "long_waits": 0,
}
RESULT = {
    **WELL, "people": 1, "seconds": 60.0, "says": 0,
    "late": 5, "frames": 9, "dropped": 0, "tick_ms_p99": 1.0, "client_lag_ms_p99": 1.0,
    "samples": [{"files": 8, "threads": 4}],
}  # fmt: skip


def test_growth_leaves_out_the_warming_up_and_single_peaks():
    flat = [100, 300, 500, 500, 500, 900, 500, 500]
    assert measure_growth(flat) == measure_growth([5.0]) == 0
    assert measure_growth([0, 0, 10, 10, 20, 20, 30, 30]) == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"errors": ["internal error: 1"]}, "1 conversations ended by error, the first: internal"),
        ({"grown": {"own_mb": 101.0}}, "own_mb grew by 101"),
        ({"grown": {"own_mb": 0.0, "device_mb": 300.0}}, "device_mb grew by 300"),
        ({"after": {"files": 99, "threads": 4}}, "92 files more than before"),
        ({"after": {"files": 7, "threads": 14}}, "10 threads more than before"),
        ({"conversations": 0}, "nobody was let in (1 were refused): nothing was tried"),
        (
            {"long_waits": 2},
            "2 handshakes took more than 1 s while a slot was free, the longest 1.2 s",
        ),
        ({"slots_lost": 1}, "1 of 4 slots were not given back"),
        ({"attacks": {"say": 0, "json": 9}}, "these attackers did not attack once, or broke: say"),
    ],
)
def test_every_fault_is_named(change, said):
    assert find_faults(WELL) == []
    (fault,) = find_faults({**WELL, **change})
    assert fault.startswith(said)


def test_where_the_clients_lag_the_late_frames_are_said_to_mean_nothing():
    void = "late frames: not valid: clients lag"
    assert void not in describe_soak({**RESULT, "client_lag_ms_p99": 20.0})
    assert describe_soak({**RESULT, "client_lag_ms_p99": 21.0}).endswith(void)


def test_a_healthy_server_stays_well_while_people_come_and_go(monkeypatch):
    monkeypatch.setattr(capacity, "HANDSHAKE_SECONDS", 60.0)  # no machine's mood decides
    with Server(["--model", "embedded", "--slots", "3"]) as server:
        result = soak(server, people=3, seconds=7)
    assert find_faults(result) == []
    assert result["attacks"] == {}
    assert result["conversations"] >= 2
    assert result["frames"] > 0
    assert list(result["before"])[:2] == ["rss_mb", "own_mb"]
    assert len(result["samples"]) > 10
    assert 0 < result["wait_ms_p50"] <= result["wait_ms_p95"] <= result["wait_ms_worst"]
    assert "long_waits" in describe_soak(result)


def test_a_leak_an_error_a_long_wait_and_a_lost_slot_are_noticed(monkeypatch):
    monkeypatch.setattr(process, "EMPTY_SECONDS", 1.0)
    command = [sys.executable, "-m", "tests.bench.faulty_server", "leak,error,slot,wait"]
    with Server(["--model", "embedded", "--slots", "4"], command) as server:
        result = soak(server, people=3, seconds=8)
    error, wait, memory, slot = find_faults(result)
    assert "internal error" in error
    assert "handshakes took more than 1 s while a slot was free" in wait
    assert memory.startswith("own_mb grew by ")
    assert slot == "1 of 4 slots were not given back"


def test_attackers_take_nothing_from_the_people_beside_them(monkeypatch):
    monkeypatch.setattr(capacity, "HANDSHAKE_SECONDS", 60.0)
    monkeypatch.setattr(hostile, "FOR_A_SOAK", ("joins",))  # one, for time
    with Server(["--model", "embedded", "--slots", "6"]) as server:
        result = soak(server, 2, 4.0, hostile=True)
        ended = server.counts().ended
    assert find_faults(result) == []
    assert list(result["attacks"]) == ["joins"]
    assert min(result["attacks"].values()) > 0
    assert ended > result["conversations"]  # the attackers' own


def test_an_attacker_that_breaks_is_one_that_did_not_attack(monkeypatch):
    @contextlib.contextmanager
    def attack(name, _url, _port):
        if name == "say":
            raise EngineError("the attacker was not ready after 60 s")
        yield lambda: None, SimpleNamespace(value=7)

    monkeypatch.setattr(hostile, "attack", attack)
    done = hostile.attack_in_turn("http://nowhere", 0.0, threading.Event())
    assert list(done) == list(hostile.FOR_A_SOAK)
    assert [name for name, count in done.items() if count != 7] == ["say"]


def test_attackers_stop_when_the_server_has_gone(monkeypatch):
    begun = threading.Event()

    @contextlib.contextmanager
    def attack(_name, _url, _port):
        yield begun.set, SimpleNamespace(value=7)

    async def lose_the_server(*_given):
        await asyncio.to_thread(begun.wait)
        raise EngineError("the server ended with 1")

    monkeypatch.setattr(hostile, "attack", attack)
    monkeypatch.setattr(capacity, "_crowd", lose_the_server)
    ended = pytest.raises(EngineError, match="the server ended with 1")
    with Server(["--model", "embedded", "--slots", "1"]) as server, ended:
        soak(server, 1, 3600.0, hostile=True)  # else they would go on for an hour


@pytest.mark.parametrize(
    ("lost", "code", "more", "people"),
    [(0, 0, (), (4, 120.0, False)), (1, 1, ("--hostile",), (1, 120.0, True))],
)
def test_the_exit_code_says_whether_something_is_wrong(
    lost, code, more, people, monkeypatch, tmp_path, capsys
):
    asked = []

    def soak_scripted(_server, *given):
        asked.append(given)
        return {**RESULT, "slots_lost": lost}

    monkeypatch.setattr(capacity, "Server", ScriptedServer)
    monkeypatch.setattr(capacity, "soak", soak_scripted)
    target = tmp_path / "soak.json"
    options = ["--model", "embedded", "--minutes", "2", "--json", str(target), *more]
    assert SOAK.run(parse_options(SOAK, options)) == code
    assert asked == [people]  # as many as slots, or some slots are left to attackers
    written, said = json.loads(target.read_text()), capsys.readouterr().out
    assert len(written["faults"]) == lost
    assert "slots_lost" in said
    assert ("error: 1 of 4 slots were not given back" in said) == bool(lost)
