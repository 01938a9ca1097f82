"""The director under scripted votes: always, never, at random."""

import random
from itertools import pairwise

import pytest

from engine.config import EPAD, PAD
from engine.dialogue import events as ev
from engine.dialogue.director import Director, Mode
from engine.dialogue.text import prepare
from engine.runtime.backend import HeardRow
from engine.runtime.embedded import ByteTokenizer
from tests.dialogue.scripted import LOUD, OWN, Scripted, always, always_a_piece, chance, never

TEXT = (
    "Good morning, everybody. Extraordinarily interesting umbrellas cost $14.50 today; "
    "a tiny red one is free! Would you like it? Say yes, or say no, and we go on."
)
VOTES = {
    "never": never,
    "always": always,
    "pieces": always_a_piece,
    **{f"random {n}": chance(rate, n) for n, rate in enumerate((0.05, 0.25, 0.4, 0.7))},
}


@pytest.fixture(params=VOTES, name="said")
def said_under_every_kind_of_vote(request):
    script = Scripted(VOTES[request.param])
    script.say(TEXT)
    script.until_said()
    return script


def words_of(text):
    return prepare(text, ByteTokenizer())


# -- speaking --------------------------------------------------------------------------------------


def test_all_words_are_fed_once_in_order_with_their_pieces_together(said):
    assert len(said.begins(words_of(TEXT))) == len(words_of(TEXT))


def test_no_word_begins_before_the_last_one_can_be_spoken(said):
    words = words_of(TEXT)
    begins = said.begins(words)
    for word, begin, following in zip(words, begins, begins[1:], strict=False):
        assert following - begin >= word.need


def test_no_word_is_left_waiting_beyond_its_limit(said):
    words = words_of(TEXT)
    begins = said.begins(words)
    for word, begin, following in zip(words, begins, begins[1:], strict=False):
        assert following - begin <= word.limit


def test_the_transcript_shows_what_was_written(said):
    assert said.text == " " + TEXT
    assert said.spoken() == TEXT


def test_speaking_and_done_bracket_the_text(said):
    assert said.states == [(1, "speaking"), (1, "done"), (1, "queued")]
    told = [event for _, event in said.events if not isinstance(event, ev.TakenUp)]
    assert isinstance(told[0], ev.Saying)
    assert isinstance(told[-1], ev.Saying)


def test_a_word_opens_with_epad_unless_words_touch():
    script = Scripted(never)
    script.say("one two three")
    script.until_said()
    for begin in script.begins(words_of("one two three")):
        assert script.fed[begin] == EPAD


def test_words_may_touch_when_the_model_votes_with_a_piece():
    script = Scripted(always_a_piece)
    script.say("extraordinarily so")
    script.until_said()
    assert script.begins(words_of("extraordinarily so"))


def test_the_pace_lies_between_72_and_200_words_a_minute():
    text = " ".join(["someone", "said", "it", "again"] * 8)
    for vote, low, high in ((never, 55, 110), (always, 150, 320), (chance(0.3), 100, 200)):
        script = Scripted(vote)
        script.say(text)
        script.until_said()
        begins = script.begins(words_of(text))
        pace = (len(begins) - 1) / ((begins[-1] - begins[0]) * 0.08 / 60)
        assert low <= pace <= high, (vote, pace)


def test_without_votes_a_comma_gives_six_frames_more_and_a_sentences_end_ten():
    script = Scripted(never)
    script.say("one two, three. four")
    script.until_said()
    begins = script.begins(words_of("one two, three. four"))
    assert [later - begin for begin, later in pairwise(begins)] == [8, 8 + 6, 10 + 10]


def test_the_first_word_comes_at_the_first_vote_after_two_frames():
    eager, shy = Scripted(always), Scripted(never)
    for script, frames in ((eager, 2), (shy, 8)):
        script.say("Hello")
        script.run(20)
        assert script.fed.index(EPAD) + 1 == frames


# -- one output for one input ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_each_frame_gets_exactly_one_legal_token(seed):
    rng = random.Random(seed)
    script = Scripted(chance(rng.random(), seed))
    commands = [
        lambda: ev.Say(rng.randrange(99), TEXT[: rng.randrange(1, 90)], replace=rng.random() < 0.3),
        lambda: ev.Say(rng.randrange(9), "a growing text", growing=True),
        lambda: ev.Say(rng.randrange(9), "The answer is here.", answer=rng.randrange(5)),
        lambda: ev.More(rng.randrange(9), "and more of it", rng.random() < 0.5),
        *(ev.Cancel, ev.EndTurn, ev.Pause, ev.Resume, ev.Resume),
        lambda: ev.Hold(rng.randrange(5)),
        lambda: ev.Release(rng.randrange(5)),
    ]
    loud = False
    for _ in range(1500):
        if rng.random() < 0.05:
            script.take(rng.choice(commands)())
        loud = loud != (rng.random() < 0.03)
        token = script.frame(LOUD if loud else 0.0, rng.random() * 0.1)
        assert isinstance(token, int)
        assert token >= 0
    script.take(ev.Resume())
    script.take(ev.EndTurn())
    script.run(60)
    assert script.director.mode is Mode.FREE


def test_a_free_director_changes_nothing():
    rng = random.Random(1)
    sampled = [rng.choice([PAD, EPAD, rng.randrange(4, 9999)]) for _ in range(500)]
    script = Scripted(lambda frame: sampled[frame])
    for _ in sampled:
        script.frame(rng.random(), rng.random())
    assert script.fed == sampled
    assert not any(script.hushed)
    assert not script.director.wants_frames


def test_the_models_own_words_are_shown_as_its_own():
    ids = ByteTokenizer().encode("naïve café")
    script = Scripted(lambda frame: ids[frame])
    script.run(len(ids))
    assert script.own_text == " naïve café"
    assert script.text == ""


# -- queue -----------------------------------------------------------------------------------------


def test_ten_texts_may_wait_and_the_eleventh_is_refused():
    script = Scripted()
    for number in range(11):
        script.say(f"text {number}", id=number)
    assert [e.id for e in script.told if isinstance(e, ev.Saying)] == list(range(10))
    (refused,) = [e for e in script.told if isinstance(e, ev.Refused)]
    assert "10 texts are waiting" in refused.message


def test_texts_are_said_in_the_order_they_came():
    script = Scripted(always)
    for number, text in enumerate(("first", "second", "third")):
        script.say(text, id=number)
    script.until_said()
    assert script.text == " first second third"
    assert [id for id, state in script.states if state == "done"] == [0, 1, 2]


def test_replace_finishes_the_word_and_drops_the_rest_and_the_queue():
    script = Scripted(always)
    script.say("extraordinarily long and tedious", id=1)
    script.say("waits", id=2)
    while script.text == "":
        script.frame()
    script.say("new", id=3, replace=True)
    script.until_said()
    assert script.text == " extraordinarily new"
    assert (1, "cancelled") in script.states
    assert (2, "cancelled") in script.states
    assert script.begins([*words_of("extraordinarily"), *words_of("new")])


def test_a_text_with_nothing_to_say_is_refused():
    script = Scripted()
    script.say("🎉 !!!")
    (refused,) = script.told
    assert "nothing in this text can be spoken" in refused.message
    assert not script.director.wants_frames


# -- stopping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", range(8, 33, 3))
def test_cancel_takes_no_longer_than_the_longest_word_and_a_frame(frames):
    text = "The extraordinarily interesting umbrellas of yesterday"
    longest = max(len(word.ids) for word in words_of(text))
    script = Scripted(always)
    script.say(text)
    script.run(frames)
    assert script.director.agenda.current
    script.take(ev.Cancel())
    script.run(longest + 1)
    assert (1, "cancelled") in script.states
    spoken = script.spoken()
    assert script.text.strip() == spoken
    assert script.begins(words_of(spoken)) if spoken else True  # no word was cut


def test_cancel_before_the_first_word_says_nothing():
    script = Scripted()
    script.say("never")
    script.frame()
    script.take(ev.Cancel())
    script.run(20)
    assert script.text == ""
    assert (1, "cancelled") in script.states


def test_cancel_with_nothing_to_say_is_harmless():
    script = Scripted(always_a_piece)
    script.take(ev.Cancel())
    script.run(5)
    assert script.fed == [OWN] * 5


def test_end_turn_stops_inside_a_word_and_hushes():
    script = Scripted(always)
    script.say("extraordinarily interesting", id=1)
    script.say("waits", id=2)
    while script.text == "":
        script.frame()
    script.take(ev.EndTurn())
    script.run(25)
    assert set(script.fed[-25:]) == {PAD}
    assert all(script.hushed[-25:-1])
    assert {(1, "cancelled"), (2, "cancelled")} <= set(script.states)


def test_end_turn_silences_the_models_own_speech_too():
    script = Scripted(always_a_piece)
    script.run(5)
    script.take(ev.EndTurn())
    script.run(3)
    assert script.fed[-3:] == [PAD] * 3
    assert script.hushed[-3:] == [True] * 3


def test_after_the_last_word_it_is_silent_until_the_user_speaks():
    script = Scripted(always_a_piece)
    script.say("Hello.")
    script.until_said()
    done = len(script.fed)
    script.run(6)
    assert set(script.fed[done:]) == {PAD}
    script.run(8, user=LOUD)
    assert script.fed[-1] == OWN


def test_after_the_last_word_it_is_silent_for_two_seconds_at_most():
    script = Scripted(always_a_piece)
    script.say("Hello.")
    script.until_said()
    done = len(script.fed)
    script.run(30)
    assert script.fed[done : done + 25] == [PAD] * 25
    assert script.fed[-1] == OWN


# -- pause -----------------------------------------------------------------------------------------


def test_a_pause_is_padding_and_hush_and_what_is_to_be_said_waits():
    script = Scripted(always_a_piece)
    script.take(ev.Pause())
    script.say("patience")
    script.run(30)
    assert script.fed == [PAD] * 30
    assert all(script.hushed)
    script.take(ev.Resume())
    script.until_said()
    assert script.text == " patience"


def test_a_pause_inside_a_word_says_and_shows_it_once_more_from_its_start_but_writes_it_once():
    script = Scripted(always)
    script.say("extraordinarily interesting")
    while script.text == "":
        script.frame()
    script.frame()
    script.take(ev.Pause())
    script.run(5)
    paused = len(script.fed)
    script.take(ev.Resume())
    script.until_said()
    assert script.text == " extraordinarily interesting"
    assert script.spoken() == "extraordinarily interesting"
    rest = Scripted()
    rest.fed = script.fed[paused:]
    assert rest.begins(words_of("extraordinarily interesting"))
    assert [state for _, state in script.states].count("speaking") == 1


def test_a_pause_does_not_ask_a_silent_client_for_frames():
    script = Scripted()
    script.say("patience")
    assert script.director.wants_frames
    script.take(ev.Pause())
    script.run(20)
    assert not script.director.wants_frames
    script.take(ev.Resume())
    assert script.director.wants_frames


def test_frames_are_wanted_until_12_frames_after_the_last_word():
    script = Scripted()
    script.say("Hello.")
    script.until_said()
    for _ in range(12):
        assert script.director.wants_frames
        script.frame()
    script.frame()
    assert not script.director.wants_frames


# -- the floor -------------------------------------------------------------------------------------


def test_it_waits_for_a_user_who_is_speaking_but_for_two_seconds_at_most():
    script = Scripted(always)
    script.run(6, user=LOUD)
    before = len(script.fed)
    script.say("Excuse me.")
    script.run(40, user=LOUD)
    first = script.fed.index(words_of("Excuse")[0].ids[0])
    assert 25 <= first - before <= 30


def test_it_speaks_as_soon_as_the_user_is_silent():
    script = Scripted(always)
    script.run(6, user=LOUD)
    script.say("Yes.")
    script.run(10, user=LOUD)
    script.run(10)
    assert script.text == " Yes."


def speaking(text="One two three four five six seven eight nine ten eleven twelve"):
    script = Scripted(always)
    script.say(text)
    while script.text.count(" ") < 3:
        script.frame()
    return script


def test_a_user_who_barges_in_stops_it_after_the_word():
    script = speaking()
    script.run(8, user=LOUD)
    assert script.states[0] == (1, "speaking")
    assert (1, "cancelled") in script.states
    assert "twelve" not in script.text
    assert script.spoken() == script.text.strip()


def test_a_cough_does_not_stop_it():
    script = speaking()
    script.run(2, user=LOUD)
    script.until_said()
    assert (1, "done") in script.states
    assert script.text.endswith(" twelve")


def test_a_user_who_spoke_before_it_began_does_not_stop_it():
    script = Scripted(always)
    script.run(10, user=LOUD)
    script.say("One two three four five six")
    script.run(45, user=LOUD)
    assert (1, "cancelled") not in script.states


def test_a_new_onset_during_speech_counts_even_after_an_old_one():
    script = Scripted(always)
    script.run(10, user=LOUD)
    script.say("One two three four five six seven eight nine ten eleven twelve thirteen")
    script.run(30, user=LOUD)
    script.run(10)
    script.run(10, user=LOUD)
    assert (1, "cancelled") in script.states


# -- holding for an answer -------------------------------------------------------------------------


def test_a_hold_is_padding_until_the_answer_which_starts_at_once():
    script = Scripted(always_a_piece)
    script.take(ev.Hold(7))
    script.run(20)
    assert script.fed == [PAD] * 20
    assert script.director.wants_frames
    script.say("Forty two.", id=7, answer=7)
    script.run(2)
    assert script.fed[20] == EPAD
    assert script.fed[21] not in (PAD, EPAD)
    script.until_said()
    assert script.text == " Forty two."


def test_a_held_agent_that_talks_on_is_hushed():
    script = Scripted(never)
    script.take(ev.Hold(1))
    script.run(5, agent=0.3)
    assert not any(script.hushed)
    script.run(3, agent=0.3)
    assert script.hushed[-1]


def test_an_answer_goes_before_what_was_queued_meanwhile():
    script = Scripted(always)
    script.take(ev.Pause())
    script.take(ev.Hold(1))
    script.say("queued", id=2)
    script.say("answer", id=1, answer=1)
    script.take(ev.Resume())
    script.until_said()
    assert script.text == " answer queued"


def test_a_release_gives_the_floor_back():
    script = Scripted(always_a_piece)
    script.take(ev.Hold(1))
    script.run(3)
    script.take(ev.Release(2))  # somebody else's
    script.run(3)
    assert script.director.mode is Mode.HOLD
    script.take(ev.Release(1))
    script.run(40)
    assert script.fed[-1] == OWN


def test_a_user_who_speaks_during_a_hold_changes_nothing():
    script = Scripted(always)
    script.take(ev.Hold(1))
    script.run(5)
    script.run(20, user=LOUD)
    script.run(20)
    assert not [event for _, event in script.events if isinstance(event, ev.HoldEnded)]
    assert script.director.held
    assert set(script.fed) == {PAD}


# -- growing texts ---------------------------------------------------------------------------------


def test_a_growing_text_goes_on_where_it_stopped():
    script = Scripted(always)
    script.say("The answer is", growing=True)
    script.run(15)
    script.take(ev.More(1, "forty two", last=True))
    script.until_said()
    assert script.text == " The answer is forty two"
    assert script.states.count((1, "done")) == 1


def test_a_growing_text_that_begins_empty_waits_for_its_first_clause():
    script = Scripted(always)
    script.say("", growing=True)
    script.run(20)
    assert (1, "speaking") not in script.states
    script.take(ev.More(1, "here it is", last=True))
    script.until_said()
    assert script.text == " here it is"


def test_a_growing_text_that_runs_dry_ends_after_its_last_whole_word():
    script = Scripted(always)
    script.say("One two", growing=True)
    script.until_said(limit=60)
    assert (1, "done") in script.states
    assert script.spoken() == "One two"


def test_an_empty_growing_text_that_is_closed_is_done():
    script = Scripted(always)
    script.say("", growing=True)
    script.run(5)
    script.take(ev.More(1, "", last=True))
    script.until_said(limit=20)
    assert (1, "done") in script.states


def test_a_cancelled_growing_text_takes_no_more():
    script = Scripted(always)
    script.say("One two three four", growing=True)
    script.run(8)
    script.take(ev.Cancel())
    script.run(10)
    script.take(ev.More(1, "five six", last=True))
    script.run(60)
    assert "five" not in script.text


# -- cost ------------------------------------------------------------------------------------------


def test_a_word_without_blanks_cannot_hold_the_floor_for_minutes():
    script = Scripted(always)
    script.say("漢" * 2000)
    script.run(30)
    script.take(ev.Cancel())
    script.run(40)
    assert (1, "cancelled") in script.states


def test_a_director_is_cheap():
    director = Director(ByteTokenizer())
    director.take(ev.Say(1, TEXT, words_of(TEXT)))
    for _ in range(2000):
        director.step(EPAD, HeardRow(), 0.0, 0.0)
        director.events()
    assert director.mode is Mode.FREE
