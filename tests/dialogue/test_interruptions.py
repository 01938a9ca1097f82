"""What stops an agent that speaks, with real ears: speech does, noises and back-channels do not.

The voice model is the real one, driven without a clock: each frame is heard before the director
looks, as on a machine that keeps up.
"""

from concurrent.futures import Future

import numpy as np
import pytest

from engine.config import FRAME_SAMPLES, PAD
from engine.dialogue import events as ev
from engine.dialogue.director import DOUBT_FRAMES, Director, Mode
from engine.dialogue.floor import UserFloor, is_backchannel
from engine.dialogue.speech import prepare_command
from engine.runtime.backend import HeardRow
from engine.runtime.embedded import ByteTokenizer
from tests.dialogue import noises

pytest.importorskip("faster_whisper", reason="the ears need faster-whisper")
from engine.runtime.ears import Ears

TOKENIZER = ByteTokenizer()
ANSWER = (
    "The premium plan costs fourteen dollars a month, with twenty hours of transcription, "
    "and it can be paid by the year, which is cheaper. The business plan has forty hours."
)
TRIES = 24


class Answering:
    """An agent that says a long answer, and the user's audio frame by frame."""

    def __init__(self, ears: Ears, words: bool = True) -> None:
        self.words: list[tuple[str, float, float]] = []
        self.listener = ears.open(self.words_come)
        self.director = Director(TOKENIZER, floor=UserFloor(words_come=words))
        self.told: list[ev.Event] = []
        self.frame = 0
        self.stopped_at: int | None = None
        self.agent = np.zeros(FRAME_SAMPLES, np.float32)

    def words_come(self, text: str, start: float, end: float, final: bool) -> None:
        if final:
            self.words.append((text, start, end))

    def answer(self) -> None:
        self.take(ev.Hold(1))
        self.take(ev.Say(7, ANSWER, answer=1))
        self.hear(noises.silence(1.0))
        assert self.director.mode is Mode.SPEAK

    def take(self, command: ev.Command) -> None:
        self.told += self.director.take(prepare_command(command, TOKENIZER))

    def hear(self, sound: np.ndarray, agent: np.ndarray | None = None) -> None:
        for at in range(0, len(sound) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
            user = sound[at : at + FRAME_SAMPLES]
            if agent is not None:
                self.agent = agent[at : at + FRAME_SAMPLES]
            self.listener.push(user, self.agent)
            self.listener.take_frame()
            for text, start, end in self.words:
                self.take(ev.UserText(text, start, end, final=True))
            self.words.clear()
            row = HeardRow(speech=self.listener.take_speech(), writing=self.listener.writing)
            self.director.step(PAD, row, float(np.abs(user).max()), 0.5)
            self.told += self.director.events()
            self.frame += 1
            if self.stopped_at is None and self.director.mode is Mode.TAIL:
                self.stopped_at = self.frame

    @property
    def states(self) -> list[str]:
        return [str(e.state) for e in self.told if isinstance(e, ev.Saying) and e.id == 7]


class QuietEars(Ears):
    """The real voice model; frames are taken by the test, and words by what it has prepared."""

    def wake(self, listener) -> None:
        pass


@pytest.fixture(scope="module")
def ears():
    ears = QuietEars()
    yield ears
    ears.close()


NOISES = {
    "a cough of 160 ms": lambda seed: noises.set_level(noises.cough(0.16, seed), -16),
    "a cough of 250 ms": lambda seed: noises.set_level(noises.cough(0.25, seed), -16),
    "typing": lambda seed: noises.set_level(noises.typing(2.0, seed), -20),
    "a fan at -34": lambda seed: noises.set_level(noises.fan(2.0, seed), -34),
    "a fan at -28": lambda seed: noises.set_level(noises.fan(2.0, seed), -28),
    "music": lambda seed: noises.set_level(noises.music(2.0, seed), -20),
    "a door": lambda seed: noises.set_level(noises.door(seed), -14),
}


@pytest.mark.parametrize("kind", sorted(NOISES))
def test_a_noise_stops_nothing(ears, kind):
    stopped = 0
    for seed in range(TRIES):
        call = Answering(ears)
        call.answer()
        call.hear(NOISES[kind](seed))
        call.hear(noises.silence(0.5))
        stopped += call.stopped_at is not None
    assert stopped == 0


VOICES = ("en-us", "en-us+f3", "en-gb", "en-us+m4")


@pytest.mark.parametrize("over", ["silence", "a fan at -28"])
@pytest.mark.parametrize("level", [-38, -26])
def test_speech_stops_it_however_soft_and_over_a_fan(ears, over, level):
    if over != "silence" and level == -38:
        level = -20  # below the fan nobody would hear it
    sentences = (
        "How much is the business plan?",
        "Wait, I meant something else.",
        "Can you repeat it?",
        "Tell me about the trial first.",
        "Which languages do you know?",
        "No, I asked for hours.",
    )
    stopped = 0
    for index in range(TRIES):
        call = Answering(ears)
        call.answer()
        speech = noises.set_level(noises.say(sentences[index % 6], VOICES[index // 6]), level)
        sound = np.concatenate([speech, noises.silence(0.4)])
        if over != "silence":
            sound += noises.set_level(noises.fan(len(sound) / 24_000 + 0.01, index), -28)[
                : len(sound)
            ]
        call.hear(sound)
        stopped += call.stopped_at is not None
    assert stopped == TRIES


IN_OTHER_WORDS = (
    *("Mm-hm.", "mhm", "Mmm.", "Uh huh, uh huh.", "Gotcha.", "I see.", "Okay, thanks.", "Yup."),
    *("Ah, I see.", "Oh, right.", "All right.", "Makes sense.", "Fair enough.", "Sounds good."),
    *("Oh wow.", "Wow, really?", "Perfect.", "Exactly.", "Of course.", "Absolutely.", "True."),
    *("No problem.", "For sure.", "Oh nice, thanks!", "Got it, thanks.", "That's great.", "Hm."),
    *("Oh, I see, okay.", "Thank you so much.", "That's good to know.", "Go on.", "Interesting."),
)
IS_SAYING = (
    *("No.", "Stop.", "Wait.", "Hold on.", "What?", "How much?", "Really, how much?", "Go back."),
    *("And premium?", "Not that one.", "Right, and the other?", "I see, but why?", "Never mind."),
    *("Okay, what about the year?", "Thanks, that's all wrong.", "No, no.", "Sorry, what?"),
)


@pytest.mark.parametrize("said", IN_OTHER_WORDS)
def test_who_only_listens_may_say_so_in_many_words(said):
    assert is_backchannel(said)


@pytest.mark.parametrize("said", IS_SAYING)
def test_who_says_something_does_not_only_listen(said):
    assert not is_backchannel(said)


SHORT_ONES = ("uh-huh", "okay", "right", "yeah", "mm", "thanks", "sure", "aha", "gotcha", "I see")


@pytest.mark.parametrize("said", SHORT_ONES)
def test_a_backchannel_stops_nothing(ears, said):
    assert is_backchannel(said)
    for voice in VOICES:
        call = Answering(ears)
        call.answer()
        call.hear(noises.set_level(noises.say(said, voice), -26))
        call.hear(noises.silence(1.0))
        assert call.stopped_at is None


def test_many_backchannels_in_a_row_are_a_turn():
    assert is_backchannel("yeah, okay, right, sure")
    assert not is_backchannel("yeah, okay, right, sure, thanks")


def test_the_agents_own_echo_stops_nothing(ears):
    stopped = 0
    for index in range(TRIES):
        agent = noises.set_level(noises.say(ANSWER, VOICES[index % 4], 150 + 2 * index), -20)
        way = int((0.04 + 0.012 * index) * 24_000)  # up to 0.32 s
        echo = np.concatenate([np.full(way, 1e-5, np.float32), agent[:-way] * 0.1])
        call = Answering(ears)
        call.answer()
        call.hear(echo[: 2 * 24_000], agent[: 2 * 24_000])
        stopped += call.stopped_at is not None
    assert stopped == 0


def written(text: str) -> "Future[str]":
    done: Future[str] = Future()
    done.set_result(text)
    return done


@pytest.mark.parametrize(
    ("words", "last"),
    [("", "resumed"), ("Okay, thanks.", "resumed"), ("No, the other one.", "cancelled")],
)
def test_what_was_stopped_for_nothing_goes_on_at_its_clause(ears, words, last, monkeypatch):
    call = Answering(ears)
    monkeypatch.setattr(call.listener, "_write", lambda state: written(words))
    call.answer()
    call.hear(noises.silence(7.0))
    before = call.director.agenda.current.spoken
    assert before.count(",") >= 1
    long = noises.say("well you know what I was always thinking")
    call.hear(noises.set_level(long, -26))
    assert call.stopped_at
    assert call.states[-1] == "speaking"
    cut = call.director.agenda.current.spoken
    call.hear(noises.silence(0.08 * DOUBT_FRAMES + 1.0))
    assert call.states[-1] == last
    if last == "resumed":
        call.hear(noises.silence(0.4))
        again = call.director.agenda.current
        clause = cut.rsplit(", ", 1)[0] + ","
        assert again.spoken.startswith(clause)
        assert len(again.spoken) < len(cut) + 12
        texts = [e.text for e in call.told if isinstance(e, ev.Text)]
        assert len(texts) == len(" ".join(texts).split())  # no word is shown twice


def test_it_goes_on_once_only(ears, monkeypatch):
    call = Answering(ears)
    monkeypatch.setattr(call.listener, "_write", lambda state: written(""))
    call.answer()
    long = noises.set_level(noises.say("well you know what I was always thinking"), -26)
    for _ in range(2):
        call.hear(noises.silence(2.0))
        call.hear(long)
        call.hear(noises.silence(2.0))
    assert call.states.count("resumed") == 1
    assert call.states[-1] == "cancelled"


def test_a_turns_end_is_told_with_a_fan_running(ears):
    call = Answering(ears)
    speech = noises.set_level(noises.say("How much is the premium plan?"), -20)
    sound = np.concatenate([noises.silence(1.0), speech, noises.silence(2.0)])
    sound += noises.set_level(noises.fan(len(sound) / 24_000 + 0.01, 1), -34)[: len(sound)]
    ended = []
    for at in range(0, len(sound) - FRAME_SAMPLES, FRAME_SAMPLES):
        call.hear(sound[at : at + FRAME_SAMPLES])
        ended.append(call.director.floor.turn_ended)
    assert sum(ended) == 1
