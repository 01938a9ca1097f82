"""A question's states: every edge of its table is walked, and what is told and done on the way."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from engine.lookup import question as module
from engine.lookup.handover import Source, load_phrases
from engine.lookup.question import (
    FINAL_STATES,
    TRANSITIONS,
    HoldEnd,
    Move,
    Question,
    QuestionState,
    Route,
)
from engine.lookup.textmodel import AnswerError

PHRASES = load_phrases()
CLAUSE = "It is noon in Rome, "
LAST = "and in Bern."


class Model:
    """A text model that says what the test puts into its queue; an error is raised."""

    has_key = True

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[str | AnswerError | None] = asyncio.Queue()

    async def stream(self, _messages: object) -> AsyncIterator[str]:
        while (piece := await self.pieces.get()) is not None:
            if isinstance(piece, AnswerError):
                raise piece
            yield piece


class Rig:
    """One question, and what its voice was asked to do, in order."""

    def __init__(self, source: Source = Source.MARKER) -> None:
        self.model = Model()
        self.done: list[tuple] = []
        self.routes: list[Route] = []
        self.question = Question(7, source, self.model, PHRASES, self)

    # -- AgentVoice ------------------------------------------------------------------------------

    def show(self, route: Route) -> None:
        self.routes.append(route)

    def hold(self, id: int, fillers: tuple[str, ...], apology: str, announced: bool) -> None:
        self.done.append(("hold", id, announced))

    def hold_back(self, id: int) -> None:
        self.done.append(("hold back", id))

    def release(self, id: int) -> None:
        self.done.append(("release", id))

    def say(self, text: str, answer: int = 0, growing: bool = False) -> int:
        self.done.append(("say", text, answer))
        return 40 + len(self.done)

    def add(self, say_id: int, text: str, last: bool = False) -> None:
        assert say_id == self.question.say_id
        self.done.append(("add", text, last))

    # -- ways to a state -------------------------------------------------------------------------

    async def feed(self, *pieces: str | AnswerError | None) -> None:
        for piece in pieces:
            self.model.pieces.put_nowait(piece)
        task = self.question._task
        for _ in range(5000):  # what is sent is made in a thread
            if not task or task.done() or self.model.pieces.empty():
                break
            await asyncio.sleep(0.001)
        for _ in range(10):
            await asyncio.sleep(0)

    async def reach(self, state: QuestionState) -> None:
        if state is QuestionState.WAITING:
            self.question.wait_for_words()
        if state is QuestionState.WONDERING:
            self.question.wonder("What time is it?", True, list)
        if state in (QuestionState.ASKING, QuestionState.ANSWERING, QuestionState.FINISHING):
            self.question.ask("What time is it?", True, list)
        if state in (QuestionState.ANSWERING, QuestionState.FINISHING):
            await self.feed(CLAUSE)
        if state is QuestionState.FINISHING:
            await self.feed(LAST, None)
        assert self.question.state is state

    @property
    def reported(self) -> list[tuple[str, str]]:
        return [(str(route.state), route.reason) for route in self.routes]


async def wait(rig: Rig) -> None:
    rig.question.wait_for_words()


async def ask(rig: Rig) -> None:
    rig.question.ask("What time is it?", True, list)


async def wonder(rig: Rig) -> None:
    rig.question.wonder("What time is it?", True, list)


async def begin(rig: Rig) -> None:
    await rig.feed("It is ")


async def pass_over(rig: Rig) -> None:
    await rig.feed("PA", "SS.")


async def say_nothing(rig: Rig) -> None:
    await rig.feed(None)


async def give_up(rig: Rig) -> None:
    rig.question.give_up("switched off")


async def time_out(rig: Rig) -> None:
    rig.question.note_hold_end(HoldEnd.TIMEOUT)


async def break_off(rig: Rig) -> None:
    await rig.feed(AnswerError("cut off"))


async def answer(rig: Rig) -> None:
    await rig.feed(CLAUSE)


async def complete(rig: Rig) -> None:
    await rig.feed(LAST, None)


async def finish(rig: Rig) -> None:
    rig.question.note_said(parts=2)


async def run_dry(rig: Rig) -> None:
    rig.question.note_said(parts=1)


async def cut(rig: Rig) -> None:
    rig.question.give_up("interrupted")


WALKS: dict[tuple[QuestionState, Move], list[Callable[[Rig], Awaitable[None]]]] = {
    (QuestionState.NEW, Move.WAIT): [wait],
    (QuestionState.NEW, Move.ASK): [ask],
    (QuestionState.NEW, Move.WONDER): [wonder],
    (QuestionState.NEW, Move.GIVE_UP): [give_up],
    (QuestionState.WONDERING, Move.ASK): [begin],
    (QuestionState.WONDERING, Move.PASS): [pass_over, say_nothing],
    (QuestionState.WONDERING, Move.FAIL): [break_off],
    (QuestionState.WONDERING, Move.GIVE_UP): [give_up, time_out],
    (QuestionState.WAITING, Move.ASK): [ask],
    (QuestionState.WAITING, Move.GIVE_UP): [give_up, time_out],
    (QuestionState.ASKING, Move.CLAUSE): [answer],
    (QuestionState.ASKING, Move.FAIL): [break_off, time_out],
    (QuestionState.ASKING, Move.GIVE_UP): [give_up, cut],
    (QuestionState.ANSWERING, Move.CLAUSE): [answer],
    (QuestionState.ANSWERING, Move.COMPLETE): [complete],
    (QuestionState.ANSWERING, Move.FAIL): [break_off, run_dry],
    (QuestionState.ANSWERING, Move.GIVE_UP): [give_up, cut],
    (QuestionState.FINISHING, Move.SAID): [finish],
    (QuestionState.FINISHING, Move.FAIL): [run_dry, time_out],
    (QuestionState.FINISHING, Move.GIVE_UP): [give_up, cut],
}
BEFORE_THE_ANSWER = [QuestionState[n] for n in ("NEW", "WAITING", "WONDERING", "ASKING")]
EDGES = [(edge, walk) for edge, walks in WALKS.items() for walk in walks]


def test_every_edge_of_the_table_is_walked_here():
    assert set(WALKS) == set(TRANSITIONS)


@pytest.mark.parametrize(
    ("edge", "walk"), EDGES, ids=lambda x: x.__name__ if callable(x) else f"{x[0].name}"
)
async def test_an_edge_leads_where_the_table_says_and_the_client_is_told(edge, walk, monkeypatch):
    rig, moves = Rig(), []
    await rig.reach(edge[0])
    told = len(rig.routes)
    move = rig.question._move
    monkeypatch.setattr(rig.question, "_move", lambda *how: moves.append(how[0]) or move(*how))
    await walk(rig)
    after = TRANSITIONS[edge]
    assert moves[-1] is edge[1]
    assert rig.question.state is after
    untold = {QuestionState.WAITING, QuestionState.WONDERING}
    silent = {*untold, QuestionState.FINISHING, QuestionState.DROPPED, edge[0]}
    assert [r.state.name for r in rig.routes[told:]] == ([] if after in silent else [after.name])
    assert {route.id for route in rig.routes} <= {7}
    await rig.question.close()


@pytest.mark.parametrize("state", sorted(FINAL_STATES, key=lambda state: state.name))
async def test_nothing_leaves_an_end(state):
    way = {
        QuestionState.DONE: (QuestionState.FINISHING, finish),
        QuestionState.FAILED: (QuestionState.ASKING, break_off),
        QuestionState.STALE: (QuestionState.ANSWERING, cut),
        QuestionState.DROPPED: (QuestionState.NEW, give_up),
    }[state]
    rig = Rig()
    await rig.reach(way[0])
    await way[1](rig)
    assert rig.question.state is state
    assert rig.question.is_over
    before = (list(rig.done), list(rig.routes))
    for walk in (wait, wonder, ask, answer, complete, finish, run_dry, cut, give_up, time_out):
        await walk(rig)
    assert (rig.done, rig.routes) == before


def test_the_drawing_names_every_state_and_every_move():
    words = set(re.findall(r"[A-Z_]{3,}", module.__doc__))
    assert {state.name for state in QuestionState} | {move.name for move in Move} <= words


# -- what is done on the way -----------------------------------------------------------------------


async def test_the_whole_way_holds_once_and_says_each_clause_once():
    rig = Rig()
    await rig.reach(QuestionState.FINISHING)
    await finish(rig)
    assert rig.done == [
        ("hold", 7, False),
        ("say", CLAUSE.strip(), 7),
        ("add", LAST, False),
        ("add", "", True),
    ]
    assert rig.reported == [("asking", ""), ("answering", ""), ("done", "")]
    assert rig.routes[0] == replace(rig.routes[0], question="What time is it?", knowledge=True)


async def test_words_that_do_not_come_are_apologised_for(monkeypatch):
    monkeypatch.setattr(module, "TRANSCRIPT_SECONDS", 0.0)
    rig = Rig()
    await wait(rig)
    await asyncio.sleep(0.01)
    assert rig.reported == [("asking", ""), ("failed", "no transcript")]
    assert rig.done == [("hold", 7, False), ("say", PHRASES.failed, 7)]


async def test_a_question_that_is_asked_waits_for_no_words_any_more(monkeypatch):
    monkeypatch.setattr(module, "TRANSCRIPT_SECONDS", 0.0)
    rig = Rig()
    await wait(rig)
    await ask(rig)
    await asyncio.sleep(0.01)
    assert rig.question.state is QuestionState.ASKING
    await rig.question.close()


async def test_an_answer_broken_off_is_closed_and_apologised_for_without_a_hold():
    rig = Rig()
    await rig.reach(QuestionState.ANSWERING)
    await break_off(rig)
    assert rig.done[2:] == [("add", "", True), ("say", PHRASES.broken_off, 0)]
    assert rig.reported[-1] == ("failed", "cut off")


@pytest.mark.parametrize("state", BEFORE_THE_ANSWER)
async def test_giving_up_before_the_answer_lets_the_agent_go(state):
    rig = Rig()
    await rig.reach(state)
    await give_up(rig)
    assert rig.done[-1] == ("release", 7)


async def test_a_hold_that_nobody_claimed_ends_a_wait_but_no_question():
    waiting, asking = Rig(), Rig()
    await waiting.reach(QuestionState.WAITING)
    await asking.reach(QuestionState.ASKING)
    for rig in (waiting, asking):
        rig.question.note_hold_end(HoldEnd.UNCLAIMED)
    assert waiting.question.state is QuestionState.DROPPED
    assert asking.question.state is QuestionState.ASKING
    await asking.question.close()


async def test_only_an_answer_that_has_come_whole_stays_when_another_question_comes():
    for state in (QuestionState.WAITING, QuestionState.ASKING, QuestionState.ANSWERING):
        rig = Rig()
        await rig.reach(state)
        rig.question.make_way()
        assert rig.question.is_over
    rig = Rig()
    await rig.reach(QuestionState.FINISHING)
    rig.question.make_way()
    assert rig.question.state is QuestionState.FINISHING


async def test_a_phrase_announces_the_hold_by_itself():
    rig = Rig(Source.PHRASE)
    await ask(rig)
    assert rig.done == [("hold", 7, True)]
    await rig.question.close()


# -- in doubt --------------------------------------------------------------------------------------


async def test_a_pass_lets_the_agent_go_at_once_and_nobody_is_told():
    rig = Rig()
    await rig.reach(QuestionState.WONDERING)
    await rig.feed("PASS", " ")  # the stream goes on, nobody waits for its end
    assert rig.done == [("hold back", 7), ("release", 7)]
    assert rig.routes == []


async def test_an_answer_out_of_doubt_is_told_held_and_said_whole():
    rig = Rig()
    await rig.reach(QuestionState.WONDERING)
    await rig.feed("Pas", "sports are checked at noon, ", LAST, None)
    assert rig.done[:3] == [
        ("hold back", 7),
        ("hold", 7, False),
        ("say", "Passports are checked at noon,", 7),
    ]
    assert rig.reported == [("asking", ""), ("answering", "")]


async def test_a_doubt_that_is_not_resolved_in_time_is_dropped(monkeypatch):
    monkeypatch.setattr(module, "WONDER_SECONDS", 0.0)
    rig = Rig()
    await wonder(rig)
    await asyncio.sleep(0.01)
    assert rig.question.state is QuestionState.DROPPED
    assert rig.done == [("hold back", 7), ("release", 7)]


@pytest.mark.parametrize(
    ("begun", "verdict"),
    [
        *(("", None), (" P", None), ("PASS", None), ("Pass", None), ("PASS.", True)),
        *(("PASS ", True), ('"PASS"', True), ("Passport", False), ("PASTA", False)),
        *(("Premium", False), ("P.S. it is", False), ("14", False)),
    ],
)
def test_only_the_whole_word_is_a_pass(begun, verdict):
    assert module.read_verdict(begun) is verdict
