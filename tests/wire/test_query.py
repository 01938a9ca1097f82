"""The query string, without a server (docs/api.md)."""

import json

import pytest

from engine.errors import BadParameterError
from engine.wire.protocol import TUNABLE, parse_opening, parse_query, parse_sampling


def test_an_empty_query_means_every_default():
    query = parse_query({})
    assert query.format == "opus"
    assert query.events is False
    session = query.session
    assert (session.text_prompt, session.voice, session.seed) == (None, None, -1)
    assert session.routing is None
    sampling = session.sampling
    assert (sampling.text_temperature, sampling.audio_temperature) == (0.7, 0.8)
    assert (sampling.text_top_k, sampling.audio_top_k, sampling.pad_bias) == (25, 250, 0)
    assert (sampling.repetition_penalty, sampling.repetition_context) == (1.0, 64)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("text_temperature", "0", "2"),
        ("audio_temperature", "0.0", "2.0"),
        ("text_topk", "1", "2147483647"),
        ("audio_topk", "1", "2147483647"),
        ("pad_mult", "-4", "4"),
        ("repetition_penalty", "0.5", "2"),
        ("repetition_penalty_context", "1", "4096"),
        ("seed", "-1", str(2**63 - 1)),
    ],
)
def test_both_ends_of_every_range_are_taken(name, low, high):
    parse_query({name: low})
    parse_query({name: high})


def test_a_large_seed_keeps_every_digit():
    assert parse_query({"seed": str(2**63 - 2)}).session.seed == 2**63 - 2


@pytest.mark.parametrize(
    ("query", "seed"),
    [
        ({"seed": "7", "text_seed": "8"}, 7),
        ({"text_seed": "8", "audio_seed": "9"}, 8),
        ({"seed": "-1", "audio_seed": "9"}, 9),
        ({"text_seed": "-1", "audio_seed": "-1"}, -1),
        ({"seed": "0", "text_seed": "5"}, 0),
    ],
)
def test_the_first_seed_that_is_not_random_counts(query, seed):
    assert parse_query(query).session.seed == seed


def test_an_empty_prompt_means_none_and_a_missing_one_the_default():
    assert parse_query({"text_prompt": ""}).session.text_prompt == ""
    assert parse_query({}).session.text_prompt is None


def test_a_prompt_of_4000_characters_is_taken():
    assert len(parse_query({"text_prompt": "漢" * 4000}).session.text_prompt) == 4000


def test_unknown_parameters_are_ignored():
    assert parse_query({"worker_addr": "x", "debug": "1"}) == parse_query({})


def test_a_long_value_is_cut_in_the_sentence():
    with pytest.raises(BadParameterError) as error:
        parse_query({"text_topk": "9" * 10_000 + "x"})
    assert len(str(error.value)) < 200


def test_set_knows_only_what_may_change_during_a_call():
    everything = {name: 1 for name in TUNABLE} | {"pad_mult": 2, "seed": 3}
    assert set(parse_sampling(everything)) == {
        *("text_temperature", "audio_temperature", "text_top_k", "audio_top_k")
    }


def test_set_takes_whole_numbers_however_json_spells_them():
    assert parse_sampling({"text_topk": 5.0}) == {"text_top_k": 5}
    assert isinstance(parse_sampling({"text_topk": 5.0})["text_top_k"], int)


# -- numbers as public clients write them ----------------------------------------------------------


def test_whole_numbers_that_are_written_as_floats_are_whole_numbers():
    query = parse_query(
        {
            "repetition_penalty_context": "1.0",
            "text_topk": "25.0",
            "audio_topk": "2.5e2",
            "text_seed": "318723.0",
        }
    )
    sampling = query.session.sampling
    numbers = (sampling.repetition_context, sampling.text_top_k, sampling.audio_top_k)
    assert numbers == (1, 25, 250)
    assert all(isinstance(number, int) for number in (*numbers, query.session.seed))
    assert query.session.seed == 318723


@pytest.mark.parametrize("value", ["25.5", "1e99", "9007199254740993.0"])
def test_floats_that_hold_no_whole_number_exactly_are_refused(value):
    with pytest.raises(BadParameterError, match=r"text_topk is .*use a whole number"):
        parse_query({"text_topk": value})


def test_the_end_of_a_range_is_told_with_all_its_digits():
    with pytest.raises(BadParameterError) as error:
        parse_query({"text_topk": "0"})
    assert str(error.value) == "bad parameter: text_topk is 0; use 1 to 2147483647"


@pytest.mark.parametrize("name", ["seed", "text_topk", "audio_topk", "repetition_penalty_context"])
@pytest.mark.parametrize(
    "value",
    ["9" * 4300, "-" + "9" * 4300, "9" * 9000, 10**4299],
    ids=["large", "negative", "larger than Python reads", "of JSON"],
)
def test_a_number_of_thousands_of_digits_is_not_told_back_whole(name, value):
    with pytest.raises(BadParameterError, match=f"{name} is '?-?[19]") as error:
        parse_query({name: value})
    assert len(str(error.value)) < 150


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"text_topk": "zanzibarine"}, "text_topk: not a whole number"),
        ({"text_temperature": "hot"}, "text_temperature: not a number"),
        ({"repetition_penalty_context": "9999"}, "repetition_penalty_context: out of range"),
        ({"repetition_penalty": "9"}, "repetition_penalty: out of range"),
        ({"audio_seed": "-7"}, "audio_seed: out of range"),
        ({"text_prompt": "x" * 4001}, "text_prompt: too long"),
        ({"format": "zanzibarine"}, "format: unknown"),
        ({"events": "yes"}, "events: not 0 or 1"),
    ],
)
def test_a_refusal_carries_for_the_log_the_name_and_kind_and_not_the_value(query, told):
    with pytest.raises(BadParameterError) as error:
        parse_query(query)
    assert error.value.told == told


# -- the first message `open` ----------------------------------------------------------------------


def opening(**fields):
    return parse_opening(json.dumps({"type": "open", **fields}).encode())


def test_an_opening_message_is_read_as_a_query_is():
    asked = opening(
        text_prompt="You are Jane.", voice="NATM1", text_topk=25.0, seed=2**62, routing=False,
        transcribe=None, text_temperature=0.5,
    )  # fmt: skip
    query = parse_query(asked)
    assert (query.session.text_prompt, query.session.voice) == ("You are Jane.", "NATM1")
    assert (query.session.seed, query.session.sampling.text_top_k) == (2**62, 25)
    assert query.session.sampling.text_temperature == 0.5
    assert query.session.routing is False
    assert query.session.transcribe is True


@pytest.mark.parametrize("character", ["a", "漢", "😀", "\x01", "𐍈"])
def test_an_opening_message_has_room_for_4000_characters_however_json_spells_them(character):
    assert parse_query(opening(text_prompt=character * 4000)).session.text_prompt


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"{", "open: metadata is not JSON"),
        (b"[]", 'open: metadata needs a type; send {"type": "open", …}'),
        (b'{"voice": "NATF2"}', 'open: metadata needs a type; send {"type": "open", …}'),
        (b'{"type": "say", "text": "hi"}', "type is 'say'; with open=1"),
        (b'{"type": "open", "text_prompt": ["x"]}', "open: 'text_prompt' is no text"),
        (b'{"type": "open", "text_prompt": "\\ud800"}', "open: 'text_prompt' is not valid Unicode"),
        (
            json.dumps({"type": "open", **dict.fromkeys(map(str, range(5000)), 1)}).encode(),
            "open: 5001 names; use up to 64",
        ),
        (b'{"type": "open", "x": "' + b"y" * 70_000 + b'"}', "at most 65536 bytes"),
    ],
)
def test_an_opening_message_that_is_wrong_is_explained(payload, told):
    with pytest.raises(BadParameterError) as error:
        parse_opening(payload)
    assert told in str(error.value)
