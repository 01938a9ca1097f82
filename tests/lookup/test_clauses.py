"""A streamed answer cut into clauses that can be spoken."""

import random
import time
from itertools import cycle, islice

import pytest

from engine.lookup.textmodel import LONG_WORDS, LONGEST_WORDS, MAX_WORDS, MORE, Clauses


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
    found = clauses.feed("".join(f"Number {n} is a sentence of nine words here. " for n in "1234"))
    assert found == [f"Number {n} is a sentence of nine words here." for n in "123"]
    assert clauses.full
    assert clauses.finish() == []


def test_short_sentences_do_not_use_up_the_answer_before_its_price():
    text = "Sure! Good question. There are two plans. Premium is the smaller one. It costs $14."
    assert " ".join(cut(text)) == text


def test_no_is_a_sentence_when_it_stands_alone():
    assert cut("No. It has no such thing. See No. 5 of it.")[:2] == ["No.", "It has no such thing."]


def test_a_sentence_is_not_broken_off_at_the_word_limit():
    sentence = "and so it goes " * 12 + "on."
    found = cut(f"{sentence} {sentence} {sentence}")
    assert sum(len(clause.split()) for clause in found) in range(MAX_WORDS, LONGEST_WORDS)
    assert found[-1].endswith("on.")


def test_an_answer_without_any_end_is_bounded():
    clauses, found = Clauses(), []
    for _ in range(1000):
        found += clauses.feed("and on ")
    assert clauses.full
    assert 0 <= sum(len(clause.split()) for clause in found) - LONGEST_WORDS < LONG_WORDS


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


def test_a_list_is_read_to_its_end():
    items = [f"Plan {n} costs ${n} a month and has {n} hours." for n in range(8)]
    found = cut("There are eight plans:\n\n- " + "\n- ".join(items) + "\n")
    assert found == ["There are eight plans:", *items]


def test_a_list_that_is_too_long_ends_with_an_item_and_says_so():
    items = [f"Plan {n} costs ${n} a month and has {n} hours." for n in range(100)]
    found = cut("- " + "\n- ".join(items))
    assert found[-1] == MORE
    assert set(found[:-1]) < set(items)


def test_a_table_is_read_row_by_row():
    table = "| Plan | Price |\n|:---|---:|\n| Premium | $14 |\n| Business | $21 |\n"
    assert cut(table) == ["Plan, Price.", "Premium, $14.", "Business, $21."]
    assert cut(table.strip()) == cut(table)


def test_marks_that_stand_alone_begin_no_clause():
    assert cut("It is so. ! ! ! … It costs $14.") == ["It is so.", "It costs $14."]


@pytest.mark.parametrize("text", ["😀", "…", "... !!", "\n\n", "—", "**", "|", "|---|", "👍 👍"])
def test_nothing_to_be_said_is_no_clause(text):
    assert cut(text) == []


def test_what_cannot_be_said_goes_with_the_words_after_it():
    assert cut("😀! 😀 Yes, it does that well.") == ["😀! 😀 Yes, it does that well."]


# -- any text: in time that grows with its length --------------------------------------------------

HARD = [
    "a, [",
    "x" * 30,
    "[",
    "(a",
    "e.g. ",
    ". ",
    "|a",
    "\n- ",
    "1. ",
    '."',
    "🙂 ",
    "漢",
    "<",
    "a b ",
]
LETTERS = "ab1 .,;:!?…\"')]([|-*•\n\t漢😀<>/"


def seconds(work) -> float:
    """The least of three, in this process alone."""
    found = []
    for _ in range(3):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


@pytest.mark.parametrize("part", HARD)
def test_the_time_for_an_answer_grows_with_its_length_only(part):
    def feed(count):
        clauses = Clauses()
        clauses._take = lambda _is_sentence: []  # nothing is ever whole: the worst case
        for piece in islice(cycle([part]), count):
            clauses.feed(piece)

    feed(100)
    assert seconds(lambda: feed(16_000)) < 8 * seconds(lambda: feed(4000)) + 0.02


@pytest.mark.parametrize("part", [*HARD, "][", "— ", "| a ", "(a ", "İ"])
@pytest.mark.parametrize("end", ["", " And a word.", "\nAnd a word."])
def test_no_clause_is_longer_than_can_be_prepared_beside_the_frames(part, end):
    clauses, found = Clauses(), []
    for _ in range(3000):
        found += clauses.feed(part)
    found += [*clauses.feed(end), *clauses.finish()]
    assert found or not end  # what has no letters is not said, and hides nothing after it
    assert max(map(len, found), default=0) <= 650
    assert sum(len(clause.split()) for clause in found) <= 150 + 200


@pytest.mark.parametrize("seed", range(5))
def test_random_answers_are_cut_into_clauses_that_hold_all_their_words(seed):
    rng = random.Random(seed)
    for _ in range(100):
        text = "".join(rng.choices(LETTERS, k=rng.randrange(120)))
        clauses, found = Clauses(), []
        for at in range(0, len(text), 7):
            found += clauses.feed(text[at : at + 7])
        found += clauses.finish()
        said = "".join(c for c in "".join(found) if c.isalpha())
        assert clauses.full or said == "".join(c for c in text if c.isalpha())
        assert all(any(c.isalnum() for c in clause) for clause in found)
