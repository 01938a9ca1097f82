"""The facts on disk and the search in them."""

import pytest

from engine.errors import ConfigError
from engine.lookup.knowledge import (
    KNOWLEDGE_FOLDER,
    SENT_CHARS,
    Knowledge,
    Section,
    read_sections,
    stem,
    terms,
)

SHEETS = """# Lamps
## Red lamp
<!-- crimson light -->
The red lamp costs $5.
## Blue lamp
The blue lamp
shines at night.
"""


def test_sections_keep_their_facts_and_hide_their_search_words():
    (red, blue), heads = read_sections(SHEETS)
    assert heads == ["Lamps"]
    assert (red.title, red.text) == ("Red lamp", "The red lamp costs $5.")
    assert "crimson" in red.searched
    assert "crimson" not in red.text
    assert blue.text == "The blue lamp shines at night."


def test_hidden_words_find_their_section():
    found = Knowledge(read_sections(SHEETS)[0]).find("Have you got a crimson one?")
    assert found.order == (0,)


def test_words_that_nobody_knows_find_nothing():
    found = Knowledge(read_sections(SHEETS)[0]).find("zebra crossings")
    assert (found.score, found.order) == (0.0, ())


def test_everyday_sentences_compete_with_the_facts():
    knowledge = Knowledge(read_sections(SHEETS)[0], ["what a lovely night tonight good night"])
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
    for fact in (
        "$1.49",
        "$14",
        "$10",
        "$21",
        "$15",
        "20 minutes",
        "more than 50",
        "95 to 98",
        "transgate.ai",
        "avi",
        "in beta",
        "told apart",
        "free trial first",
    ):
        assert fact in text
    assert "crosstalk" not in text  # it had no source


# -- what strangers' folders hold ------------------------------------------------------------------


def titles(knowledge: Knowledge) -> list[str]:
    return [section.title for section in knowledge.sections]


def test_the_mark_of_utf_8_and_the_text_before_the_first_section_are_read(tmp_path):
    text = "# Lamps\nWe sell lamps since 1950.\n\n## Red\nIt is red.\n"
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "b.md").write_text("No heading here.", encoding="utf-8")
    sections = Knowledge.load(tmp_path).sections
    assert [(s.title, s.text) for s in sections] == [
        ("Lamps", "We sell lamps since 1950."),
        ("Red", "It is red."),
        ("b", "No heading here."),
    ]


def test_a_heading_inside_a_fence_or_a_comment_is_none(tmp_path):
    text = "## One\n```\n## not one\n```\nstill one\n<!--\n## hidden\n-->\n## Two\nyes\n"
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    one, two = Knowledge.load(tmp_path).sections
    assert (one.title, two.title) == ("One", "Two")
    assert "still one" in one.text
    assert "hidden" not in one.text


def test_subfolders_capitals_and_text_files_are_read_and_others_named_in_one_warning(
    tmp_path, caplog
):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "UP.MD").write_text("## Up\nyes", encoding="utf-8")
    (tmp_path / "plain.txt").write_text("## no heading in text", encoding="utf-8")
    for name in ("list.csv", "page.html", ".hidden.pdf"):
        (tmp_path / name).write_text("x")
    assert titles(Knowledge.load(tmp_path)) == ["Up", "plain"]
    (warning,) = caplog.records
    assert "list.csv, page.html" in warning.message
    assert "hidden" not in warning.message


@pytest.mark.parametrize("data", ["Café".encode("latin-1"), "Café".encode("utf-16")])
def test_another_encoding_is_one_clear_error(tmp_path, data):
    (tmp_path / "menu.md").write_bytes(b"## Menu\n" + data)
    with pytest.raises(ConfigError, match=r"menu\.md is not UTF-8 .*save it as UTF-8"):
        Knowledge.load(tmp_path)


def test_the_best_of_a_large_base_is_sent():
    assert Knowledge.load().is_small
    many = [Section(f"Lamp {i}", f"It costs {i} dollars. " * 20) for i in range(300)]
    large = Knowledge(many)
    picked = large.pick(large.find("What is the price of lamp 77?").order)
    assert picked[0].title == "Lamp 77"
    assert 1 < len(picked) < 40
    assert sum(len(section.sheet) for section in picked) <= SENT_CHARS


def test_a_section_longer_than_the_budget_is_cut():
    knowledge = Knowledge([Section("Novel", "word " * 10_000), Section("Other", "x")])
    (novel, *_) = knowledge.pick((0, 1))
    assert novel.title == "Novel"
    assert len(novel.sheet) <= SENT_CHARS


def test_five_megabytes_in_twelve_thousand_sections_are_searched_by_words(tmp_path):
    text = "".join(
        f"## Item {i}\nIt is kept on shelf {i} of hall {i % 40}. {'x ' * 180}\n"
        for i in range(12_000)
    )
    assert len(text) > 4_500_000
    (tmp_path / "big.md").write_text(text, encoding="utf-8")
    knowledge = Knowledge.load(tmp_path)
    found = knowledge.find("Where is item 7345?")
    assert knowledge.sections[found.order[0]].title == "Item 7345"
    assert not knowledge.is_small
    assert sum(len(section.sheet) for section in knowledge.pick(found.order)) <= SENT_CHARS


def test_a_folder_that_is_not_there_is_said_to_be_none(tmp_path):
    with pytest.raises(ConfigError, match=r"knowledge: .*gone is no folder; give one with"):
        Knowledge.load(tmp_path / "gone")
