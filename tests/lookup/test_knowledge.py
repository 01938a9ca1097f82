"""The facts on disk and the search in them."""

import pytest

from engine.errors import ConfigError
from engine.lookup.knowledge import KNOWLEDGE_FOLDER, Knowledge, read_sections, stem, terms

SHEETS = """# Lamps
## Red lamp
<!-- crimson light -->
The red lamp costs $5.
## Blue lamp
The blue lamp
shines at night.
"""


def test_sections_keep_their_facts_and_hide_their_search_words():
    red, blue = read_sections(SHEETS)
    assert (red.title, red.text) == ("Red lamp", "The red lamp costs $5.")
    assert "crimson" in red.searched
    assert "crimson" not in red.text
    assert blue.text == "The blue lamp shines at night."


def test_hidden_words_find_their_section():
    found = Knowledge(read_sections(SHEETS)).find("Have you got a crimson one?")
    assert [section.title for section in found.sections] == ["Red lamp"]


def test_words_that_nobody_knows_find_nothing():
    found = Knowledge(read_sections(SHEETS)).find("zebra crossings")
    assert (found.score, found.sections) == (0.0, ())


def test_everyday_sentences_compete_with_the_facts():
    knowledge = Knowledge(read_sections(SHEETS), ["what a lovely night tonight good night"])
    assert knowledge.find("Good night!").everyday > knowledge.find("Good night!").score
    assert knowledge.find("the blue one").everyday == 0


def test_a_folder_of_ones_own_replaces_the_facts(tmp_path):
    (tmp_path / "lamps.md").write_text(SHEETS, encoding="utf-8")
    assert [s.title for s in Knowledge.load(tmp_path).sections] == ["Red lamp", "Blue lamp"]


def test_an_empty_folder_is_refused_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        Knowledge.load(tmp_path)


def test_endings_do_not_matter_to_the_search():
    assert stem("transcribing") == stem("transcribes") == stem("transcribed")
    assert terms("How much are the plans?") == ["much", "plan"]


def test_our_own_facts_warn_that_the_owner_must_confirm_the_prices():
    text = (KNOWLEDGE_FOLDER / "transgate.md").read_text(encoding="utf-8")
    assert "CONFIRMED BY THE OWNER" in text.split("# Transgate")[0]
    for fact in ("$1.49", "$14", "$10", "$21", "$15", "20 minutes", "more than 50", "95 to 98"):
        assert fact in text
