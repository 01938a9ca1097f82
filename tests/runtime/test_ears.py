"""A CPU's ears: who hears when, what is said of it, and that nothing outlives a conversation."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from engine.config import FRAME_SAMPLES, PAD, ServerConfig, choose_recogniser
from engine.dialogue.director import Director
from engine.dialogue.floor import UserFloor
from engine.errors import ModelError
from engine.lookup.routing import PAUSE_SECONDS
from engine.runtime import ears as module
from engine.runtime.backend import HeardRow
from engine.runtime.choose import load_ears
from engine.runtime.embedded import ByteTokenizer, EmbeddedBackend
from tests.dialogue import noises

pytest.importorskip("faster_whisper", reason="the ears need faster-whisper")
KEY = {"DEEPSEEK_API_KEY": "k"}
FRAME = np.zeros(FRAME_SAMPLES, np.float32)


def ignore(phase: str, percent: float) -> None:
    pass


@pytest.mark.parametrize(
    ("settings", "environ", "chosen"),
    [
        ({}, KEY, "1"),
        ({}, {}, ""),
        ({"routing": False}, KEY, ""),
        ({"transcribe": "0"}, KEY, ""),
        ({"transcribe": "a/b"}, {}, "a/b"),
        ({"transcribe": "1", "routing": False}, {}, "1"),
    ],
)
def test_a_model_gets_its_recogniser_where_words_have_a_use(settings, environ, chosen):
    assert choose_recogniser(ServerConfig(**settings), environ) == chosen


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"transcribe": "0"}, "energy only, spoken questions are not routed: --transcribe is 0"),
        ({"routing": False}, "energy only, spoken questions are not routed: --routing is 0"),
    ],
)
def test_where_nothing_is_heard_it_says_why(settings, said):
    config = ServerConfig(model="embedded", **settings)
    assert load_ears(config, EmbeddedBackend(1), "", ignore) == (None, said)


def test_without_its_package_or_its_model_it_says_what_is_missing(monkeypatch, tmp_path):
    config = ServerConfig(model="embedded", transcribe=str(tmp_path))
    ears, said = load_ears(config, EmbeddedBackend(1), "", ignore)
    assert said.startswith("voice activity only, spoken questions are not routed: ")
    assert ears.write_down is None
    ears.close()

    def missing(*_):
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(module.Ears, "__init__", missing)
    ears, said = load_ears(config, EmbeddedBackend(1), "", ignore)
    assert ears is None
    assert "onnxruntime" in said


@pytest.fixture
def ears():
    made = module.Ears(lambda samples: f"{len(samples)} samples")
    yield made
    made.close()


def only_whole(take: Callable[..., object]) -> module.Deliver:
    """Turns that are over; those that may be are passed over."""
    return lambda text, start, end, final: final and take(text, start, end)


def speak(listener: module.Listener, sound: np.ndarray) -> None:
    for at in range(0, len(sound) - FRAME_SAMPLES, FRAME_SAMPLES):
        listener.push(sound[at : at + FRAME_SAMPLES], FRAME)


def settle(ears: module.Ears) -> None:
    """Until all that was pushed is heard, and what it asked for is written down."""
    heard = threading.Event()
    ears.wake(Mock(take_frame=heard.set))  # there is one thread: the others come first
    assert heard.wait(60)
    ears.writer.submit(lambda: None).result(60)


def turn(text: str) -> np.ndarray:
    said = noises.set_level(noises.say(text), -26)
    return np.concatenate([noises.silence(0.5), said, noises.silence(1.0)])


def test_each_turn_comes_once_with_its_times(ears):
    turns, come = [], threading.Semaphore(0)
    listener = ears.open(only_whole(lambda *said: (turns.append(said), come.release())))
    sound = [turn("This is the first turn."), turn("And this is another one.")]
    for one in sound:
        speak(listener, one)
    for _ in sound:
        assert come.acquire(timeout=60)
    (_, start, end), (_, again, last) = turns
    assert 0.3 < start < 0.7 < end < len(sound[0]) / 24_000 < again < last
    settle(ears)
    assert not come.acquire(blocking=False)
    assert not listener.writing


def test_a_restart_voids_what_is_on_its_way(ears):
    turns, written, go_on = [], threading.Event(), threading.Event()

    def write_down(samples: np.ndarray) -> str:
        written.set()
        assert go_on.wait(60)
        return "secret"

    ears.write_down = write_down
    listener = ears.open(only_whole(lambda *said: turns.append(said)))
    speak(listener, turn("Nobody else may hear this."))
    assert written.wait(60)
    listener.reset()
    go_on.set()
    ears.writer.submit(lambda: None).result(60)
    assert turns == []
    assert listener.take_speech() == ()


def test_words_are_told_at_a_pause_already_and_once_as_a_whole(ears):
    told, come = [], threading.Semaphore(0)
    ears.write_down = lambda samples: f"{round(len(samples) / module.RATE)}"
    listener = ears.open(
        lambda text, _start, _end, final: (told.append((text, final)), come.release())
    )
    said = [noises.set_level(noises.say(t), -26) for t in ("I was wondering how much", "it is.")]
    pause = noises.silence(0.45)
    for sound in (np.concatenate([said[0], pause]), np.concatenate([said[1], pause]), pause):
        speak(listener, sound)
        assert come.acquire(timeout=60)  # who goes on at once has made no pause
    assert [final for _, final in told] == [False, False, True]
    assert told[1][0] == told[2][0]  # it was written down once


def test_who_goes_on_before_the_words_are_there_has_made_no_pause(ears):
    told, go_on = [], threading.Event()
    ears.write_down = lambda samples: go_on.wait(60) and "words"
    listener = ears.open(lambda *turn: told.append(turn[-1]))
    said = noises.set_level(noises.say("I was wondering how much it is."), -26)
    pause, state = noises.silence(0.45), listener._state
    speak(listener, np.concatenate([said, pause, said, noises.silence(1.0)]))
    while state.frames:
        time.sleep(0.001)
    go_on.set()
    ears.writer.submit(lambda: None).result(60)
    assert told == [True]


def test_a_turn_that_cannot_be_written_down_costs_its_words_alone(ears, caplog):
    come = threading.Event()

    def fail_once(samples: np.ndarray) -> str:
        ears.write_down = lambda samples: "the next one"
        raise ValueError("my secret words")

    ears.write_down = fail_once
    listener = ears.open(only_whole(lambda *said: come.set()))
    speak(listener, turn("The first turn fails here."))
    speak(listener, turn("The second one does not."))
    assert come.wait(60)
    assert "secret" not in caplog.text


def test_a_turn_of_a_minute_is_written_in_pieces(ears):
    lengths, come = [], threading.Event()
    ears.write_down = lambda samples: str(lengths.append(len(samples)) or len(lengths))
    texts = []
    listener = ears.open(only_whole(lambda text, *_: (texts.append(text), come.set())))
    text = "one and two and three and four and five and six and seven and eight and nine " * 4
    said = noises.set_level(noises.say(text), -26)
    speak(listener, np.concatenate([said, said, said, noises.silence(1.0)]))
    assert come.wait(60)
    assert texts[0].split() == [str(n) for n in range(1, len(texts[0].split()) + 1)]
    assert max(lengths) <= 26 * module.RATE
    assert len(lengths) >= 2


def test_a_long_turn_is_cut_where_nobody_speaks(ears):
    """Cut inside a word, Whisper hears another word, or skips the sentence."""
    given, come, texts = [], threading.Event(), []
    ears.write_down = lambda samples: given.append(samples) or f"piece{len(given)}"
    listener = ears.open(only_whole(lambda text, *_: (texts.append(text), come.set())))
    sentences = "We walked around the whole lake and counted nine birds. I slept on the bus. " * 5
    said = noises.set_level(noises.say(sentences), -26)
    speak(listener, np.concatenate([noises.silence(0.5), said, noises.silence(1.0)]))
    assert come.wait(60)
    pieces = [given[int(name.removeprefix("piece")) - 1] for name in texts[0].split()]
    assert len(pieces) >= 2
    for piece in pieces:
        assert len(piece) < 16 * module.RATE
        assert np.abs(piece[-module.RATE // 10 :]).max() < 0.02 * np.abs(piece).max()
    assert sum(map(len, pieces)) / module.RATE > len(said) / 24_000


def test_what_has_no_pause_is_cut_at_its_quietest(ears):
    given, texts = [], []
    ears.write_down = lambda samples: given.append(samples) or f"piece{len(given)}"
    listener, quiet_at = ears.open(only_whole(lambda text, *_: texts.append(text))), 700
    for number in range(1000):
        loudness = 0.01 if abs(number - quiet_at) <= 1 else 0.5
        window = np.full(module.WINDOW, loudness, np.float32)
        listener._take_window(listener._state, window, 1.0, False)
    assert len(given) == 1
    assert abs(len(given[0]) / module.WINDOW - quiet_at) <= 1


def test_a_pause_inside_a_sentence_is_no_longer_than_routing_allows(ears):
    turns, come = [], threading.Semaphore(0)
    listener = ears.open(only_whole(lambda *said: (turns.append(said), come.release())))
    said = [noises.set_level(noises.say(t), -26) for t in ("I was wondering how much", "it is.")]
    speak(listener, np.concatenate([said[0], noises.silence(0.7), said[1], noises.silence(1.0)]))
    for _ in said:
        assert come.acquire(timeout=60)
    (_, _, end), (_, start, _) = turns
    assert 0.0 < start - end < PAUSE_SECONDS


@pytest.mark.parametrize("spoken", np.arange(23.9, 25.2, 0.1).round(1).tolist())
def test_a_turn_that_falls_silent_as_it_is_cut_has_each_word_once(ears, spoken):
    """Each word is a second of speech, and the writer says which seconds it was given."""
    windows = int(spoken * module.RATE) // module.WINDOW
    state, texts, given = module.ListenerState(), [], []
    listener = ears.open(only_whole(lambda text, *_: texts.append(text)))
    listener._state = state
    ears.write_down = lambda samples: given.append(samples) or f"piece{len(given)}"
    count = windows + module.END_WINDOWS
    for number in range(count):
        window = np.full(module.WINDOW, number, np.float32)
        listener._take_window(state, window, 1.0 if number < windows else 0.0, False)
    ears.writer.submit(lambda: None).result(60)
    kept = texts[0].split()
    heard = np.concatenate([given[int(name.removeprefix("piece")) - 1] for name in kept])
    numbers = heard[:: module.WINDOW].astype(int).tolist()
    assert len(numbers) == len(set(numbers))
    assert set(range(windows)) <= set(numbers)


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="no priorities here")
def test_writing_steps_back_behind_the_frames(ears):
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert ears.writer.submit(priority).result(60) >= min(19, priority() + module.STEP_BACK)


@pytest.mark.parametrize(("seconds", "left"), [(0, 800), (3, 1100), (21.99, 3000), (25, 3000)])
def test_whisper_reads_a_turn_and_eight_seconds_of_silence_at_most(seconds, left):
    features = np.zeros((80, 3000), np.float32)
    features[3, : round(100 * seconds)] = -0.5
    trimmed = module.trim_silence(features)
    assert trimmed.shape == (80, left)
    assert np.array_equal(trimmed, features[:, :left])


def test_whisper_gets_what_was_trimmed_and_a_limit_of_words(monkeypatch, tmp_path):
    """The model itself is a double: what it is given is what counts here."""
    import faster_whisper

    class Whisper:
        def __init__(self, *args, **options):
            self.read = None

        def encode(self, features):
            self.read = features.shape

        def transcribe(self, samples, max_new_tokens, **options):
            self.encode(np.pad(np.ones((80, len(samples) // 160)), ((0, 0), (0, 2000))))
            said = Mock(text=f" {self.read} {max_new_tokens}", no_speech_prob=0, avg_logprob=0)
            return [said], None

    monkeypatch.setattr(faster_whisper, "WhisperModel", Whisper)
    write_down = module.load_whisper(tmp_path, "")
    assert write_down(np.zeros(2 * module.RATE, np.float32)) == "(80, 1000) 44"


def test_without_a_network_it_says_so_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(module.urllib.request, "getproxies", dict)
    monkeypatch.setattr(module.socket, "create_connection", Mock(side_effect=OSError("no route")))
    monkeypatch.setattr(module, "fetch", lambda *_: pytest.fail("it would try for half a minute"))
    with pytest.raises(ModelError, match=r"huggingface\.co cannot be reached .*--transcribe DIR"):
        module.find_whisper("auto", ignore)


def test_the_usual_whisper_is_fetched_by_its_pinned_revision(monkeypatch):
    fetched = []
    monkeypatch.setattr(module, "find_hub", lambda: None)
    monkeypatch.setattr(module, "fetch", lambda *what: fetched.append(what) or Path("here"))
    assert module.find_whisper("auto", ignore) == Path("here")
    ((repository, revision, _, files),) = fetched
    assert repository == "Systran/faster-whisper-tiny.en"
    assert len(revision) == 40
    assert "model.bin" in files


def test_two_who_speak_at_once_are_no_echo():
    agent = noises.set_level(
        noises.say("It costs fourteen dollars a month, with twenty hours."), -20
    )
    flagged = counted = 0
    for text in (
        "Never mind.",
        "Wait, how much is the business plan?",
        "Okay, and the yearly price?",
    ):
        user = noises.set_level(noises.say(text, "en-us+m3"), -26)
        for seconds in (0.3, 0.7, 1.1):
            finder, start = module.EchoFinder(), int(seconds * 24_000)
            size = min(len(agent), start + len(user))
            heard = np.concatenate([np.zeros(start, np.float32), user])[:size]
            for at in range(0, size - FRAME_SAMPLES, FRAME_SAMPLES):
                frame = slice(at, at + FRAME_SAMPLES)
                is_echo = finder.take_frame(heard[frame], agent[frame])
                if at >= start:
                    flagged, counted = flagged + is_echo, counted + 1
    assert flagged / counted < 0.12  # a third, when any likeness of half a second was an echo


def test_who_stops_sending_after_a_question_has_asked_it(ears):
    floor = UserFloor(words_come=True)
    director = Director(ByteTokenizer(), floor=floor)
    listener = ears.open(only_whole(lambda *said: None))
    said = np.concatenate(
        [noises.silence(0.5), noises.set_level(noises.say("How much is it?"), -26)]
    )
    frames = [said[at : at + FRAME_SAMPLES] for at in range(0, len(said) - 2 * FRAME_SAMPLES, 1920)]
    written = threading.Event()
    listener._deliver = only_whole(lambda *turn: written.set())
    silence = 0
    for frame in [*frames, *[FRAME] * 100]:
        if frame is FRAME:
            if not director.awaits_words:
                break
            silence += 1
        listener.push(frame, FRAME)
        settle(ears)
        row = HeardRow(speech=listener.take_speech(), writing=listener.writing)
        director.step(PAD, row, float(np.abs(frame).max()), 0.0)
    assert written.wait(60)
    assert 5 < silence < 50  # and then the client is left alone


def test_a_turn_of_several_pieces_begins_where_it_began(ears, monkeypatch):
    monkeypatch.setattr(module, "MOST_SECONDS", 1.0)
    turns, come = [], threading.Event()
    listener = ears.open(only_whole(lambda *said: (turns.append(said), come.set())))
    sound = turn(
        "This is a turn that goes on and on for more than one or two seconds, does it not?"
    )
    speak(listener, sound)
    assert come.wait(60)
    (words, start, end) = turns[0]
    assert words.count("samples") > 1
    assert start < 1.0 < 3.0 < end


@pytest.mark.parametrize(("lost_at", "lost", "within"), [(0.3, 100, False), (1.2, 3, True)])
def test_times_stay_right_where_frames_went_unheard(ears, lost_at, lost, within):
    """Before a turn and within one: the ears are behind, and more has come than may wait."""
    turns, come, go_on = [], threading.Semaphore(0), threading.Event()

    def take(*said):
        turns.append(said)
        come.release()

    sound = turn("This is a sentence that will be heard with a hole in it.")
    speak(ears.open(only_whole(take)), sound)
    assert come.acquire(timeout=60)
    listener, first = ears.open(only_whole(take)), int(lost_at * 24_000)
    speak(listener, sound[: first + FRAME_SAMPLES])
    while listener._state.frames:
        time.sleep(0.001)
    ears.wake(Mock(take_frame=lambda: go_on.wait(60)))
    rest = np.zeros((module.MAX_WAITING_FRAMES + 1) * FRAME_SAMPLES, np.float32)
    rest[: len(sound) - first] = sound[first:]
    speak(listener, np.concatenate([np.zeros(lost * FRAME_SAMPLES, np.float32), rest]))
    go_on.set()
    assert come.acquire(timeout=60)
    (_, start, end), (_, again, last) = turns
    assert last - end == pytest.approx(lost * 0.08, abs=0.1)
    assert again - start == pytest.approx(0 if within else lost * 0.08, abs=0.1)
