"""`bench server`: one row of paced conversations."""

import json

from engine.bench.capacity import SERVER
from engine.bench.report import parse_options


def test_a_server_is_measured_with_so_many_conversations_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no `engine` lies
    path = tmp_path / "server.json"
    options = ["--conversations", "2", "--seconds", "2", "--json", str(path)]
    assert SERVER.run(parse_options(SERVER, options)) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert 0 < row["host_ms_p50"] <= row["host_ms_p99"]
    assert (row["n"], row["frames"], row["refused"], row["hung_up"]) == (2, 50, 0, 0)
