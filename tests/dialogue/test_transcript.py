"""Words and turns off scripted recognisers, and off the reference's tokens."""

import numpy as np
import pytest

from engine.config import EPAD, PAD
from engine.dialogue.floor import HeardWord, TurnRule, UserFloor, WordReader
from engine.runtime.backend import HeardRow, Transcription
from engine.weights.loading import SentencePieceTokenizer
from tests.dialogue.hearing import EXPECTED, STT_TINY, TRANSCRIPTION, WANT, Heard, quiet, spoken
from tests.dialogue.turns import SCRIPTS, SPELLING, find_turn_ends, measure_turns, perform

LOUD, SOFT = 0.3, 0.003  # peaks: -10 and -50 dBFS
TALKING, DONE = np.full(4, 0.02, np.float32), np.full(4, 0.99, np.float32)


def tiny_reader() -> WordReader:
    tokenizer = SentencePieceTokenizer(STT_TINY / "tokenizer_en_fr_audio_8000.model")
    return WordReader(Transcription(tokenizer, EXPECTED["audio_delay_frames"]))


def run_script(transcript: UserFloor, script) -> list[tuple[int, str, bool]]:
    """(frame, text, final) of all events of a script."""
    seen = []
    for heard in script:
        events = transcript.take_frame(heard.peak, heard.row)
        seen += [(transcript.frame, event.text, event.final) for event in events]
    return seen


def finals(seen) -> list[tuple[int, str]]:
    return [(frame, text) for frame, text, final in seen if final]


def run_ahead(transcript: UserFloor, tokens=()) -> list:
    """Run ahead as long as it is wanted; all events."""
    tokens, events = list(tokens), []
    while transcript.runs_ahead:
        token = tokens.pop(0) if tokens else PAD
        events += transcript.take_step(HeardRow(stt_text=token, pause=DONE))
    return events


# -- words -----------------------------------------------------------------------------------------


def test_words_times_and_events_are_the_references():
    reader, words, events = tiny_reader(), [], []
    for step, token in enumerate(WANT["tokens"].tolist()):
        before = {id(word): (word.written, word.end) for word in words}
        word = reader.read(token, step + 1)
        for index, old in enumerate(words):
            written, end = before[id(old)]
            events += [(step, "word", index)] if old.written > written else []
            events += [(step, "word_end", index)] if old.end != end else []
        if word and not any(word is old for old in words):
            words.append(word)
    assert events == [(e["step"], e["kind"], e["word"]) for e in EXPECTED["events"]]
    last = words.pop()
    assert last.ids == EXPECTED["unfinished_ids_at_end"]
    got = [(word.text, word.ids) for word in words]
    assert got == [(word["text"], word["ids"]) for word in EXPECTED["words"]]
    for word, want in zip(words, EXPECTED["words"], strict=True):
        assert word.start / 12.5 == pytest.approx(want["start"], abs=1e-6)
        end = None if word.end is None else pytest.approx(want["end"], abs=1e-6)
        assert (word.end and word.end / 12.5) == end


def test_words_without_a_boundary_between_them_split_at_the_next_opening_piece():
    reader, words = WordReader(TRANSCRIPTION), []
    script = [*[PAD] * 9, EPAD, *map(SPELLING.id, ("▁fast", "er", "▁words")), PAD]
    for step, token in enumerate(script):
        word = reader.read(token, step + 1)
        if word and word not in words:
            words.append(word)
    assert [(w.text, w.start, w.end) for w in words] == [("faster", 4, 6), ("words", 6, None)]


def test_the_first_steps_are_not_read():
    reader = WordReader(TRANSCRIPTION)
    early = [reader.read(SPELLING.id("▁early"), step + 1) for step in range(6)]
    assert early[:5] == [None] * 5
    assert isinstance(early[5], HeardWord)


# -- the rule of turns -----------------------------------------------------------------------------


def ends(rule: TurnRule, frames) -> list[int]:
    """The frames (from 1) in which a turn ends; frames are (peak, piece, pause)."""
    return [rule.frames for frame in frames if rule.take_frame(*frame)]


def test_two_frames_in_a_row_above_0_6_end_a_turn():
    said = [(LOUD, True, TALKING)] * 14
    wobble = [(SOFT, False, np.full(4, p, np.float32)) for p in (0.55, 0.7, 0.55, 0.7, 0.61)]
    assert ends(TurnRule(), said + wobble) == [19]


def test_nothing_ends_in_the_first_12_frames_or_before_a_piece_or_twice():
    silence = [(SOFT, False, DONE)] * 40
    assert ends(TurnRule(), silence) == []
    assert ends(TurnRule(), [(LOUD, True, TALKING), *silence]) == [12]


@pytest.mark.parametrize("pause", [None, TALKING])
def test_400_ms_of_quiet_end_a_turn_where_the_heads_do_not(pause):
    said, silence = [(LOUD, True, pause)] * 14, [(SOFT, False, pause)] * 20
    assert ends(TurnRule(), said + silence) == [14 + 7]
    late = [(SOFT, index == 3, pause) for index in range(20)]
    assert ends(TurnRule(), said + late) == [14 + 4 + 7]


def test_the_user_speaks_while_the_head_says_so_and_the_frame_is_audible():
    rule, seen = TurnRule(), []
    below = np.full(4, 0.3, np.float32)
    for peak, pause in ((LOUD, below), (LOUD, below), (SOFT, below), (LOUD, below), (LOUD, DONE)):
        rule.take_frame(peak, False, pause)
        seen.append(rule.speaking)
    assert seen == [False, True, False, True, False]


def test_a_piece_shows_speech_for_four_frames():
    rule, seen = TurnRule(), []
    for piece in (False, True, False, False, False, False):
        rule.take_frame(SOFT, piece, DONE)
        seen.append(rule.speaking)
    assert seen == [False, True, True, True, True, False]


# -- turns in words --------------------------------------------------------------------------------


def test_a_turn_grows_word_by_word_and_ends_with_its_whole_text():
    transcript = UserFloor(TRANSCRIPTION)
    seen = run_script(transcript, [*quiet(10), *spoken("what is it"), *quiet(30)])
    assert [text for _, text, final in seen if not final] == ["what", "what is", "what is it"]
    [(frame, text)] = finals(seen)
    assert text == "what is it"
    assert frame == 10 + 3 * 4 + 1 + 7  # the second frame above 0.6, and seven to write it all


def test_the_flush_brings_the_last_words_at_once_and_real_time_goes_on_after_it():
    transcript = UserFloor(TRANSCRIPTION)
    seen = run_script(transcript, [*quiet(10), *spoken("good"), *quiet(2)])
    assert finals(seen) == []
    assert transcript.runs_ahead
    events = run_ahead(transcript, [EPAD, SPELLING.id("▁morning")])
    assert [(e.text, e.final) for e in events] == [("good morning", False), ("good morning", True)]
    assert events[-1].end <= transcript.frame / 12.5
    assert not transcript.runs_ahead
    later = [*quiet(10), *spoken("bye"), *quiet(2)]
    run_script(transcript, later)
    turn = run_ahead(transcript)[-1]
    heard = 10 + 4 + 2 + 10 + 1  # frames until the EPAD of `bye` was read, the bootstrap included
    assert turn.start == pytest.approx((heard - 6) / 12.5)


def test_a_flush_cut_short_by_the_next_frame_ends_the_turn_in_real_time():
    transcript = UserFloor(TRANSCRIPTION)
    run_script(transcript, [*quiet(10), *spoken("hello there"), *quiet(2)])
    transcript.take_step(HeardRow(PAD, DONE))
    seen = run_script(transcript, quiet(1))
    assert not transcript.runs_ahead
    assert finals(seen + run_script(transcript, quiet(4))) == []
    assert [text for _, text in finals(run_script(transcript, quiet(1)))] == ["hello there"]


def test_pauses_inside_a_sentence_do_not_end_the_turn():
    frames, ends = perform(SCRIPTS["short pause"])
    assert list(find_turn_ends(frames, "recogniser")) == [ends[0] + 2]


def test_the_rules_find_the_turns_of_the_scripts_with_few_false_ones():
    rows = {row["rule"]: row for row in measure_turns()}
    assert rows["recogniser"]["recall"] == 1.0
    assert rows["recogniser"]["precision"] >= 0.85  # it cuts pauses of more than 0.8 s
    assert rows["recogniser"]["delay_ms_p50"] <= 240
    assert min(row["recall"] for row in rows.values()) >= 0.9
    assert rows["energy"]["precision"] < rows["recogniser"]["precision"]


@pytest.mark.parametrize(
    "noise",
    [
        [Heard(0.5, PAD, 0.9)] * 2,  # a cough
        [Heard(0.2, PAD, 0.98)] * 60,  # music
        quiet(100),
    ],
    ids=["cough", "music", "silence"],
)
def test_sound_without_words_makes_no_turn_and_no_text(noise):
    transcript = UserFloor(TRANSCRIPTION)
    assert run_script(transcript, [*quiet(20), *noise, *quiet(30)]) == []
    assert not transcript.speaking


def test_uh_huh_is_a_turn_of_its_own():
    seen = run_script(UserFloor(TRANSCRIPTION), [*quiet(20), *spoken("uh-huh"), *quiet(20)])
    assert [text for _, text in finals(seen)] == ["uh-huh"]


def test_a_word_of_two_letters_is_noticed_once_with_the_frame_it_began():
    transcript, noticed = UserFloor(TRANSCRIPTION), []
    for heard in [*quiet(20), *spoken("a stop"), *quiet(3)]:
        transcript.take_frame(heard.peak, heard.row)
        if transcript.word:
            noticed.append((transcript.word.text, transcript.frame - transcript.word.start))
    assert noticed == [("stop", 6)]


def test_without_a_recogniser_the_energy_rule_stands_alone():
    transcript, turns, speaking = UserFloor(), [], []
    for frame, peak in enumerate([SOFT] * 5 + [LOUD] * 6 + [SOFT] * 15):
        assert transcript.take_frame(peak, HeardRow()) == []
        turns += [frame] if transcript.turn_ended else []
        speaking += [frame] if transcript.speaking else []
    assert turns == [5 + 6 + 8]
    assert (speaking[0], speaking[-1]) == (7, 14)


def test_words_that_wait_when_the_recogniser_is_switched_off_end_with_the_energy_rule():
    transcript = UserFloor(TRANSCRIPTION)
    run_script(transcript, [*quiet(10), *spoken("one two")])
    events = [e for _ in range(9) for e in transcript.take_frame(SOFT, HeardRow())]
    assert [(e.text, e.final) for e in events] == [("one two", True)]
