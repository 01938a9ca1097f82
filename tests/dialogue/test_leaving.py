"""How a session ends: its slot goes first, and nothing is asked for somebody who has left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine.dialogue import events as ev
from engine.dialogue.service import Service
from engine.dialogue.session import Session, SessionConfig
from engine.evals.standin import Manner, Reply, StandIn
from engine.lookup.handover import Source
from engine.runtime.embedded import EmbeddedBackend
from engine.runtime.seat import Notice, Ready
from tests.dialogue.talk import standing

QUESTION = "How much is the premium plan?"
LISTENED = ev.UserText(QUESTION, 0.0, 1.0, final=True)
PAUSED = ev.UserText(QUESTION, 0.0, 1.0, final=False, pause=True)


@asynccontextmanager
async def serving_one() -> AsyncIterator[tuple[Service, StandIn]]:
    """A server's shared things with a single slot, and a text model that never answers."""
    async with standing(lambda _question: Reply(manner=Manner.SILENT)) as (api, answers):
        engine = Service(lambda _progress: EmbeddedBackend(1), answers=answers)
        engine.start()
        await asyncio.to_thread(engine.wait, 30)
        yield engine, api
        engine.stop()


async def shake_hands(session: Session) -> None:
    """Until the session is ready."""
    session.connect()
    async for output in session.outputs():
        if isinstance(output, Ready):
            return


async def test_the_next_one_has_the_slot_while_a_question_is_still_being_given_up(monkeypatch):
    async with serving_one() as (engine, _api):
        leaver, given_up = Session(engine, SessionConfig()), asyncio.Event()
        monkeypatch.setattr(leaver.routing, "close", given_up.wait)
        await leaver.__aenter__()
        await shake_hands(leaver)
        leaving = asyncio.create_task(leaver.__aexit__())
        await asyncio.sleep(0)
        async with Session(engine, SessionConfig()) as successor:
            await shake_hands(successor)
            assert not leaving.done()
        given_up.set()
        await leaving


async def test_a_cancelled_end_gives_the_slot_back_all_the_same(monkeypatch):
    async with serving_one() as (engine, _api):
        leaver = Session(engine, SessionConfig())
        monkeypatch.setattr(leaver.routing, "close", asyncio.Event().wait)
        await leaver.__aenter__()
        await shake_hands(leaver)
        leaving = asyncio.create_task(leaver.__aexit__())
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert engine.free == 1
        assert "personaplex_conversations 0.0" in engine.metrics.text().decode()


@pytest.mark.parametrize("event", [LISTENED, PAUSED, ev.Triggered(1, Source.MARKER)])
async def test_what_arrives_after_the_end_asks_nobody(event):
    async with serving_one() as (engine, api):
        async with Session(engine, SessionConfig(routing=True)) as session:
            await shake_hands(session)
            tasks = asyncio.all_tasks()
        session._deliver([Notice([event])])  # the scheduler was in the midst of its turn
        engine.mail.send()
        await asyncio.sleep(0.05)
        assert asyncio.all_tasks() <= tasks
        assert session.routing.current is None
        assert api.requests == []


@pytest.mark.parametrize("event", [LISTENED, PAUSED])
async def test_the_same_words_before_the_end_are_asked_about(event):
    async with (
        serving_one() as (engine, api),
        Session(engine, SessionConfig(routing=True)) as session,
    ):
        await shake_hands(session)
        session._deliver([Notice([event])])
        engine.mail.send()
        await api.asked.wait()
