"""Texts are prepared outside the frame thread, in order, and only if there is room for them."""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine.dialogue import events as ev
from engine.dialogue import session as module
from engine.dialogue.director import Director
from engine.dialogue.service import Service
from engine.dialogue.session import MAX_SAY_CHARS, SHORT_CHARS, Session, SessionConfig
from engine.dialogue.speech import QUEUE_LIMIT, prepare_command
from engine.errors import InternalError
from engine.runtime.embedded import ByteTokenizer, EmbeddedBackend
from engine.runtime.seat import Ended, Notice, Ready

LONG = "one of many words " * (MAX_SAY_CHARS // 18)
CALLS_PER_TEXT = 20  # of the director: no preparing, no loop over the words


@asynccontextmanager
async def talking() -> AsyncIterator[Session]:
    """A session after its handshake, paused, so that what is to be said waits."""
    engine = Service(lambda _progress: EmbeddedBackend(1))
    engine.start()
    await asyncio.to_thread(engine.wait, 30)
    async with Session(engine, SessionConfig()) as session:
        session.connect()
        async for output in session.outputs():
            if isinstance(output, Ready):
                break
        session.post(ev.Pause())
        yield session
    engine.stop()


async def events(session: Session, count: int) -> list[ev.Event]:
    """The next events of no frame."""
    found: list[ev.Event] = []
    while len(found) < count:
        output = await asyncio.wait_for(session._outbox.get(), 60)
        if isinstance(output, Notice):
            found += output.events
    return found


@pytest.fixture
def preparing(monkeypatch) -> list[tuple[str, int]]:
    """(text, thread) of every text that is prepared; a long one takes its time."""
    prepared = []

    def slow(command, *how):
        if isinstance(command, ev.Say):
            prepared.append((command.text, threading.get_ident()))
            time.sleep(0.05 if len(command.text) > SHORT_CHARS else 0.0)
        return prepare_command(command, *how)

    monkeypatch.setattr(module, "prepare_command", slow)
    return prepared


async def test_no_text_is_prepared_in_the_thread_that_runs_frames(preparing, monkeypatch):
    frames = set()
    take = Director.take

    def note_thread(self, command):
        frames.add(threading.get_ident())
        return take(self, command)

    monkeypatch.setattr(Director, "take", note_thread)
    async with talking() as session:
        session.say("short")
        session.say(LONG)
        await events(session, 2)
    (_, short_thread), (_, long_thread) = preparing
    assert short_thread == threading.get_ident()
    assert long_thread not in frames | {threading.get_ident()}


async def test_nothing_overtakes_a_text_that_takes_long_to_prepare(preparing):
    async with talking() as session:
        first, second = session.say(LONG), session.say("short")
        session.post(ev.Cancel())
        last = session.say("last")
        told = await events(session, 5)
    assert [(event.id, str(event.state)) for event in told] == [
        (first, "queued"),
        (second, "queued"),
        (first, "cancelled"),
        (second, "cancelled"),
        (last, "queued"),
    ]


async def test_a_full_queue_refuses_in_its_turn_and_before_preparing(preparing):
    async with talking() as session:
        for _ in range(60):
            session.say(LONG)
        told = await events(session, 60)
        queued, refused = told[:QUEUE_LIMIT], told[QUEUE_LIMIT:]
        assert len(preparing) == QUEUE_LIMIT
        session.post(ev.Cancel())
        await events(session, QUEUE_LIMIT)
        session.say("there is room again")
        (again,) = await events(session, 1)
    assert {str(event.state) for event in queued} == {"queued"}
    assert all("10 texts are waiting" in event.message for event in refused)
    assert isinstance(again, ev.Saying)


async def test_a_text_that_is_begun_makes_room_for_another(preparing):
    async with talking() as session:
        for number in range(QUEUE_LIMIT):
            session.say(f"text {number}")
        await events(session, QUEUE_LIMIT)
        session.post(ev.Resume())
        begun = []
        while not any(isinstance(event, ev.TakenUp) for event in begun):
            begun = getattr(await asyncio.wait_for(session._outbox.get(), 60), "events", [])
        session.post(ev.Pause())
        session.say("one more")
        assert preparing[-1][0] == "one more"


async def test_what_waits_is_void_after_a_restart(preparing):
    async with talking() as session:
        long, short = session.say(LONG), session.say("short")
        session.restart()
        after = session.say("after")
        told = await events(session, 3)
    assert [(event.id, str(event.state)) for event in told] == [
        (long, "cancelled"),
        (short, "cancelled"),
        (after, "queued"),
    ]


async def test_a_text_that_nobody_waits_for_any_more_is_not_prepared(preparing):
    """Else others' texts wait behind those of all who have left, and their memory is kept."""
    async with talking() as session:
        preparer, go = session._engine.preparer, threading.Event()
        preparer.submit(go.wait, 20)
        session.say(LONG)
        session.restart()
        for _ in range(3):  # the loop tells the executor
            await asyncio.sleep(0)
        go.set()
        await asyncio.to_thread(preparer.submit(int).result, 20)
    assert not preparing


async def test_a_long_text_that_cannot_be_prepared_ends_its_own_conversation(monkeypatch, caplog):
    async with talking() as session:
        monkeypatch.setattr(module, "prepare_command", lambda *_: 1 / 0)
        session.say(LONG)
        output = await asyncio.wait_for(session._outbox.get(), 60)
    assert isinstance(output, Ended)
    assert isinstance(output.error, InternalError)
    assert "could not be prepared" in caplog.text


def test_sixty_long_texts_cost_the_director_a_bounded_number_of_calls():
    texts = [prepare_command(ev.Say(i, LONG, growing=i == 0), ByteTokenizer()) for i in range(60)]
    more = prepare_command(ev.More(0, LONG), ByteTokenizer())
    director, calls = Director(ByteTokenizer()), []
    sys.setprofile(lambda _frame, event, _what: calls.append(event))
    try:
        for command in [*texts, more]:
            director.take(command)
    finally:
        sys.setprofile(None)
    assert sum(event in ("call", "c_call") for event in calls) <= CALLS_PER_TEXT * 61
