"""When a user's turn needs the facts: the scripted dialogues, and the rules one by one."""

import tomllib
from pathlib import Path

import pytest

from engine.lookup.handover import load_phrases
from engine.lookup.knowledge import Knowledge
from engine.lookup.router import FOLLOW_UP_TURNS, Router, is_question

DIALOGUES = Path(__file__).parents[1] / "dialogues"


@pytest.fixture(scope="module")
def router() -> Router:
    return Router(Knowledge.load(everyday=load_phrases().smalltalk))


def judged(router: Router) -> list[tuple[str, bool, bool]]:
    """(turn, should be routed, was routed) of all scripted turns in words."""
    result = []
    for path in sorted(DIALOGUES.glob("*.toml")):
        for dialogue in tomllib.loads(path.read_text(encoding="utf-8"))["dialogue"]:
            before, since = "", 0
            for turn in dialogue["turns"]:
                if not turn.get("transcribed", True):
                    continue
                since += 1
                near = before if since <= FOLLOW_UP_TURNS else ""
                routed = router.needs_facts(turn["user"], near)
                result.append((turn["user"], turn.get("routed", False), routed))
                if routed:
                    before, since = turn["user"], 0
    return result


def test_there_are_at_least_sixty_scripted_dialogues():
    files = [tomllib.loads(path.read_text(encoding="utf-8")) for path in DIALOGUES.glob("*.toml")]
    assert sum(len(file["dialogue"]) for file in files) >= 60


def test_small_talk_is_left_alone_in_98_of_100_turns(router):
    small = [(turn, routed) for turn, should, routed in judged(router) if not should]
    wrong = [turn for turn, routed in small if routed]
    assert len(wrong) <= 0.02 * len(small), wrong


def test_product_questions_are_routed_in_95_of_100_turns(router):
    product = [(turn, routed) for turn, should, routed in judged(router) if should]
    missed = [turn for turn, routed in product if not routed]
    assert len(missed) <= 0.05 * len(product), missed


def test_a_follow_up_is_read_with_the_question_before_it(router):
    assert not router.needs_facts("No, I meant the business plan.")
    assert router.needs_facts("No, I meant the business plan.", "How much is premium?")
    facts = router.facts("And if I pay yearly?", "How much is the premium plan?")
    assert "Premium plan" in [section.title for section in facts[:2]]


def test_a_longer_turn_speaks_for_itself(router):
    before = "How much is premium?"
    assert router.needs_facts("No, I meant the business plan of this year.", before)
    assert not router.needs_facts("No, I meant the business plan of this year, my friend.", before)


def test_a_statement_about_the_product_is_no_question(router):
    assert not router.needs_facts("I used the premium plan last year and liked it.")


def test_everyday_questions_after_a_routed_one_are_left_alone(router):
    before = "How much is the premium plan?"
    for text in ("What did you have for breakfast?", "How is your sister?", "Thanks a lot."):
        assert not router.needs_facts(text, before), text


def test_the_facts_of_a_question_come_best_first(router):
    facts = router.facts("What does the business plan cost?")
    assert facts[0].title == "Business plan"
    assert len(facts) <= 3


def test_a_question_about_anything_else_has_no_facts(router):
    assert router.facts("What is the capital of Australia?") == ()


@pytest.mark.parametrize(
    "text",
    [
        "How much is it?",
        "and what about Turkish",
        "Hello, do you have an API",
        "I was wondering if it works in German",
        "Okay, tell me about your prices.",
    ],
)
def test_these_ask(text):
    assert is_question(text)


@pytest.mark.parametrize(
    "text", ["Premium was great.", "Uh-huh.", "", "I lost my keys.", "How much is it, never mind."]
)
def test_these_do_not_ask(text):
    assert not is_question(text)
