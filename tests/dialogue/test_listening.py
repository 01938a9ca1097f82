"""The director's ears: the user's words stop it, end up in events, and reach the router."""

from collections.abc import Iterable

import pytest

from engine.config import PAD
from engine.dialogue import events as ev
from engine.dialogue.director import Director, Mode
from engine.dialogue.floor import UserFloor, sounds_like
from engine.dialogue.text import prepare
from engine.runtime.backend import HeardRow
from engine.runtime.embedded import ByteTokenizer
from tests.dialogue.hearing import TRANSCRIPTION, Heard, quiet, spoken

TEXT = "Extraordinarily interesting umbrellas are for sale here today and tomorrow."


class Listening:
    """A director beside a scripted user; `events` are (frame, event)."""

    def __init__(self) -> None:
        self.director = Director(ByteTokenizer(), floor=UserFloor(TRANSCRIPTION))
        self.events: list[tuple[int, ev.Event]] = []
        self.frames = 0

    def act(self, script: Iterable[Heard]) -> None:
        for heard in script:
            self.director.step(PAD, heard.row, heard.peak, 0.0)
            self.events += [(self.frames, event) for event in self.director.events()]
            self.frames += 1

    def say(self, text: str = TEXT) -> None:
        """Say something and wait until its first word has begun."""
        self.director.take(ev.Say(1, text, prepare(text, ByteTokenizer())))
        self.act(quiet(12))
        assert self.states[-1] == "speaking"

    @property
    def states(self) -> list[str]:
        return [str(e.state) for _, e in self.events if isinstance(e, ev.Saying)]

    def of(self, kind: type) -> list:
        return [event for _, event in self.events if isinstance(event, kind)]


def test_a_turn_comes_as_growing_text_and_once_as_a_whole():
    call = Listening()
    call.act([*quiet(15), *spoken("what is it"), *quiet(20)])
    assert [e.text for e in call.of(ev.UserText)] == ["what", "what is", "what is it", "what is it"]
    assert [e.final for e in call.of(ev.UserText)] == [False] * 3 + [True]


def test_a_flush_tells_the_turn_before_the_next_frame():
    call = Listening()
    call.act([*quiet(15), *spoken("what is it"), *quiet(2)])
    told = []
    while call.director.flushing:
        told += call.director.flush(HeardRow(stt_text=PAD))
    assert [(event.text, event.final) for event in told] == [("what is it", True)]
    call.act(quiet(20))
    assert not any(event.final for event in call.of(ev.UserText))


@pytest.mark.parametrize(
    ("said", "stops"), [("stop", True), ("no", True), ("a", False), ("um", False)]
)
def test_a_word_of_two_letters_stops_it_at_once_but_a_backchannel_never(said, stops):
    call = Listening()
    call.say()
    call.act(quiet(10))
    word = list(spoken(said))[:2]
    call.act([Heard(0.0, heard.token, 1.0) for heard in word])  # too soft to count as loud
    call.act(quiet(40))
    assert ("cancelled" in call.states) == stops


def test_an_echo_of_what_it_says_does_not_stop_it():
    call = Listening()
    call.say()
    call.act(quiet(10))
    call.act([Heard(0.0, heard.token, 1.0) for heard in spoken("extraordinarily")][:2])
    call.act(quiet(40))
    assert "cancelled" not in call.states


def test_the_late_words_of_a_question_do_not_stop_its_answer():
    call = Listening()
    call.act(quiet(15))
    call.say()
    call.act([Heard(0.0, heard.token, 1.0) for heard in spoken("please")][:2])
    call.act(quiet(40))
    assert "cancelled" not in call.states


@pytest.mark.parametrize(
    ("word", "text", "same"),
    [
        ("umbrel", "Interesting umbrellas", True),
        ("Interesting,", "interesting", True),
        ("rain", "umbrellas", False),
        ("stop", "", False),
    ],
)
def test_an_echo_is_a_word_that_begins_like_one_of_the_text(word, text, same):
    assert sounds_like(word, text) == same


@pytest.mark.parametrize(("words_come", "enough"), [(False, 6), (True, 9)])
def test_speech_of_no_known_word_stops_it_after_half_a_second_or_where_words_come_later(
    words_come, enough
):
    """480 ms, and 720 ms: an uh-huh that is about to be written down must be over before."""
    for spoken_frames in (enough - 1, enough):
        call = Listening()
        call.director = Director(ByteTokenizer(), floor=UserFloor(words_come=words_come))
        call.say()
        call.act(quiet(10))
        for speech in [True] * spoken_frames + [False] * 12:
            call.director.step(PAD, HeardRow(speech=(speech,)), 0.0, 0.0)
        stopped = call.director.mode is Mode.TAIL or not call.director.agenda.current
        assert stopped == (spoken_frames == enough)
