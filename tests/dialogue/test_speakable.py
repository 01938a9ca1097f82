"""Written text as words to be spoken."""

import random
import time
import unicodedata
from itertools import pairwise

import pytest

from engine.dialogue.text import (
    MAX_SENTENCE_WORDS,
    MAX_WORD_LETTERS,
    clean,
    prepare,
    spell_text,
    spell_token,
)
from engine.lookup.textmodel import Clauses
from engine.runtime.embedded import ByteTokenizer


def spoken(text):
    return " ".join(word.spoken for word in prepare(text, ByteTokenizer()))


def shown(text):
    return " ".join(word.shown for word in prepare(text, ByteTokenizer()) if word.shown)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("7", "seven"),
        ("42 apples", "forty two apples"),
        ("1,200.50", "one thousand two hundred point five zero"),
        ("3.14159", "three point one four one five nine"),
        ("007", "zero zero seven"),
        ("1234567890123456", "one two three four five six seven eight nine zero one two three "
         "four five six"),
        ("-5 degrees", "minus five degrees"),
        ("It is -12.5°C.", "It is minus twelve point five degrees Celsius."),
        ("(−3)", "minus three"),
        ("well-known", "well-known"),
        ("$14.", "fourteen dollars."),
        ("$1", "one dollar"),
        ("$1.49", "one dollar and forty nine cents"),
        ("$0.99", "ninety nine cents"),
        ("$0.01", "one cent"),
        ("-$5", "minus five dollars"),
        ("20€", "twenty euros"),
        ("£3.50", "three pounds and fifty pence"),
        ("$1,000", "one thousand dollars"),
        ("$2.999", "two point nine nine nine dollars"),
        ("50%", "fifty percent"),
        ("95–98%", "ninety five to ninety eight percent"),
        ("20GB", "twenty gigabytes"),
        ("1GB", "one gigabyte"),
        ("24kHz", "twenty four kilohertz"),
        ("300 ms", "three hundred milliseconds"),
        ("1°C", "one degree Celsius"),
        ("2026-10-27", "October twenty seventh, twenty twenty six"),
        ("2026-13-45", "two thousand twenty six thirteen forty five"),
        ("14:05", "fourteen oh five"),
        ("9:00", "nine o'clock"),
        ("18:00", "eighteen hundred"),
        ("10:30.", "ten thirty."),
        ("v1.2", "version one point two"),
        ("1.2.3", "one point two point three"),
        ("21st", "twenty first"),
        ("In 1999, yes", "In nineteen ninety nine, yes"),
        ("R&D", "R and D"),
        ("a=b", "a equals b"),
        ("me@example.com", "me at example dot com"),
        ("24/7", "twenty four seven"),
        ("**bold** and `code`", "bold and code"),
        ("# Title", "Title"),
        ("- item", "item"),
        ("[the docs](https://x.example/y)", "the docs"),
        ("see https://www.example.com/a?b=c now", "see example dot com now"),
        ("Wow!!! Great!!", "Wow! Great!"),
        ("I ❤️ you 👍🏽 all 👩‍👩‍👧", "I you all"),
        ("“Quoted,” she said…", "Quoted, she said…"),
        ("one — two", "one two"),
        ("naïve café", "naïve café"),
        ("漢字", "漢字"),
        ("a\x00b\x1b[0m", "a b zero meters"),
        ("٣ apples", "three apples"),
    ],
)  # fmt: skip
def test_what_is_written_is_said_in_words(written, said):
    assert spoken(written) == said


def test_the_transcript_keeps_what_was_written():
    text = "It costs $14.50, i.e. 20% off — until 2026-10-27!"
    assert shown(text) == text


@pytest.mark.parametrize("text", ["", "   ", "!!!", "...", "— –", "🎉", "#*_", "\n\t"])
def test_nothing_to_say_gives_no_words(text):
    assert prepare(text, ByteTokenizer()) == ()


def test_a_run_of_bangs_never_reaches_the_voice():
    for text in ("!!! stop", "stop !!!", "No!!!Yes", "a!!b !! c!!!", "! ! !go", "wow!?!"):
        assert "!!" not in spoken(text)
        assert "!!" not in shown(text)


def test_no_word_is_dropped():
    rng = random.Random(2)
    vowels = ["lo", "mi", "tar", "zu", "ken"]
    words = [
        "".join(rng.choices(vowels, k=3)) + rng.choice(["", ",", ".", "?"]) for _ in range(400)
    ]
    assert spoken(" ".join(words)) == " ".join(words)
    assert shown(" ".join(words)) == " ".join(words)


def test_sentences_over_40_words_are_split_at_a_comma_and_otherwise_where_they_are():
    words = prepare(" ".join(["so"] * 25 + ["then,"] + ["so"] * 70), ByteTokenizer())
    gaps = [i for i, word in enumerate(words) if word.pause == 10]
    assert gaps[0] == 25  # the comma
    assert gaps[1] == 25 + MAX_SENTENCE_WORDS
    assert all(b - a <= MAX_SENTENCE_WORDS for a, b in pairwise(gaps))


def test_pauses_follow_the_punctuation():
    words = prepare("one two, three; four. five? six! seven", ByteTokenizer())
    assert [word.pause for word in words] == [0, 6, 6, 10, 10, 10, 0]


def test_the_limit_is_never_below_the_need():
    for text in ("a", "I", "extraordinarily", "x" * 29, "漢字漢字漢字漢字", "é" * 12):
        for word in prepare(text, ByteTokenizer()):
            assert word.need >= len(word.ids) + 1
            assert word.limit >= word.need
            assert word.limit >= 8


def test_words_without_an_end_come_in_parts():
    words = prepare("漢" * 100, ByteTokenizer())
    assert max(len(word.spoken) for word in words) == MAX_WORD_LETTERS
    assert "".join(word.spoken for word in words) == "漢" * 100
    assert [word.shown for word in words] == ["漢" * 100, "", "", ""]


def test_every_word_opens_with_a_blank():
    tokenizer = ByteTokenizer()
    for word in prepare("Hello $14.50 漢字 x", tokenizer):
        assert tokenizer.piece(word.ids[0]).startswith("▁")


ALPHABET = "ab 19.,!?-–$€£%°/:&@=+*_`#[]()<>\"'…漢é🎉️🏽٣\u0000\n\u200d"


@pytest.mark.parametrize("seed", range(20))
def test_no_text_breaks_it(seed):
    rng = random.Random(seed)
    for _ in range(100):
        text = "".join(rng.choices(ALPHABET, k=rng.randrange(60)))
        for word in prepare(text, ByteTokenizer()):
            assert word.ids
            assert "!!" not in word.spoken


# -- any text at all -------------------------------------------------------------------------------

BESIDE = "{0} 1{0} {0}1 ${0} {0}$ -{0} {0}- 5{0}7 {0}{0} 2{0}{0} a{0} ({0}) 1.{0} {0}:3"
# Letters of large scripts, pictures, and what nobody has written yet.
MANY = ("Lo", "So", "Co", "Cn", "Cs")
PICTURES = "\u2500"  # the first of them; signs with a meaning stand before


def is_looked_at(char):
    """All that has a value or a meaning of its own, and a few of the many others."""
    kind = unicodedata.category(char)
    # before the pictures, or made of others, as a letter in a ring is
    is_sign = kind == "So" and (char < PICTURES or unicodedata.decomposition(char))
    return kind not in MANY or char.isnumeric() or is_sign or ord(char) % 201 == 7


BATCH = 50  # characters in one text


@pytest.mark.parametrize("part", range(8))
def test_every_character_is_prepared_alone_and_beside_digits_and_signs(part):
    chars = [c for c in map(chr, range(part, 0x110000, 8)) if is_looked_at(c)]
    for start in range(0, len(chars), BATCH):
        batch = chars[start : start + BATCH]
        text = " ".join(
            BESIDE.format(c) if is_odd(c) else f"{c} 1{c} ${c}2" for c in batch
        )  # fmt: skip
        for char in filter(is_odd, batch):
            clauses = Clauses()
            clauses.feed(f"{char} 1{char} -{char}2. {char}")
            clauses.finish()
        for word in prepare(text, NoPieces()):
            assert word.spoken.strip()


def is_odd(char):
    """Where `isdigit`, `isnumeric`, `isdecimal` and ASCII part ways; and all signs."""
    kind = unicodedata.category(char)
    return char.isnumeric() != char.isascii() or (kind[0] in "NSPZ") or kind == "Cc"


class NoPieces:
    """A tokenizer for tests that look at words alone."""

    def encode(self, text):
        return (4,)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("5²", "five squared"), ("m³", "m cubed"), ("10⁻⁵", "ten to the minus five"),
        ("H₂O", "H two O"), ("①", "one"), ("5①", "fifty one"), ("½", "one half"),
        ("2½", "two and a half"), ("Ⅷ", "VIII"), ("１４", "fourteen"), ("٣", "three"),
        ("$２", "two dollars"), ("⑳", "twenty"), ("x⁰", "x to the zero"), ("三", "三"),
    ],
)  # fmt: skip
def test_digits_of_every_kind_are_said(written, said):
    assert spoken(written) == said


@pytest.mark.parametrize(
    "text",
    ["C#", "foo_bar@x.io", "5 < 10", "snake_case", "a > b", "$14/month", "10-15", "C++ & AT&T",
     "x² + y²", "if x < 3 then", "~97%", "3 * 4 = 12", "A/B", "(see p. 5)", "[1, 2]", "1_000"],
)  # fmt: skip
def test_what_is_shown_is_what_was_written(text):
    assert shown(text) == text


def seconds(text):
    """In this process alone."""
    begun = time.process_time()
    prepare(text, NoPieces())
    return time.process_time() - begun


PARTS = ["[", "1,", "$1.5 ", "((((", "1-", "http://", "!", "v1.", "漢", "a/", "1.", "a.", "x@",
         "1 ", "<a", "$1-", "/a", "9:", "**", "| ", "+1 ", "A1", "a1", "No. ", "&#", "](", "1e",
         "5 m/", "x", "7", "a — ", "a $14 plan, ", 'a 27" b ', "#a", "```\n", "- \n", "I.", "~",
         "_a", "1/", "May 1 "]  # fmt: skip


@pytest.mark.timeout(60)  # a regular expression that runs away takes minutes
@pytest.mark.parametrize("part", PARTS)
def test_the_time_for_a_text_grows_with_its_length_only(part):
    short, long = ((part * size)[:size] for size in (2000, 8000))
    looks = (seconds(long) < 8 * seconds(short) + 0.02 for _ in range(3))  # four times as much text
    assert any(looks)  # a machine with other things to do may spoil one


def test_cleaning_is_done_once_and_for_all():
    for text in ("a  b\n c", "**x** !!", "[l](u) https://x.y/z"):
        assert clean(clean(text)) == clean(text)


def test_a_token_of_punctuation_has_no_words():
    assert spell_token("—") == []
    assert spell_token("?!") == []


def test_a_whole_text_is_spelled_as_it_is_said():
    assert (
        spell_text("**It** costs $14 — for 20 hours!")
        == "It costs fourteen dollars for twenty hours!"
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("# Plans\n\n- **Free**: $0\n- Premium: $14/mo", "Plans Free: zero dollars Premium: "
         "fourteen dollars a month"),
        ("| Plan | Price |\n|---|---|\n| Pro | $14 |", "Plan, Price. Pro, fourteen dollars."),
        ("```python\nx = 5\n```", "x equals five"),
        ("> quoted\n> twice", "quoted twice"),
        ("Fish &amp; chips", "Fish and chips"),
        ("![a logo](x.png) and <br> more", "a logo and more"),
        ("~~old~~ _new_ `code`", "old new code"),
    ],
)  # fmt: skip
def test_markup_is_not_said(written, said):
    assert spoken(written) == said
