"""Smart routing by scripted dialogues: who hands over when, how fast, and at what pace.

`python -m engine bench routing` acts tests/dialogues out in real time, through the engine's own
session, scheduler, director and router, with an answerer over real HTTP. Three things are
stand-ins. The model's text head reads from a script. It wants to say its line whether or not it
may, as the model would: soon after the question in the first run, at once in the second. No speech
is made; a frame is loud while words sound. The user's words come as a transcript would bring them.
The text model's API answers on loopback after half a second. A probe beside each director sees
every token that is really fed.
"""

import argparse
import asyncio
import logging
import random
import sys
import time
import tomllib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.bench.report import save, table
from engine.config import EPAD, FRAME_SAMPLES, FRAME_SECONDS, PAD, DeepSeekConfig, ServerConfig
from engine.dialogue import events as ev
from engine.dialogue.director import Director, Mode
from engine.dialogue.events import SayState
from engine.dialogue.floor import BARGE_IN_FRAMES
from engine.dialogue.service import Service
from engine.dialogue.session import Session, SessionConfig
from engine.dialogue.text import prepare
from engine.errors import ConfigError
from engine.evals.decisions import TimedRouter, measure, play, read_dialogues
from engine.evals.standin import Reply, StandIn, by_heart
from engine.lookup.question import PASS, RouteState
from engine.lookup.routing import DailyCap, build_answers
from engine.lookup.textmodel import Answerer
from engine.runtime.backend import Opening
from engine.runtime.embedded import ByteTokenizer, EmbeddedBackend
from engine.runtime.seat import Frame, Notice, Ready

DIALOGUES = Path(__file__).parents[2] / "tests" / "dialogues"
AT_ONCE = 16  # dialogues in real time beside each other: two cores keep their pace
API_SECONDS = 0.5  # until the stand-in's first word
SPEECH = np.full(FRAME_SAMPLES, 0.3, np.float32)  # a user frame that is loud
SILENCE = np.zeros(FRAME_SAMPLES, np.float32)
FRAMES_PER_WORD = 3  # of the user
MIN_SPEECH_FRAMES, MAX_SPEECH_FRAMES = 6, 20
# Of quiet: until the words are there (Silero's 0.26 s and Whisper's time), and until it is certain
# that the turn is over, as the CPU's ears tell both (runtime/ears.py; `bench turns --whisper 1`).
WORDS_FRAMES, TURN_END_FRAMES = 6, 8
REPLY_FRAMES = 5  # until the model starts its line
QUIET_FRAMES = 6  # with nothing going on, before the next turn
TALK_OVER_FRAMES = 8  # for which the user speaks over an answer
MAX_TURN_SECONDS = 60.0
VOTE_RATE = 0.3  # how often the head would start a word while it has nothing to say
WORD_FRAMES = 5  # of the head: about two and a half words a second
SOUND_FRAMES = 4  # for which a fed piece sounds
LOUD = 0.2
TOKENIZER = ByteTokenizer()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dialogues", type=Path, help="judge these written dialogues instead")
    parser.add_argument("--raw", action="store_true", help="lower case, without punctuation")
    parser.add_argument("--knowledge", help="the folder of other facts, for --dialogues")


def run(args: argparse.Namespace) -> int:
    if args.dialogues:
        return judge_written(args)
    if args.raw or args.knowledge:
        raise ConfigError("--raw and --knowledge go with --dialogues; name a file of dialogues")
    logging.getLogger("engine").setLevel(logging.WARNING)  # two lines a dialogue are too many
    scripts = load_scripts()
    print(f"{len(scripts)} dialogues, each twice, {AT_ONCE} at once, in real time …", flush=True)
    talks, asked = asyncio.run(act(scripts, AT_ONCE))
    turns = [turn for talk in talks for turn in talk.turns]
    by_kind, figures = count_handovers(turns), measure_talks(talks)
    print(table(by_kind), end="\n\n")
    print(table([{"figure": name, "value": value} for name, value in figures.items()]))
    for turn in turns:
        if turn.handed_over != turn.expected:
            wanted, got = turn.expected or "nobody", turn.handed_over or "nobody"
            print(f"wanted {wanted}, was {got}: {turn.user}")
    result = {"rows": by_kind, "summary": figures, "asked": asked}
    result["turns"] = [asdict(turn) for turn in turns]
    save("routing", result, args.json)
    return 0


def judge_written(args: argparse.Namespace) -> int:
    """Written dialogues only: precision, recall, what is left alone, what is in doubt."""
    dialogues = read_dialogues(args.dialogues)
    answers = build_answers(ServerConfig(knowledge=args.knowledge or ""), {})
    # an unlimited number of questions: limits are not what is measured
    answers = replace(answers, cap=DailyCap(sys.maxsize), asks_per_minute=sys.maxsize)
    if not answers.router.wait():
        raise ConfigError(
            "no sentence vectors here, see the warning; install requirements-page.txt"
        )
    router = TimedRouter(answers.router)
    answers = replace(answers, router=router)
    figures = measure(asyncio.run(play(dialogues, answers, args.raw))) | router.times()
    misses = figures["misses"]
    shown = [
        {"figure": name, "value": value} for name, value in figures.items() if name != "misses"
    ]
    print(table(shown))
    for miss in misses:
        wanted, got = miss["expected"], miss["decided"]
        print(f"{miss['dialogue']}: should be {wanted}, is {got}: {miss['text']}")
    save("routing", figures, args.json)
    return 0


@dataclass(frozen=True, slots=True)
class Script:
    kind: str
    turns: list[dict[str, Any]]


def load_scripts() -> list[Script]:
    return [
        Script(path.stem, dialogue["turns"])
        for path in sorted(DIALOGUES.glob("*.toml"))
        for dialogue in tomllib.loads(path.read_text(encoding="utf-8"))["dialogue"]
    ]


async def act(scripts: Sequence[Script], at_once: int) -> tuple[list["ActedDialogue"], int]:
    """All dialogues acted out, and how often the API was asked."""
    turns = [turn for script in scripts for turn in script.turns]
    slow = {turn["user"]: turn["api"] for turn in turns if "api" in turn}  # seconds

    asked_for = {turn["user"] for turn in turns if turn.get("routed") or turn.get("source")}

    def reply(question: str) -> Reply:
        if question not in asked_for:  # the router was in doubt, the text model is not
            return Reply(PASS, delay=API_SECONDS)
        return replace(by_heart(question), delay=slow.get(question, API_SECONDS))

    async with StandIn(reply) as api:
        slots = 2 * at_once  # a slot is free a tick after it is left
        backend = ScriptedBackend(slots, 2 * len(scripts))
        answers = build_answers(ServerConfig(), {})
        answers = replace(answers, answerer=Answerer(DeepSeekConfig("sk-bench", api.url)))
        engine = Service(lambda _progress: backend, answers=answers)
        engine.start()
        await asyncio.to_thread(engine.wait)
        await asyncio.to_thread(answers.router.wait)  # until then words alone decide
        free = asyncio.Semaphore(at_once)

        async def one(number: int, script: Script, babbles: bool) -> "ActedDialogue":
            async with free:
                head, probe = backend.heads[number], backend.probes[number]
                return await ActedDialogue(script, head, probe, babbles=babbles).run(engine, number)

        casts = [(script, babbles) for babbles in (False, True) for script in scripts]
        talks = await asyncio.gather(*(one(i, *cast) for i, cast in enumerate(casts)))
        await answers.answerer.close()
        engine.stop()
    return talks, len(api.requests)


# -- the scripted model ----------------------------------------------------------------------------


class Head:
    """One conversation's text head."""

    def __init__(self, seed: int) -> None:
        self.line: deque[int] = deque()
        self._rng = random.Random(seed)

    def plan(self, text: str, tokenizer: ByteTokenizer) -> None:
        """What the model wants to say from now on."""
        line: deque[int] = deque()
        for word in text.split():
            tokens = [EPAD, *tokenizer.encode(word)]
            line.extend(tokens + [PAD] * (WORD_FRAMES - len(tokens)))
        self.line = line  # in one go: the scheduler's thread reads it

    def sample(self) -> int:
        line = self.line
        if line:
            return line.popleft()
        return EPAD if self._rng.random() < VOTE_RATE else PAD


@dataclass
class Probe:
    """What one director did, seen from the scheduler's thread."""

    director: Director | None = None
    held_at: float = 0.0  # time.monotonic() at which the last hold began
    own_while_held: int = 0  # tokens of the model's own that were fed during a hold
    spoken_frames: int = 0
    padding_frames: int = 0  # of them
    cancel_excess: list[int] = field(default_factory=list)  # frames beyond the current word
    _mode: Mode = Mode.FREE
    _cancel: int | None = None

    def see(self, token: int) -> None:
        """The token fed in this step."""
        if self.director is None:
            return
        before, self._mode = self._mode, self.director.mode
        if before is self._mode is Mode.HOLD:
            self.own_while_held += token != PAD
        elif before is Mode.FREE and self._mode is Mode.HOLD:
            self.held_at = time.monotonic()
        if self._mode is Mode.SPEAK:
            self.spoken_frames += 1
            self.padding_frames += token in (PAD, EPAD)
        # from the barge-in until the text is left: frames that are no piece of the word
        if before is Mode.SPEAK and self.director.floor.speech_frames == BARGE_IN_FRAMES:
            self._cancel = 0
        if self._cancel is None:
            return
        self._cancel += token in (PAD, EPAD)
        if self._mode is not Mode.SPEAK:
            self.cancel_excess.append(self._cancel)
            self._cancel = None


class ScriptedConversation:
    """What the scripted model does in one slot."""

    def __init__(self, head: Head, probe: Probe) -> None:
        self._head, self._probe, self._sounding = head, probe, 0

    def listen(self, pcm: np.ndarray) -> int:
        return self._head.sample()

    def speak(self, token: int, hush: bool) -> float:
        """Every sample of the frame."""
        self._probe.see(token)
        self._sounding = SOUND_FRAMES if token > PAD else max(0, self._sounding - 1)
        return LOUD if self._sounding and not hush else 0.0


class ScriptedBackend(EmbeddedBackend):
    """A conversation's seed names its head and probe."""

    name = "scripted"

    def __init__(self, slots: int, talks: int) -> None:
        super().__init__(slots)
        self.heads = [Head(i) for i in range(talks)]
        self.probes = [Probe() for _ in range(talks)]

    def open(self, slot: int, opening: Opening) -> Iterator[None]:
        talk = opening.seed
        self._open[slot] = ScriptedConversation(self.heads[talk], self.probes[talk])
        yield from ()


# -- one dialogue, acted out -----------------------------------------------------------------------


@dataclass
class ScriptedTurn:
    """What came of one turn of the user."""

    kind: str
    user: str
    expected: str  # who should hand over: user, marker, phrase, or nobody
    handed_over: str = ""
    state: str = ""  # of the route, at last
    asked: float = 0.0  # time.monotonic() of the end of the user's speech
    started: float = 0.0  # of the trigger
    first_word: float = 0.0  # of the answer, handed out
    filler: bool = False  # something was said before the answer
    words: int = 0  # spoken words of a whole answer
    frames: int = 0  # it took


@dataclass
class ActedDialogue:
    """One dialogue in progress."""

    script: Script
    head: Head
    probe: Probe
    turns: list[ScriptedTurn] = field(default_factory=list)
    babbles: bool = False  # the model answers a question at once, before its words are there
    frames_in: int = 0
    frames_out: int = 0
    _answer: int = 0  # the say id of the answer in progress
    _route: RouteState | None = None
    _spoken_at: int = 0  # frame in which the answer began
    _next: float = 0.0

    async def run(self, engine: Service, number: int) -> "ActedDialogue":
        """Act it out, turn by turn."""
        async with engine.session(
            SessionConfig(seed=number, text_prompt="", routing=True)
        ) as session:
            ready = asyncio.Event()
            session.connect()
            self.probe.director = session.director
            reading = asyncio.create_task(self._read(session, ready))
            await ready.wait()
            self._next = time.monotonic()
            for turn in self.script.turns:
                async with asyncio.timeout(MAX_TURN_SECONDS):
                    await self._act(session, turn)
            await asyncio.sleep(4 * FRAME_SECONDS)
            reading.cancel()
        return self

    async def _act(self, session: Session, turn: dict[str, Any]) -> None:
        """The user speaks, the model wants to answer; wait until nothing is left of either."""
        text = turn["user"]
        expected = "user" if turn.get("routed") else turn.get("source", "")
        self.turns.append(ScriptedTurn(self.script.kind, text, expected))
        self._answer = self._spoken_at = 0
        loud = FRAMES_PER_WORD * len(text.split())
        loud = min(max(loud, MIN_SPEECH_FRAMES), MAX_SPEECH_FRAMES)
        await self._frames(session, SPEECH, loud)
        self.turns[-1].asked = time.monotonic()
        if self.babbles and turn.get("routed"):
            self.head.plan(turn.get("agent", ""), TOKENIZER)
        await self._frames(session, SILENCE, WORDS_FRAMES)
        if turn.get("transcribed", True):
            session.post(ev.UserText(text, 0.0, 0.0, final=False, pause=True))
        await self._frames(session, SILENCE, TURN_END_FRAMES - WORDS_FRAMES)
        if turn.get("transcribed", True):
            self.turns[-1].started = time.monotonic()
            session.post(ev.UserText(text, 0.0, 0.0, final=True))
        await self._frames(session, SILENCE, REPLY_FRAMES)
        if not (self.babbles and turn.get("routed")):
            self.head.plan(turn.get("agent", ""), TOKENIZER)
        quiet, barge_in = 0, turn.get("barge_in")
        while quiet < QUIET_FRAMES:
            free = session.director.mode is Mode.FREE and not session.director.wants_frames
            quiet = quiet + 1 if free and not self.head.line else 0
            first = self.turns[-1].first_word
            if barge_in is not None and first and time.monotonic() - first > barge_in:
                barge_in = None
                await self._frames(session, SPEECH, TALK_OVER_FRAMES)
            await self._frames(session, SILENCE, 1)

    async def _frames(self, session: Session, pcm: np.ndarray, count: int) -> None:
        """User frames at the pace of speech."""
        for _ in range(count):
            session.push_audio(pcm)
            self.frames_in += 1
            self._next += FRAME_SECONDS
            await asyncio.sleep(max(0.0, self._next - time.monotonic()))

    # -- what comes back ---------------------------------------------------------------------------

    async def _read(self, session: Session, ready: asyncio.Event) -> None:
        async for output in session.outputs():
            if isinstance(output, Ready):
                ready.set()
            self.frames_out += isinstance(output, Frame)
            if isinstance(output, Frame | Notice):
                for event in output.events:
                    self._note(event)

    def _note(self, event: ev.Event) -> None:
        turn = self.turns[-1] if self.turns else None
        match event:
            case ev.Route():
                if event.state is RouteState.ASKING:
                    turn.handed_over = str(event.source)
                    if event.source != "user":
                        turn.started = self.probe.held_at
                turn.state = str(event.state)
                self._route = event.state
            case ev.Saying(id, SayState.SPEAKING) if id == self._answer:
                self._spoken_at = self.frames_out
            case ev.Saying(id, SayState.DONE, text) if id == self._answer:
                turn.words = len(prepare(text, TOKENIZER))
                turn.frames = self.frames_out - self._spoken_at
            case ev.Saying(id, SayState.QUEUED) if self._route is RouteState.ANSWERING:
                self._answer, self._route = id, None
            case ev.Text(_, given=True) if turn:
                if not self._spoken_at:
                    turn.filler = True
                elif not turn.first_word:
                    turn.first_word = time.monotonic()


# -- figures ---------------------------------------------------------------------------------------


def count_handovers(turns: Sequence[ScriptedTurn]) -> list[dict[str, Any]]:
    """Who handed over, one row a kind of dialogue and one for all."""
    kinds = sorted({turn.kind for turn in turns})
    rows = []
    for kind in (*kinds, "all"):
        own = [turn for turn in turns if kind in (turn.kind, "all")]
        should = [turn for turn in own if turn.expected]
        did = [turn for turn in own if turn.handed_over]
        right = [turn for turn in did if turn.expected == turn.handed_over]
        rows.append(
            {
                "dialogues": kind, "turns": len(own), "should hand over": len(should),
                "did": len(did), "precision": _share(len(right), len(did)),
                "recall": _share(len(right), len(should)),
            }
        )  # fmt: skip
    return rows


def measure_talks(talks: Sequence[ActedDialogue]) -> dict[str, Any]:
    """How well and how fast questions are handed over, and at what pace answers are spoken."""
    turns = [turn for talk in talks for turn in talk.turns]
    small = [turn for turn in turns if not turn.expected]
    product = [turn for turn in turns if turn.expected == "user"]
    model = [turn for turn in turns if turn.expected in ("marker", "phrase")]
    answered = [turn for turn in turns if turn.first_word]
    direct, late = [t for t in answered if not t.filler], [t for t in answered if t.filler]
    spoken_to = [t for t in direct if t.expected == "user"]
    excess = [frames for talk in talks for frames in talk.probe.cancel_excess]
    paces = [60 * t.words / (t.frames * FRAME_SECONDS) for t in turns if t.frames]
    low, mid, high = np.percentile(paces, (0, 50, 100)) if paces else (0.0, 0.0, 0.0)
    said, frames = sum(t.words for t in turns), sum(t.frames for t in turns)
    spoken = sum(talk.probe.spoken_frames for talk in talks)
    padding = sum(talk.probe.padding_frames for talk in talks)
    return {
        "small talk left alone": _share(sum(not t.handed_over for t in small), len(small)),
        "product questions routed": _share(
            sum(t.handed_over == "user" for t in product), len(product)
        ),
        "model's hand-overs caught": _share(
            sum(t.handed_over == t.expected for t in model), len(model)
        ),
        **_times("trigger to first word, s", [t.first_word - t.started for t in direct]),
        **_times("the same after a filler, s", [t.first_word - t.started for t in late]),
        **_times("end of speech to first word, s", [t.first_word - t.asked for t in spoken_to]),
        "own words during hold": sum(talk.probe.own_while_held for talk in talks),
        "own words during hold, model that babbles at once": sum(
            talk.probe.own_while_held for talk in talks if talk.babbles
        ),
        "words/min": 60 * said / max(1.0, frames * FRAME_SECONDS),
        "words/min, slowest": float(low),
        "words/min, p50": float(mid),
        "words/min, fastest": float(high),
        "share of padding while speaking": _share(padding, spoken),
        "barge-ins": len(excess),
        "cancel, frames beyond the word, max": max(excess, default=0),
        "frames in minus out, max": max(abs(t.frames_in - t.frames_out) for t in talks),
    }


def _times(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    p50, p95, most = np.percentile(seconds, (50, 95, 100)) if seconds else (0.0, 0.0, 0.0)
    cases = {f"{name}, cases": len(seconds)}
    return cases | {f"{name}, p50": float(p50), f"{name}, p95": float(p95), f"{name}, max": most}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
