"""When a user's turn is looked up: by meaning, and by words until the vectors are there."""

import json
import threading
import tomllib
from pathlib import Path

import pytest

from engine.config import ServerConfig
from engine.evals.decisions import as_heard, measure, play, read_dialogues
from engine.lookup import router as module
from engine.lookup.evidence import (
    RELATIONS,
    TALK_FILE,
    TalkBank,
    Turn,
    is_question,
    read_form,
    split_clauses,
)
from engine.lookup.handover import load_phrases
from engine.lookup.knowledge import KNOWLEDGE_FOLDER, Knowledge
from engine.lookup.router import Band, Router, load_weights
from engine.lookup.routing import build_answers
from engine.tools.fit_router import name_inputs

ROUTING = Path(__file__).parents[1] / "dialogues" / "routing"
PREMIUM = "How much is the premium plan?"


@pytest.fixture(scope="module")
def router() -> Router:
    router = Router(Knowledge.load(KNOWLEDGE_FOLDER, load_phrases().smalltalk))
    assert router.wait()
    return router


@pytest.fixture
def by_words() -> Router:
    return Router(Knowledge.load(KNOWLEDGE_FOLDER, load_phrases().smalltalk))


# -- by meaning ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "slack"),
    [("transgate", 0.0), ("transgate-strangers", 0.0), ("northlight", 0.05), ("voltara", 0.05),
     ("inkwell", 0.05), ("otterbay", 0.05), ("transgate-visitors", 0.0), ("pinecycle", 0.05),
     ("dentiva", 0.05), ("marlow", 0.05), ("tumblewash", 0.05)],
)  # fmt: skip
async def test_the_measured_dialogues_are_decided_as_promised(name, slack):
    product = name.partition("-")[0]
    folder = "" if product == "transgate" else str(ROUTING / "knowledge" / product)
    answers = build_answers(ServerConfig(knowledge=folder), {})
    assert answers.router.wait()
    dialogues = read_dialogues(ROUTING / "measured" / f"{name}.json")
    figures = measure(await play(dialogues, answers, raw=False))
    assert figures["precision"] >= 0.92 - slack, figures["misses"]
    assert figures["recall"] >= 0.92 - slack, figures["misses"]
    assert figures["left_alone"] >= 0.97 - slack, figures["misses"]
    assert figures["doubt"] <= 0.20 + slack


def test_no_sentence_to_tune_on_stands_in_a_measured_dialogue():
    """Shorter ones are everybody's: they may stand in both."""

    def user_words(half: str) -> list[str]:
        dialogues = (
            one for path in (ROUTING / half).glob("*.json") for one in read_dialogues(path)
        )
        turns = (turn for dialogue in dialogues for turn in dialogue["turns"])
        return [as_heard(turn["text"]) for turn in turns if turn["speaker"] == "user"]

    near = tomllib.loads((ROUTING / "near.toml").read_text(encoding="utf-8"))
    banks = [*tomllib.loads(TALK_FILE.read_text(encoding="utf-8")).values()]
    banks += [bank for product in near.values() for bank in product.values()]
    tuned = {*user_words("tune"), *(as_heard(text) for bank in banks for text in bank)}
    measured = " | ".join(["", *user_words("measured"), ""])
    assert len(tuned) > 1000
    assert len(measured) > 10_000
    shared = {text for text in tuned if len(text.split()) > 5 and f" {text} " in measured}
    assert shared - {"can i talk to a human"} == set()


@pytest.mark.parametrize(
    "turn",
    [
        Turn("What do fourteen people on this cost us a month?"),
        Turn("so what is trance gate exactly"),
        Turn("I don't have to type in my card to try it, do I?"),
        Turn("No, I meant the business plan.", "It is fourteen dollars.", PREMIUM),
        Turn("And per year?", "Premium costs $14 a month.", PREMIUM),
    ],
)
def test_a_question_is_not_left_in_any_words(router, turn):
    assert router.judge(turn) is not Band.NO


@pytest.mark.parametrize(
    "turn",
    [
        Turn("My landlord wants me to sign a new contract."),
        Turn("I'm on a business trip in Chicago."),
        Turn("Thanks, that helps a lot.", "Premium costs $14 a month.", PREMIUM),
        Turn("My wife is calling, one second.", "Premium costs $14 a month.", PREMIUM),
        Turn("How many dollars is one euro right now?", "Premium costs $14 a month.", PREMIUM),
        Turn("what's seventeen times six"),
        Turn("Sorry, I was asking about the price of premium, never mind."),
        Turn("Which laptop should I buy?", "Maybe it's time for a new one.", "My computer is old."),
        Turn("", "", ""),
        Turn("…"),
    ],
)
def test_talk_is_never_routed_at_once(router, turn):
    assert router.judge(turn) is not Band.YES


def test_who_only_listens_asks_nothing_in_any_words(router):
    """While an answer is looked up, and while it is spoken."""
    said = (
        *("uh-huh", "okay", "um", "sure thanks", "Mm-hm.", "Gotcha.", "I see.", "Okay, thanks."),
        *("yeah", "Right.", "Makes sense.", "Oh wow.", "Cool, thank you.", "Of course.", "mhm mhm"),
        *("Go on.", "Sounds good.", "Got it, thanks.", "Hm, interesting.", "Perfect.", "Oh really"),
    )
    for agent in ("", "Premium costs $14 a month,"):
        judged = {text: router.judge(Turn(text, agent, PREMIUM)) for text in said}
        assert [text for text, band in judged.items() if band is Band.YES] == []


def test_the_weights_are_those_that_the_tool_makes_of_what_is_there():
    made_from = json.loads(module.WEIGHTS_FILE.read_text(encoding="utf-8"))["made_from"]
    assert made_from == name_inputs(), "run python -m engine.tools.fit_router (some minutes)"


def test_weights_for_other_relations_are_refused(tmp_path):
    text = module.WEIGHTS_FILE.read_text(encoding="utf-8").replace(f'"{RELATIONS[0]}"', '"luck"')
    (tmp_path / "router.json").write_text(text, encoding="utf-8")
    with pytest.raises(module.ConfigError, match="fit_router"):
        load_weights(tmp_path / "router.json")


# -- by words, until the vectors are there ---------------------------------------------------------


def test_words_alone_decide_until_the_vectors_are_there(by_words, monkeypatch):
    loading, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        loading.set()
        go_on.wait()
        raise OSError("no such model")

    monkeypatch.setattr(module, "load_vectors", slow)
    by_words.prepare()
    loading.wait()
    assert by_words.judge(Turn(PREMIUM)) is Band.YES
    assert by_words.judge(Turn("How is your sister?")) is Band.NO
    go_on.set()
    assert not by_words.wait()  # they never come
    assert by_words.judge(Turn(PREMIUM)) is Band.YES


def test_a_follow_up_is_read_with_the_turn_before_it(by_words):
    assert by_words.judge(Turn("What about yearly?", "Fourteen dollars.", PREMIUM)) is Band.YES
    assert by_words.judge(Turn("Thanks a lot.", "Fourteen dollars.", PREMIUM)) is Band.NO


# -- facts -----------------------------------------------------------------------------------------


def test_all_of_our_facts_go_along(router):
    assert router.facts("What's the hourly rate?") == router.knowledge.sections


def test_of_many_facts_the_ones_that_answer_go_along_in_other_words_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    little = TalkBank(("Hello.",), ("Who won?",), ("How much?",), ("I don't know.",))
    monkeypatch.setattr(module, "load_talk", lambda: little)  # it decides nothing here
    goods = ["Kettle", "Bicycle pump", "Reading lamp", "Umbrella", "Frying pan", "Alarm clock"]
    sheets = [
        f"## {name} {i}\nIt costs {i + 5} dollars. {'x' * 170}"  # long to send, quick to read
        for i in range(12)
        for name in goods
    ]
    (tmp_path / "shop.md").write_text("\n".join(sheets), encoding="utf-8")
    shop = Router(Knowledge.load(tmp_path))
    assert shop.wait()
    facts = shop.facts("Do you have something to boil water in?")
    assert facts[0].title.startswith("Kettle")
    assert len(facts) < len(sheets)


# -- form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["How much is it?", "and how long is that", "Tell me about prices.", "It's free, isn't it?",
     "Turkish?", "I'd like to know the price.", "My boss asks what we would pay",
     "wasn't it free before", "shouldn't i get a code", "weren't there two rooms",
     "couldnt we share one", "haven't you got a van"],
)  # fmt: skip
def test_it_asks(text):
    assert is_question(text)


@pytest.mark.parametrize(
    "text", ["Premium was great.", "I work in a hospital.", "Thanks a lot.", "never mind", ""]
)
def test_it_does_not_ask(text):
    assert not is_question(text)


def test_questions_inside_a_long_sentence_are_found():
    clauses = split_clauses("We are five in the office what would that cost us a month")
    assert "what would that cost us a month" in clauses
    assert read_form("We are five. What would that cost?").asks


def test_a_letter_that_is_two_in_lower_case_shifts_no_clause():
    clauses = split_clauses("İİİ İİİ bey asked me how much is it a month")
    assert "how much is it a month" in clauses
