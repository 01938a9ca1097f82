"""What of a conversation the text model is told."""

from engine.lookup.evidence import Turn
from engine.lookup.routing import SENT_CHARS, SENT_TURNS, History


def contents(history: History) -> list[str]:
    return [message["content"] for message in history.messages()]


def test_both_sides_are_told_in_order_and_the_agents_pieces_are_one_turn():
    history = History()
    history.add_user_turn(" Hello  there. ")
    for piece in (" Good", " morning."):
        history.add_agent_text(piece)
    assert history.messages() == [
        {"role": "user", "content": "Hello there."},
        {"role": "assistant", "content": "Good morning."},
    ]


def test_what_does_not_fit_is_cut_to_its_last_sentences_and_nothing_older_is_told():
    history = History()
    for text in ("old", "The beginning. " + "x" * (SENT_CHARS - 10) + ". The end.", "new"):
        history.add_user_turn(text)
    cut, new = contents(history)
    assert new == "new"
    assert cut.endswith("The end.")
    assert "beginning" not in cut
    history.add_user_turn("A sentence. " * 200)
    assert contents(history)[0].startswith("A sentence.")
    assert sum(map(len, contents(history))) <= SENT_CHARS


def test_of_an_unbroken_turn_the_last_words_are_told():
    history = History()
    history.add_user_turn("word " * 400 + "and the price")
    (told,) = contents(history)
    assert told.endswith("and the price")
    assert told.startswith("word")
    assert SENT_CHARS - 10 < len(told) <= SENT_CHARS


def test_a_turn_knows_what_was_said_before_it():
    history = History()
    first = history.add_user_turn("How much is it?")
    history.add_agent_text(" Ten")
    history.add_agent_text(" dollars.")
    second = history.add_user_turn("A month?")
    third = history.add_user_turn("Or a year?")
    assert first == Turn("How much is it?")
    assert second == Turn("A month?", "Ten dollars.", "How much is it?")
    assert third == Turn("Or a year?", "", "A month?")


def test_the_rest_of_a_turn_is_joined_to_it_whatever_the_agent_said_into_it():
    history = History()
    history.add_user_turn("Hello.")
    history.add_agent_text(" Hi.")
    history.add_user_turn("How much")
    history.add_agent_text(" Well")
    assert history.add_user_turn("is it?", True) == Turn("How much is it?", "Hi.", "Hello.")
    assert contents(history) == ["Hello.", "Hi.", "How much is it?", "Well"]
    assert History().add_user_turn("is it?", True) == Turn("is it?")


def test_the_last_eight_turns_are_told():
    history = History()
    for number in range(SENT_TURNS + 3):
        history.add_user_turn(f"turn {number}")
    assert contents(history) == [f"turn {number}" for number in range(3, SENT_TURNS + 3)]
