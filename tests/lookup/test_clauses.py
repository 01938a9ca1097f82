"""A streamed answer cut into clauses that can be spoken."""

import pytest

from engine.lookup.textmodel import MAX_WORDS, Clauses


def cut(text: str, size: int = 3) -> list[str]:
    """The clauses of a text that comes in pieces of `size` characters."""
    clauses, found = Clauses(), []
    for i in range(0, len(text), size):
        found += clauses.feed(text[i : i + size])
    return found + clauses.finish()


def test_the_first_clause_has_at_least_four_words():
    assert (
        cut("Yes, sure, it costs $14 a month, billed monthly.")[0]
        == "Yes, sure, it costs $14 a month,"
    )


def test_a_short_sentence_may_come_first():
    assert cut("Yes. It does all of that.") == ["Yes.", "It does all of that."]


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_how_the_text_is_split_on_its_way_does_not_matter(size):
    text = "It costs $1.49 per hour, e.g. for 1,200 hours; that is v1.2.3. Really! No more?"
    assert cut(text, size) == cut(text, 4)
    assert " ".join(cut(text, size)) == text


def test_prices_and_abbreviations_end_no_sentence():
    assert cut("Ask Dr. Who about $1.49 an hour.") == ["Ask Dr. Who about $1.49 an hour."]


def test_the_fourth_sentence_is_not_taken():
    clauses = Clauses()
    found = clauses.feed("One is here. Two is here. Three is here. Four is here. ")
    assert found == ["One is here.", "Two is here.", "Three is here."]
    assert clauses.full
    assert clauses.finish() == []


def test_an_answer_without_any_end_is_bounded():
    clauses, found = Clauses(), []
    for _ in range(1000):
        found += clauses.feed("and on ")
    assert clauses.full
    assert sum(len(clause.split()) for clause in found) == MAX_WORDS


def test_a_long_clause_without_punctuation_does_not_wait_for_its_end():
    clauses = Clauses()
    found = clauses.feed("word " * 12)
    assert len(found) == 1
    assert len(found[0].split()) == 12


def test_list_marks_are_left_out_and_lines_are_sentences():
    assert cut("- Premium is here\n- Business is there\n1. Free trial") == [
        "Premium is here", "Business is there", "Free trial",
    ]  # fmt: skip


def test_a_link_is_not_cut_in_the_middle():
    assert cut("See [the prices, please](https://x.y/a, b) for more of it.")[0] == (
        "See [the prices, please](https://x.y/a, b) for more of it."
    )
