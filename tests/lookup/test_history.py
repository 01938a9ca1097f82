"""What of a conversation the text model is told."""

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


def test_nothing_older_than_a_turn_that_is_too_long_is_told():
    history = History()
    for text in ("old", "x" * (SENT_CHARS - 2), "new"):
        history.add_user_turn(text)
    assert contents(history) == ["new"]


def test_the_last_eight_turns_are_told():
    history = History()
    for number in range(SENT_TURNS + 3):
        history.add_user_turn(f"turn {number}")
    assert contents(history) == [f"turn {number}" for number in range(3, SENT_TURNS + 3)]
