"""The scripted dialogues, acted out in real time on a real engine; what each turn came to.

The user's words reach the director as a transcript would bring them (a test double); everything
else is the engine's own: session, scheduler, director, router, answerer over real HTTP.
"""

import asyncio
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.bench.scripted import Head, Probe
from engine.config import FRAME_SAMPLES, FRAME_SECONDS
from engine.dialogue import events as ev
from engine.dialogue.director import Mode
from engine.dialogue.engine import Engine
from engine.dialogue.events import RouteState, SayState
from engine.dialogue.session import Session, SessionConfig
from engine.dialogue.utterance import prepare
from engine.runtime.embedded import ByteTokenizer
from engine.runtime.seat import Frame, Notice, Output, Ready

DIALOGUES = Path(__file__).parents[2] / "tests" / "dialogues"
SPEECH = np.full(FRAME_SAMPLES, 0.3, np.float32)  # a user frame that is loud
SILENCE = np.zeros(FRAME_SAMPLES, np.float32)
FRAMES_PER_WORD = 3
MIN_SPEECH_FRAMES, MAX_SPEECH_FRAMES = 6, 20
TURN_END_FRAMES = 9  # of quiet, until the turn is over
REPLY_FRAMES = 5  # until the model starts its line
QUIET_FRAMES = 6  # with nothing going on, before the next turn
BARGE_IN_FRAMES = 8  # how long the user speaks over an answer
MAX_TURN_SECONDS = 60.0
TOKENIZER = ByteTokenizer()


@dataclass(frozen=True, slots=True)
class Script:
    """One dialogue of a file."""

    kind: str
    turns: list[dict[str, Any]]


def load_scripts(folder: Path = DIALOGUES) -> list[Script]:
    """All dialogues of tests/dialogues."""
    return [
        Script(path.stem, dialogue["turns"])
        for path in sorted(folder.glob("*.toml"))
        for dialogue in tomllib.loads(path.read_text(encoding="utf-8"))["dialogue"]
    ]


@dataclass
class Turn:
    """What became of one turn of the user."""

    kind: str
    user: str
    expected: str  # who should hand over: user, marker, phrase, or nobody
    handed_over: str = ""
    state: str = ""  # of the route, at last
    started: float = 0.0  # time.monotonic() of the trigger
    first_word: float = 0.0  # of the answer, handed out
    filler: bool = False  # something was said before the answer
    words: int = 0  # spoken words of a whole answer
    frames: int = 0  # it took

    @property
    def latency(self) -> float:
        return self.first_word - self.started if self.first_word else 0.0


@dataclass
class Talk:
    """One dialogue in progress."""

    script: Script
    head: Head
    probe: Probe
    turns: list[Turn] = field(default_factory=list)
    frames_in: int = 0
    frames_out: int = 0
    _answer: int = 0  # the say id of the answer in progress
    _route: RouteState | None = None
    _spoken_at: int = 0  # frame in which the answer began
    _next: float = 0.0

    async def run(self, engine: Engine, number: int) -> "Talk":
        """Act it out."""
        async with engine.session(SessionConfig(seed=number, text_prompt="")) as session:
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
        """The user speaks, the model wants to answer, and whatever comes of it."""
        text = turn["user"]
        expected = "user" if turn.get("routed") else turn.get("source", "")
        self.turns.append(Turn(self.script.kind, text, expected))
        self._answer = self._spoken_at = 0
        loud = FRAMES_PER_WORD * len(text.split())
        loud = min(max(loud, MIN_SPEECH_FRAMES), MAX_SPEECH_FRAMES)
        await self._frames(session, SPEECH, loud)
        await self._frames(session, SILENCE, TURN_END_FRAMES)
        if turn.get("transcribed", True):
            self.turns[-1].started = time.monotonic()
            session.post(ev.UserText(text, 0.0, 0.0, final=True))
        await self._frames(session, SILENCE, REPLY_FRAMES)
        self.head.plan(turn.get("agent", ""), TOKENIZER)
        await self._until_quiet(session, turn.get("barge_in"))

    async def _until_quiet(self, session: Session, barge_in: float | None) -> None:
        quiet = 0
        while quiet < QUIET_FRAMES:
            free = session.director.mode is Mode.FREE and not session.director.wants_frames
            quiet = quiet + 1 if free and not self.head.line else 0
            first = self.turns[-1].first_word
            if barge_in is not None and first and time.monotonic() - first > barge_in:
                barge_in = None
                await self._frames(session, SPEECH, BARGE_IN_FRAMES)
            await self._frames(session, SILENCE, 1)

    async def _frames(self, session: Session, pcm: np.ndarray, count: int) -> None:
        """User frames at the pace of speech."""
        for _ in range(count):
            session.hear(pcm)
            self.frames_in += 1
            self._next += FRAME_SECONDS
            await asyncio.sleep(max(0.0, self._next - time.monotonic()))

    # -- what comes back ---------------------------------------------------------------------------

    async def _read(self, session: Session, ready: asyncio.Event) -> None:
        async for output in session.outputs():
            if isinstance(output, Ready):
                ready.set()
            self._take(output)

    def _take(self, output: Output) -> None:
        self.frames_out += isinstance(output, Frame)
        if isinstance(output, Frame | Notice):
            for event in output.events:
                self._note(event)

    def _note(self, event: ev.Event) -> None:
        match event:
            case ev.Route():
                self._note_route(event)
            case ev.Saying(id, SayState.SPEAKING) if id == self._answer:
                self._spoken_at = self.frames_out
            case ev.Saying(id, SayState.DONE, text) if id == self._answer:
                self.turns[-1].words = len(prepare(text, TOKENIZER))
                self.turns[-1].frames = self.frames_out - self._spoken_at
            case ev.Saying(id, SayState.QUEUED) if self._route is RouteState.ANSWERING:
                self._answer, self._route = id, None
            case ev.Text(_, given=True) if self.turns:
                self._note_word()

    def _note_route(self, route: ev.Route) -> None:
        turn = self.turns[-1]
        if route.state is RouteState.ASKING:
            turn.handed_over = str(route.source)
            if route.source != "user":
                turn.started = self.probe.held_at
        turn.state = str(route.state)
        self._route = route.state

    def _note_word(self) -> None:
        turn = self.turns[-1]
        if not self._spoken_at:
            turn.filler = True
        elif not turn.first_word:
            turn.first_word = time.monotonic()
