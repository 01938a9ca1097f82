"""The small parts of a conversation: floor, pieces, prompt, personas."""

import pytest

from engine.dialogue.floor import LOUD, SpeechRule, UserFloor
from engine.dialogue.persona import PERSONAS_FILE, load_personas, prompt_ids
from engine.errors import ConfigError
from engine.lookup.handover import PieceDecoder
from engine.runtime.backend import HeardRow
from engine.runtime.embedded import ByteTokenizer

# -- floor -----------------------------------------------------------------------------------------


def run_speech_rule(pattern):
    """A floor after frames written as `#` loud and `.` quiet, and its states."""
    floor, states = SpeechRule(), []
    for mark in pattern:
        floor.take_frame(mark == "#")
        states.append((floor.speaking, floor.turn_ended))
    return floor, states


@pytest.mark.parametrize(
    ("pattern", "speaking"),
    [
        ("##", False),
        ("###", True),
        ("#.##", True),
        ("#..##", False),
        ("#.#.#.#", False),
        ("###....", True),
        ("###.....", False),
        ("###....#....", True),
    ],
)
def test_speaking_starts_after_3_loud_frames_of_4_and_ends_after_5_quiet_ones(pattern, speaking):
    assert run_speech_rule(pattern)[0].speaking is speaking


def test_a_turn_ends_once_after_4_loud_and_9_quiet_frames():
    _floor, states = run_speech_rule("####" + "." * 20)
    assert [i for i, (_, ended) in enumerate(states) if ended] == [12]


@pytest.mark.parametrize("pattern", ["###" + "." * 20, "." * 30, "####........" * 3, ""])
def test_less_than_that_is_no_turn(pattern):
    assert not any(ended for _, ended in run_speech_rule(pattern)[1])


def test_turns_end_one_after_the_other():
    _floor, states = run_speech_rule(("######" + "." * 12) * 3)
    assert sum(ended for _, ended in states) == 3


def test_without_ears_loud_is_more_than_36_db_below_full_scale():
    assert pytest.approx(0.0158, abs=1e-4) == LOUD
    floor = UserFloor()
    for _ in range(4):
        floor.take_frame(LOUD, HeardRow())
    assert not floor.speaking
    for _ in range(4):
        floor.take_frame(LOUD * 1.01, HeardRow())
    assert floor.speaking


def test_with_ears_loudness_counts_for_nothing():
    floor = UserFloor()
    for _ in range(10):
        floor.take_frame(0.9, HeardRow(speech=(False,)))
    assert not floor.speaking
    for _ in range(10):
        floor.take_frame(0.001, HeardRow(speech=(True,)))
    assert floor.speaking


# -- pieces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["▁Hello", "▁wor", "ld"], " Hello world"),
        (["▁", "<0xC3>", "<0xA9>", "t"], " ét"),
        (["▁<0xF0><0x9F>", "<0x8E><0x89>"], " 🎉"),
        (["<0xC3>", "x"], "\ufffdx"),
        (["▁<0xC3>", "▁<0xC3>", "<0xA9>"], " \ufffd é"),
        (["<0xFF>", "▁a"], "\ufffd a"),
        (["▁"], " "),
        (["a▁b"], "a b"),
    ],
)
def test_pieces_become_text_when_their_bytes_are_whole(pieces, text):
    decoder = PieceDecoder()
    assert "".join(decoder.feed(piece) for piece in pieces) == text


def test_bytes_are_held_until_the_character_is_whole():
    decoder = PieceDecoder()
    assert [decoder.feed(p) for p in ("<0xF0>", "<0x9F>", "<0x8E>", "<0x89>")] == ["", "", "", "🎉"]


def test_what_is_left_comes_out_once():
    decoder = PieceDecoder()
    decoder.feed("<0xC3>")
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""


# -- prompt and personas ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wrapped"),
    [
        ("You are kind.", "<system> You are kind. <system>"),
        ("  You are kind.\n", "<system> You are kind. <system>"),
        ("<system> You are kind. <system>", "<system> You are kind. <system>"),
        ("<system>You are kind.<system>", "<system>You are kind.<system>"),
        ("<system>You are kind.</system>", "<system> You are kind. <system>"),
        ("<SYSTEM>\nYou are kind.\n</System>", "<system> You are kind. <system>"),
        ("<system> You are kind.", "<system> You are kind. <system>"),
        ("You are kind. </system>", "<system> You are kind. <system>"),
        ("<system> <system> You are kind. <system> <system>", "<system> You are kind. <system>"),
        ("< system >You are kind.< / system >", "<system> You are kind. <system>"),
        ("Say <system> aloud.", "<system> Say <system> aloud. <system>"),
        ("", ""),
        ("   ", ""),
        ("<system>", ""),
        ("<system></system>", ""),
    ],
)
def test_a_prompt_is_wrapped_unless_it_is_or_there_is_none(text, wrapped):
    tokenizer = ByteTokenizer()
    assert prompt_ids(text, tokenizer) == (tuple(tokenizer.encode(wrapped)) if wrapped else ())


def test_the_personas_are_the_five_we_promise():
    personas = load_personas()
    assert [p.id for p in personas] == ["teacher", "service", "casual", "astronaut", "transgate"]
    assert all(p.title and 40 < len(p.text) < 1000 for p in personas)
    assert all("\n" not in p.text for p in personas)
    assert [p.id for p in personas if p.looks_up] == ["transgate"]


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ("", "no persona in it"),
        ("[a", "mend the file"),
        ('[a]\ntitle = "A"', r"\[a\] needs a title and a text"),
        ('[a]\ntitle = 3\ntext = "x"', r"\[a\] needs a title and a text"),
        ("a = 3", r"\[a\] needs a title and a text"),
        (f'[a]\ntitle = "A"\ntext = "{"x" * 4001}"', "4001 characters"),
        ('[a]\ntitle = "A"\ntext = "x"\nlooks_up = 1', r"\[a\] looks_up is true or false"),
        ('[a]\ntitle = "A"\ntext = "x"\nfacts = "none"', "no such folder"),
    ],
)
def test_a_broken_persona_file_is_refused_with_its_place(tmp_path, toml, reason):
    path = tmp_path / PERSONAS_FILE.name
    path.write_text(toml)
    with pytest.raises(ConfigError, match=reason) as error:
        load_personas(path)
    assert "personas.toml" in str(error.value)
