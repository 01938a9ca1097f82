"""How well the end of a turn is found: scripted users, precision and recall of each rule.

The scripts follow what was published of the pause heads: near 1 before speech, near 0 in it, up to
0.55 inside a sentence, above 0.9 a fifth of a second after the end; words are written 6 frames
after their sound. They hold the rules of
engine/dialogue/floor.py, not the recogniser's own hearing. The CPU's ears are run for real, on
spoken sentences in real time: how long after a turn its words are there.
"""

import argparse
import queue
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from engine.bench.report import positive, save, table
from engine.config import EPAD, FRAME_SAMPLES, FRAME_SECONDS, PAD, SAMPLE_RATE
from engine.dialogue.floor import UserFloor
from engine.runtime.backend import HeardRow, Transcription

DELAY_FRAMES = 6
WORD_FRAMES = 4  # 0.32 s a word
SPOKEN = (  # each about five seconds long
    "Could you tell me how much the premium plan costs, and whether there is a free trial of it?",
    "I have a recording of two hours in which five people speak, is that something you can do?",
    "Before I decide I would like to know what happens to my files when I cancel my contract.",
)
QUIET = 1e-3  # of full scale: below it a spoken sentence is over
IN_TIME_FRAMES = 25  # 2 s: a turn's end found later counts as missed
FIRST_ID = 10  # of the scripted words

SAY, PAUSE, COUGH, MUSIC, SILENCE = "say", "pause", "cough", "music", "silence"
SCRIPTS: dict[str, tuple[tuple[str, Any], ...]] = {  # a turn is over where silence follows
    "one sentence": ((SILENCE, 20), (SAY, "what does it cost a month"), (SILENCE, 40)),
    "short pause": (
        *((SILENCE, 15), (SAY, "i would like to know"), (PAUSE, 6)),
        *((SAY, "what it costs"), (SILENCE, 40)),
    ),
    "long pause": (
        *((SILENCE, 15), (SAY, "well tell me"), (PAUSE, 11), (SAY, "about the price"), (PAUSE, 9)),
        *((SAY, "for a year"), (SILENCE, 40)),
    ),
    "very long pause": (
        *((SILENCE, 15), (SAY, "let me think"), (PAUSE, 20), (SAY, "yes please do"), (SILENCE, 40)),
    ),
    "coughs": (
        *((SILENCE, 20), (COUGH, 3), (SILENCE, 20), (SAY, "sorry go on"), (SILENCE, 25)),
        *((COUGH, 5), (SILENCE, 30)),
    ),
    "uh-huh": ((SILENCE, 20), (SAY, "uh-huh"), (SILENCE, 30), (SAY, "uh-huh"), (SILENCE, 30)),
    "music": ((SILENCE, 20), (MUSIC, 100), (SILENCE, 30), (SAY, "stop that"), (SILENCE, 30)),
    "words over music": ((MUSIC, 40), (SAY, "can you hear me over this"), (MUSIC, 60)),
    "silence": ((SILENCE, 200),),
    "quick turns": (
        *((SILENCE, 15), (SAY, "yes"), (SILENCE, 15), (SAY, "no wait"), (SILENCE, 15)),
        *((SAY, "what was that"), (SILENCE, 40)),
    ),
}


Scripted = tuple[float, int, float]  # a frame's peak, token written, P(the user is done)


class Spelling:
    """A tokenizer with a piece for every word it has met, from id 10 on."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def id(self, piece: str) -> int:
        if piece not in self.pieces:
            self.pieces.append(piece)
        return FIRST_ID + self.pieces.index(piece)

    def piece(self, token: int) -> str:
        return self.pieces[token - FIRST_ID]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(self.piece, tokens)).replace("▁", " ")


SPELLING = Spelling()


def perform(script: tuple[tuple[str, Any], ...]) -> tuple[list[Scripted], list[int]]:
    """A script as frames, and the frames in which a turn was really over."""
    rng, peaks, done, ends = np.random.default_rng(0), [], [], []
    tokens: dict[int, int] = {}  # frame -> written then
    for index, (what, amount) in enumerate(script):
        if what == SAY:
            for word in amount.split():
                written = len(peaks) + DELAY_FRAMES
                tokens |= {written: EPAD, written + 1: SPELLING.id(f"▁{word}")}
                peaks += list(rng.uniform(0.1, 0.5, WORD_FRAMES))
                done += list(rng.uniform(0.0, 0.1, WORD_FRAMES))
            if script[index + 1][0] not in (PAUSE, SAY):
                ends.append(len(peaks))
            continue
        loudest = {PAUSE: 0.004, SILENCE: 0.004, COUGH: 0.6, MUSIC: 0.3}[what]
        peaks += list(rng.uniform(loudest / 2, loudest, amount))
        if what == PAUSE:  # how the recogniser's pause head sees a stretch without words [frames]
            head = np.minimum(0.1 * np.arange(1, amount + 1), rng.uniform(0.3, 0.55, amount))
        else:
            head = rng.uniform(0.9, 1.0, amount)
            if index > 0 and script[index - 1][0] == SAY:
                head[:3] = (0.3, 0.6, 0.85)[:amount]
        done += list(head)
    heads = [tokens.get(frame, PAD) for frame in range(len(peaks))]
    return list(zip(peaks, heads, done, strict=True)), ends


RULES = {  # name -> what of the recogniser's row is there
    "recogniser": lambda heard: heard,
    "without heads": lambda heard: HeardRow(stt_text=heard.stt_text),
    "energy": lambda heard: HeardRow(),
}


def find_turn_ends(frames: list[Scripted], rule: str) -> Iterator[int]:
    """The frames in which a rule finds that a turn is over, its last words written at once."""
    transcript = UserFloor(Transcription(SPELLING, DELAY_FRAMES) if rule != "energy" else None)
    written = 0  # frames whose tokens a flush has brought already
    for number, (peak, token, done) in enumerate(frames):
        token = token if number >= written else PAD
        row = HeardRow(stt_text=token, pause=np.full(4, done, np.float32))
        events = transcript.take_frame(peak, RULES[rule](row))
        ahead = number
        while transcript.runs_ahead:  # what the recogniser would write next, on silence
            ahead += 1
            written = ahead + 1
            token = frames[ahead][1] if ahead < len(frames) else PAD
            events += transcript.take_step(HeardRow(stt_text=token))
        if rule == "energy" and transcript.turn_ended:
            yield number
        yield from (number for event in events if event.final)


def measure_turns() -> list[dict[str, Any]]:
    """Precision and recall of every rule over all scripts, one row each."""
    rows = []
    for rule in RULES:
        turns, found, delays = 0, 0, []
        for script in SCRIPTS.values():
            frames, ends = perform(script)
            turns += len(ends)
            for at in find_turn_ends(frames, rule):
                found += 1
                match = [end for end in ends if end <= at < end + IN_TIME_FRAMES]
                if match:
                    ends.remove(match[0])
                    delays.append(at - match[0] + 1)
        precision, recall = len(delays) / max(1, found), len(delays) / turns
        row = {"rule": rule, "turns": turns, "precision": precision, "recall": recall}
        rows.append({**row, "delay_ms_p50": float(np.median(delays) * FRAME_SECONDS * 1e3)})
    return rows


def note_words(
    words: queue.SimpleQueue, text: str, _start: float, _end: float, final: bool
) -> None:
    words.put((text, time.monotonic(), final))


def measure_ears(source: str, turns: int) -> list[dict[str, Any]]:
    """Seconds from the end of a spoken turn to its words, each turn in real time.

    first: as soon as the user is silent; after: when it is certain that the turn is over.
    """
    from engine.runtime.ears import Ears, find_whisper
    from engine.runtime.embedded import load_synthesizer

    ears = Ears()
    ears.load(find_whisper(source, lambda phase, percent: None), "")
    silence, rows = np.full(3 * SAMPLE_RATE, 1e-5, np.float32), []
    for number in range(turns):
        sentence = SPOKEN[number % len(SPOKEN)]
        said = load_synthesizer().say(sentence, "en-us", 50, 160)
        sound = np.concatenate([silence[:SAMPLE_RATE], said, silence])
        over = np.flatnonzero(np.abs(sound) > QUIET)[-1] / SAMPLE_RATE
        words: queue.SimpleQueue[tuple[str, float, bool]] = queue.SimpleQueue()
        listener = ears.open(partial(note_words, words))
        start = time.monotonic()
        for at in range(0, len(sound) - FRAME_SAMPLES, FRAME_SAMPLES):
            frame = sound[at : at + FRAME_SAMPLES]
            time.sleep(max(0.0, start + (at + FRAME_SAMPLES) / SAMPLE_RATE - time.monotonic()))
            listener.push(frame, np.zeros_like(frame))
        told = [words.get(timeout=30)]
        while not told[-1][2]:
            told.append(words.get(timeout=30))
        first, (text, at, _) = told[-2:][0][1], told[-1]  # told at the pause, and at the end
        asked = [word for word in sentence.lower().split() if word.isalpha()]
        right = sum(word in text.lower() for word in asked) / len(asked)
        rows.append(
            {"turn_s": round(len(said) / SAMPLE_RATE, 1), "words_after_s": at - start - over,
             "first_after_s": first - start - over, "words_right": right}
        )  # fmt: skip
    ears.close()
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--whisper", default="", help="a folder, or 1: the CPU's ears as well")
    parser.add_argument("--turns", type=positive, default=3, help="spoken to the ears")


def run(args: argparse.Namespace) -> int:
    rules = measure_turns()
    print(table(rules))
    ears = measure_ears(args.whisper, args.turns) if args.whisper else []
    if ears:
        print(table(ears))
    save("turns", {"rules": rules, "ears": ears}, args.json)
    return 0
