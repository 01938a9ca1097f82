"""The backend for any machine: greets, repeats, speaks what it is given."""

import numpy as np
import pytest

from engine.config import EPAD, FRAME_SAMPLES, GREEDY, PAD, VOICE_NAMES
from engine.dialogue import events as ev
from engine.lookup.handover import PieceDecoder
from engine.runtime.backend import Opening
from engine.runtime.embedded import (
    GREETINGS,
    ByteTokenizer,
    EmbeddedBackend,
    WordwiseTokenizer,
    espeak_voice,
)
from tests.runtime.call import SILENCE, Call
from tests.sound import assert_says, best_match, speech, word

LONG = (
    "This morning the harbor was quiet, the water was still, and nobody hurried. "
    "Later a small boat came in, brought fresh fish, and left again before noon."
)


@pytest.fixture(scope="module")
def greeted():
    """A conversation in which nobody said anything until the greeting was over."""
    call = Call(seed=3)
    call.silence(160)
    return call


# -- greeting --------------------------------------------------------------------------------------


def test_it_greets_and_says_what_it_is(greeted):
    assert greeted.text.strip() in GREETINGS
    assert "test voice, not the PersonaPlex model" in greeted.text
    assert_says(greeted.pcm, greeted.text.split())


def test_after_the_greeting_it_is_silent(greeted):
    assert not greeted.pcm[-10 * FRAME_SAMPLES :].any()


def test_the_text_of_a_word_belongs_to_the_frame_in_which_it_sounds(greeted):
    loud = [i for i, frame in enumerate(greeted.frames) if np.abs(frame).max() > 0.01]
    first_text = next(i for i, event in greeted.events if isinstance(event, ev.Text))
    assert loud[0] == first_text


def test_the_same_seed_gives_the_same_conversation():
    first, second = Call(seed=5), Call(seed=5)
    assert np.array_equal(first.silence(40), second.silence(40))
    assert first.sampled == second.sampled


def test_seeds_choose_between_the_greetings():
    words = set()
    for seed in range(12):
        call = Call(seed=seed)
        call.silence(12)
        words.add(call.text.split()[0])
    assert words == {greeting.split()[0] for greeting in GREETINGS}


def test_the_greeting_is_skipped_when_something_waits_to_be_said():
    call = Call(first="Good evening.")
    call.until_said()
    call.silence(30)
    assert call.text == " Good evening."
    assert_says(call.pcm, ["Good", "evening."])


def test_the_greeting_stops_when_something_else_is_said():
    call = Call()
    call.silence(20)
    call.say("Stop.")
    call.until_said()
    call.silence(60)
    assert call.text.endswith(" Stop.")
    assert len(call.text.split()) < 10


@pytest.mark.parametrize("after", [4, 12, 20, 30])
def test_a_user_who_speaks_during_the_greeting_is_let_speak_and_played_back(after):
    call, spoken = Call(seed=3), speech("seven yellow umbrellas")
    call.silence(after)
    said = len(call.text.split())
    call.hear(spoken)
    assert len(call.text.split()) <= said + 3  # it yields: the words on their way, no more
    call.frames.clear()
    call.silence(60)
    assert best_match(call.pcm, spoken[:-1200])[0] > 0.99


def test_a_user_who_speaks_while_a_text_is_said_is_played_back_after_it():
    call, spoken = Call(first="Hi."), speech("seven yellow umbrellas")
    call.until_said()
    call.silence(30)
    call.say("One two three four five six seven eight.")
    call.silence(20)
    call.hear(spoken * 0.01)  # too soft to interrupt, as a whisper beside the microphone
    call.silence(120)
    assert "eight." in call.text
    call.frames.clear()
    call.say("One two three four five.")
    call.silence(16)
    call.hear(spoken)
    call.silence(150)
    assert best_match(call.pcm, spoken[:-1200])[0] > 0.99


def test_where_words_are_written_the_playback_waits_for_an_answer():
    backend = EmbeddedBackend(1)
    list(backend.open(0, Opening("NATF2", transcribe=True)))
    late = backend._open[0].user.silence_frames
    list(backend.open(0, Opening("NATF2")))
    assert late > backend._open[0].user.silence_frames == 9


# -- playing back ----------------------------------------------------------------------------------


@pytest.fixture
def repeating():
    call = Call(first="Hi.")
    call.until_said()
    call.silence(30)
    call.frames.clear()
    return call


def test_it_plays_the_users_speech_back_after_the_pause(repeating):
    spoken = speech("seven yellow umbrellas")
    repeating.hear(spoken)
    end = len(repeating.frames)
    repeating.silence(60)
    score, at = best_match(repeating.pcm, spoken[:-1200])
    assert score > 0.99
    assert 9 <= at / FRAME_SAMPLES - end <= 13  # 0.72 s of silence, and a frame or two


def test_a_short_click_is_not_played_back(repeating):
    click = np.zeros(FRAME_SAMPLES, np.float32)
    click[100:200] = 0.9
    repeating.hear(click)
    assert not repeating.silence(40).any()


def test_a_second_utterance_is_played_back_too_and_only_it(repeating):
    first, second = speech("hello there my friend"), speech("seven yellow umbrellas")
    for spoken in (first, second):
        repeating.hear(spoken)
        repeating.silence(60)
    repeated = repeating.pcm[-60 * FRAME_SAMPLES :]
    assert best_match(repeated, second[:-1200])[0] > 0.99
    assert best_match(repeated, first[:-1200])[0] < 0.8


def test_the_user_who_speaks_again_interrupts_the_playback(repeating):
    repeating.hear(speech("this is a long sentence which nobody wants to hear twice"))
    repeating.silence(14)
    assert repeating.frame().any()
    repeating.hear(speech("oh no wait"))
    assert not repeating.frames[-1].any()


def test_what_is_said_goes_before_a_playback(repeating):
    spoken = speech("this is a long sentence which nobody wants to hear twice")
    repeating.hear(spoken)
    repeating.silence(14)
    repeating.say("Enough.")
    repeating.until_said()
    assert_says(repeating.pcm[len(spoken) :], ["Enough."])
    assert best_match(repeating.pcm, spoken[:-1200])[0] < 0.8


def test_speech_during_a_pause_of_the_agent_is_remembered_for_at_most_20_s(repeating):
    repeating.hear(np.tile(speech("on and on"), 30))
    repeating.silence(300)
    assert not repeating.silence(20).any()


# -- speaking --------------------------------------------------------------------------------------


def test_a_text_is_spoken_word_by_word_at_a_natural_pace():
    call = Call(first=LONG)
    call.until_said()
    begun = next(i for i, event in call.events if isinstance(event, ev.Text))
    minutes = (len(call.frames) - begun) * 0.08 / 60
    assert 110 <= len(LONG.split()) / minutes <= 200
    assert_says(call.pcm, LONG.split()[:8])


def test_done_comes_when_the_last_word_has_sounded():
    call = Call(first="Seven umbrellas.")
    call.until_said()
    assert_says(call.pcm, ["Seven", "umbrellas."])
    assert not call.silence(20).any()


@pytest.mark.parametrize("voice", VOICE_NAMES)
def test_every_voice_speaks(voice):
    call = Call(voice=voice, first="umbrella")
    call.until_said()
    assert_says(call.pcm, ["umbrella"], voice=voice)


def test_voices_differ():
    sounds = {word("umbrella", voice).tobytes() for voice in VOICE_NAMES}
    assert len(sounds) >= 16


def test_it_votes_for_a_word_only_where_the_last_one_is_nearly_over():
    call = Call(first="Umbrella umbrella umbrella.")
    mouth = call.backend._open[0].mouth
    votes = []
    while call.director.agenda.current or call.director.agenda.queue:
        busy = mouth.open or len(mouth.audio) > FRAME_SAMPLES
        call.frame()
        votes.append((busy, call.sampled[-1]))
    assert {vote for busy, vote in votes if busy} == {PAD}
    assert EPAD in {vote for busy, vote in votes if not busy}


def test_the_neighbours_of_a_slot_do_not_change_what_it_says():
    alone = Call(seed=1, backend=EmbeddedBackend(3), slot=1)
    shared = EmbeddedBackend(3)
    beside = Call(seed=1, backend=shared, slot=1)
    others = [Call(seed=2, backend=shared, slot=0), Call(seed=9, backend=shared, slot=2)]
    others[0].say("Something else entirely.")
    for number in range(50):
        for other in others:
            other.frame(speech("noise")[:FRAME_SAMPLES] if number % 3 else SILENCE)
        assert np.array_equal(alone.frame(), beside.frame())


def test_a_frame_that_is_hushed_is_silent_and_the_next_is_not():
    backend = EmbeddedBackend(1)
    list(backend.open(0, Opening("NATF2")))
    tokens = backend.tokenizer.encode("umbrella")
    heard = []
    for number, token in enumerate([*tokens, PAD, PAD, PAD, PAD, PAD, PAD]):
        backend.listen(np.zeros((1, FRAME_SAMPLES), np.float32), np.array([True]))
        hush = number == len(tokens) + 2
        heard.append(backend.speak(np.array([token]), np.array([hush])).pcm[0].any())
    assert heard[len(tokens) + 1 :] == [True, True, False, True, True]


def test_a_closed_slot_remembers_nothing():
    backend = EmbeddedBackend(1)
    first = Call(seed=4, backend=backend)
    first.hear(speech("a secret"))
    backend.close(0)
    second = Call(seed=4, backend=backend)
    fresh = Call(seed=4)
    assert np.array_equal(second.silence(80), fresh.silence(80))


def test_tuning_and_memory_are_part_of_the_contract():
    backend = EmbeddedBackend(2)
    list(backend.open(0, Opening("NATF2")))
    backend.tune(0, GREEDY)
    assert backend.context_used(0) == 0
    assert backend.voices == VOICE_NAMES
    assert backend.transcribes is False


def test_every_voice_name_has_its_stand_in():
    assert espeak_voice("NATF2")[0] == "en-us+f3"
    assert espeak_voice("VARM4")[0] == "en-us+m5"
    assert len({espeak_voice(name) for name in VOICE_NAMES}) == 18


# -- tokenizer -------------------------------------------------------------------------------------

TEXTS = [
    "Hello there",
    "a",
    "naïve café",
    "漢字 テスト",
    "🎉 party 👩‍👩‍👧",
    "x\x00y",
    "~|<>",
    "▁",
    "Ω ▁x",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), WordwiseTokenizer()])
def test_a_text_survives_the_way_through_pieces(text, tokenizer):
    decoder = PieceDecoder()
    ids = tokenizer.encode(text)
    assert all(token > PAD for token in ids)
    shown = "".join(decoder.feed(tokenizer.piece(token)) for token in ids)
    assert shown == "".join(f" {part}" for part in text.split())


def test_a_piece_holds_two_bytes_and_the_first_of_a_word_opens_with_a_blank():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("hello you")
    assert [tokenizer.piece(token) for token in ids] == ["▁he", "ll", "o", "▁yo", "u"]


def test_of_the_embedded_voice_a_piece_holds_seven_bytes_and_says_whether_its_word_ends():
    tokenizer = WordwiseTokenizer()
    ids = tokenizer.encode("hello interruption naïve")
    assert [tokenizer.piece(token) for token in ids][:3] == ["▁hello", "▁interru", "ption"]
    assert [tokenizer.closes(token) for token in ids] == [True, False, True, True]
    assert max(tokenizer.encode("\U0010ffff" * 5)) < 2**63
    assert tokenizer.data(ByteTokenizer().encode("hi")[0]) == (True, b"hi")


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), WordwiseTokenizer()])
def test_an_empty_word_is_a_lone_blank(tokenizer):
    (token,) = tokenizer.encode("")
    assert tokenizer.piece(token) == "▁"
    assert tokenizer.data(token) == (True, b"")


def test_every_id_has_one_piece_and_comes_back():
    tokenizer = ByteTokenizer()
    for token in range(4, ByteTokenizer.LONE + 1, 997):
        opens, data = tokenizer.data(token)
        assert tokenizer._id(data, opens) == token if data else token == ByteTokenizer.LONE


def test_the_reserved_ids_have_names():
    assert [ByteTokenizer().piece(token) for token in range(4)] == ["<unk>", "<s>", "</s>", "<pad>"]
