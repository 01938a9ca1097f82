"""`bench routing --dialogues`: what it reads, what it counts, what it writes."""

import json

import pytest

from engine.bench.__main__ import load_subject
from engine.bench.report import parse_options
from engine.errors import ConfigError
from engine.evals.decisions import Verdict, as_heard, measure, read_dialogues

TALK = {
    "dialogues": [
        {
            "id": "one",
            "turns": [
                {"speaker": "agent", "text": "Hello."},
                {"speaker": "user", "text": "How much is the premium plan?", "expect": "routed"},
                {"speaker": "agent", "text": "Fourteen dollars."},
                {"speaker": "user", "text": "My cat is asleep on the sofa.", "expect": "left"},
            ],
        }
    ]
}


def test_each_figure_is_the_share_that_it_says():
    decided = [
        *(("routed", "routed"), ("routed", "doubt"), ("routed", "left"), ("routed", "routed")),
        *(("left", "routed"), ("left", "doubt"), ("left", "left"), ("left", "left")),
    ]
    figures = measure([Verdict("d", "t", *one) for one in decided])
    assert figures["precision"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["recall"] == 3 / 4
    assert figures["left_alone"] == 3 / 4
    assert figures["doubt"] == 2 / 8
    assert len(figures["misses"]) == 2


def test_raw_is_what_a_plain_recogniser_writes():
    assert as_heard("It’s $14, isn't it? O-kay!") == "it's 14 isn't it o kay"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"dialogues": [{"turns": [{"speaker": "user", "text": "x"}]}]}',
     '{"dialogues": [{"turns": [{"speaker": "user", "text": "x", "expect": "maybe"}]}]}',
     '{"dialogues": [{"turns": [{"speaker": "bot", "text": "x"}]}]}',
     '{"dialogues": []}', '{"dialogues": [{"turns": []}]}'],
)  # fmt: skip
def test_a_file_of_another_form_is_one_clear_error(tmp_path, text):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ConfigError, match="--dialogues"):
        read_dialogues(tmp_path / "d.json")


@pytest.mark.parametrize("raw", [False, True])
def test_the_command_writes_one_object(tmp_path, raw, capsys):
    (tmp_path / "d.json").write_text(json.dumps(TALK))
    options = ["--dialogues", str(tmp_path / "d.json"), "--json", str(tmp_path / "out.json")]
    subject = load_subject("routing")
    assert subject.run(parse_options(subject, options + ["--raw"] * raw)) == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures.keys() >= {"precision", "recall", "left_alone", "doubt", "misses"}
    assert (figures["recall"], figures["left_alone"], figures["turns"]) == (1.0, 1.0, 2)
    assert 0 < figures["turn_cpu_ms_p50"] <= figures["turn_cpu_ms_p95"]
    assert "precision" in capsys.readouterr().out
