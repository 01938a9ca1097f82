"""`bench routing`: its figures, and that the scripted engine still acts a dialogue out."""

from dataclasses import replace

from engine.evals.dialogues import (
    ActedDialogue,
    Probe,
    Script,
    ScriptedTurn,
    act,
    count_handovers,
    load_scripts,
    measure_talks,
)

TURN = ScriptedTurn("product", "How much is it?", "user")


def test_precision_and_recall_count_who_handed_over():
    turns = [
        replace(TURN, handed_over="user"),
        replace(TURN),  # missed
        replace(TURN, expected="", handed_over="user"),  # should have been left alone
        replace(TURN, expected="marker", handed_over="user"),  # the wrong one
    ]
    whole = count_handovers(turns)[-1]
    assert (whole["turns"], whole["should hand over"], whole["did"]) == (4, 3, 3)
    assert (whole["precision"], whole["recall"]) == (1 / 3, 1 / 3)


def test_cases_with_a_filler_are_told_apart():
    turns = [
        replace(TURN, started=1.0, first_word=1.5),
        replace(TURN, started=1.0, first_word=4.0, filler=True),
    ]
    figures = measure_talks([ActedDialogue(Script("product", []), None, Probe(), turns)])
    assert figures["trigger to first word, s, max"] == 0.5
    assert figures["the same after a filler, s, max"] == 3.0


def test_the_scripts_name_who_should_hand_over():
    scripts = load_scripts()
    assert len(scripts) >= 60
    sources = {turn.get("source", "") for script in scripts for turn in script.turns}
    assert sources == {"", "marker", "phrase"}


async def test_dialogues_are_acted_out_frame_by_frame():
    scripts = [
        Script("noise", [{"user": "Uh-huh.", "agent": "Go on."}]),
        Script("marker", [{"user": "My cat is asleep.", "source": "marker", "agent": "!!!"}]),
        Script("product", [{"user": "How much is premium?", "routed": True, "agent": "A lot."}]),
    ]
    talks, asked = await act(scripts, at_once=3)
    assert [talk.babbles for talk in talks] == [False] * 3 + [True] * 3
    quiet, marked, routed = (talk.turns[0] for talk in talks[:3])
    assert (quiet.handed_over, marked.handed_over, routed.handed_over) == ("", "marker", "user")
    assert (marked.state, routed.state, asked) == ("done", "done", 4)
    assert talks[5].turns[0].state == "done"
    figures = measure_talks(talks)
    assert figures["own words during hold"] == 0
    assert figures["end of speech to first word, s, cases"] == 2
    assert figures["end of speech to first word, s, p50"] > 0.64  # of silence end a turn
    assert figures["frames in minus out, max"] == 0
