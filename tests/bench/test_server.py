"""`bench server --hostile`, small: a flood is really one, and the neighbour is served beside it."""

import json

from engine.bench import server
from engine.bench.report import parse_options


def test_neighbours_are_measured_with_and_without_a_flood(tmp_path, capsys):
    path = tmp_path / "server.json"
    options = ["--hostile", "--conversations", "1", "--seconds", "3", "--json", str(path)]
    assert server.run(parse_options(server, options)) == 0
    said = capsys.readouterr().out
    assert "beside a flood the answers take" in said
    result = json.loads(path.read_text())
    calm, flooded = result["runs"]
    assert calm["frames"] == flooded["frames"] == 37
    assert flooded["server_cores"] > calm["server_cores"]  # it had more to do
    assert not calm["broken"] + flooded["broken"] + flooded["refused"]
    assert result["p99_ratio"] > 0


def test_the_flood_sends_the_longest_text_there_is():
    assert len(server.LONG_TEXT) == 2000
