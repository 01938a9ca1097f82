"""The small parts of a conversation: floor, pieces, prompt, personas, limits."""

import pytest

from engine.dialogue.floor import LOUD, EnergyRule
from engine.dialogue.persona import PERSONAS_FILE, load_personas, prompt_ids
from engine.dialogue.service import Service
from engine.dialogue.session import Limits, Session, SessionConfig
from engine.errors import ConfigError, IdleError, TimeLimitError, TooFastError
from engine.lookup.handover import PieceDecoder
from engine.runtime.embedded import ByteTokenizer, EmbeddedBackend

# -- floor -----------------------------------------------------------------------------------------


def run_energy_rule(pattern):
    """A floor after frames written as `#` loud and `.` quiet, and its states."""
    floor, states = EnergyRule(), []
    for mark in pattern:
        floor.take_frame(0.5 if mark == "#" else 0.001)
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
    assert run_energy_rule(pattern)[0].speaking is speaking


def test_a_turn_ends_once_after_4_loud_and_9_quiet_frames():
    _floor, states = run_energy_rule("####" + "." * 20)
    assert [i for i, (_, ended) in enumerate(states) if ended] == [12]


@pytest.mark.parametrize("pattern", ["###" + "." * 20, "." * 30, "####........" * 3, ""])
def test_less_than_that_is_no_turn(pattern):
    assert not any(ended for _, ended in run_energy_rule(pattern)[1])


def test_turns_end_one_after_the_other():
    _floor, states = run_energy_rule(("######" + "." * 12) * 3)
    assert sum(ended for _, ended in states) == 3


def test_loud_is_more_than_36_db_below_full_scale():
    floor = EnergyRule()
    floor.take_frame(LOUD)
    assert floor.loud_frames == 0
    floor.take_frame(LOUD * 1.01)
    assert floor.loud_frames == 1
    assert pytest.approx(0.0158, abs=1e-4) == LOUD


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
        ("", ""),
        ("   ", ""),
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


# -- limits ----------------------------------------------------------------------------------------


class Quiet:
    wants_frames = False


@pytest.fixture
def session():
    session = Session(Service(lambda _progress: EmbeddedBackend()), config=SessionConfig())
    session._seat, session.director = object(), Quiet()
    session._started = session._touched = session._active_at = 1000.0
    return session


LIMITS = Limits(unheard_s=60, silence_s=300, session_s=1800)


def reached(session, now, **touched):
    for name, value in touched.items():
        setattr(session, f"_{name}", value)
    return session._limit_reached(LIMITS, now)


def test_within_its_limits_a_conversation_goes_on(session):
    assert reached(session, 1060.0) is None
    assert reached(session, 1300.0, touched=1299.0) is None
    assert reached(session, 2800.0, touched=2799.0, active_at=2790.0) is None


def test_a_minute_without_any_message_is_idle(session):
    error = reached(session, 1060.1)
    assert isinstance(error, IdleError)
    assert "60 s" in str(error)
    assert "0x06" in str(error)


def test_five_minutes_without_anybody_speaking_are_idle(session):
    error = reached(session, 1300.1, touched=1300.0)
    assert isinstance(error, IdleError)
    assert "5 minutes" in str(error)


def test_what_is_still_to_be_said_keeps_it_alive_but_not_beyond_the_session(session):
    session.director.wants_frames = True
    assert reached(session, 2000.0) is None
    assert isinstance(reached(session, 2800.1), TimeLimitError)


def test_five_seconds_that_nobody_reads_are_too_fast(session):
    session._unread_frames = 63
    assert isinstance(reached(session, 1001.0), TooFastError)


def test_before_the_handshake_no_limit_counts(session):
    session._seat = None
    assert reached(session, 9999.0) is None
