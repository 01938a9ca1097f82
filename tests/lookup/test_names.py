"""Names as they are heard."""

import pytest

from engine.lookup.names import Names

NAMES = Names(["Transgate", "Premium plan", "Business plan", "The Zenith package", "Kestrel Gym"])


@pytest.mark.parametrize(
    ("heard", "name"),
    [
        *(("what is trans gate", "Transgate"), ("does trance gate do it", "Transgate")),
        *(("Trans-Gate, right?", None), ("how much is the primium", "Premium")),
        *(("the senith thing", "Zenith"), ("Kestral?", "Kestrel"), ("transgait", "Transgate")),
    ],
)
def test_a_misheard_name_is_written_as_in_the_facts(heard, name):
    folded, named = NAMES.fold(heard)
    assert named is (name is not None)
    assert name is None or name in folded.split()


@pytest.mark.parametrize("text", ["I like dogs.", "The garden gate is open.", "trams", "14 plants"])
def test_other_words_stay(text):
    folded, named = NAMES.fold(text)
    assert not named
    assert folded.replace(" .", ".") == text


def test_no_titles_no_names():
    assert Names([]).fold("Hello there") == ("Hello there", False)
