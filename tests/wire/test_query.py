"""The query string, without a server (docs/api.md)."""

import pytest

from engine.errors import BadParameterError
from engine.wire.protocol import TUNABLE, parse_query, parse_sampling


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
