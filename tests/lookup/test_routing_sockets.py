"""Smart routing as a client sees it: real sockets, the embedded backend, the stand-in's answers."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from engine.dialogue import speech
from engine.dialogue.persona import load_personas
from engine.dialogue.service import Service
from engine.dialogue.session import SessionConfig
from engine.evals.standin import Manner, Reply, StandIn
from engine.runtime.embedded import EmbeddedBackend
from engine.wire.protocol import Kind
from tests.dialogue.talk import answers_for
from tests.serving import ApiServer
from tests.wire.peer import FRAME, Peer, connected, talking

ANSWER = "It costs fourteen dollars now."


def reply(question: str) -> Reply:
    if "never" in question:
        return Reply(manner=Manner.SILENT)
    return Reply(ANSWER if "premium" in question else "Nobody here knows that.", pace=0.0)


@pytest.fixture
async def api() -> AsyncIterator[StandIn]:
    async with StandIn(reply) as stand_in:
        yield stand_in


@contextlib.contextmanager
def serving(api: StandIn, slots: int = 4, **options: Any) -> Iterator[ApiServer]:
    with ApiServer(slots, answers=answers_for(api.url, **options)) as server:
        yield server
        server.run(server.engine.answers.answerer.close())


def events(peer: Peer) -> list[dict[str, Any]]:
    """The `say` and `route` events so far."""
    return [event for event in peer.events if event["type"] in ("say", "route")]


async def test_an_ask_is_answered_in_the_agents_voice(api):
    with serving(api) as server:
        async with talking(server.url, events=1) as peer:
            await peer.tell(type="ask", text="How much is the premium plan?")
            await peer.event("route", state="done")
            bracketed = events(peer)
    assert peer.text.strip().endswith(ANSWER)
    route = {
        "type": "route",
        "id": 1,
        "question": "How much is the premium plan?",
        "source": "client",
        "knowledge": True,
        "reason": "",
    }
    states = [event for event in bracketed if event["type"] == "route"]
    assert [event.pop("t") >= 0 for event in states] == [True] * 3
    assert states == [route | {"state": s} for s in ("asking", "answering", "done")]
    order = [(event["type"], event["state"]) for event in bracketed]
    assert order == [
        ("route", "asking"),
        ("route", "answering"),
        *(("say", state) for state in ("queued", "speaking", "done")),
        ("route", "done"),
    ]
    assert bracketed[-2]["spoken"] == ANSWER


async def test_an_ask_before_the_handshake_is_answered_after_it(api):
    with serving(api) as server:
        async with connected(server.url, events=1) as peer:
            await peer.tell(type="ask", text="How much is the premium plan?")
            await peer.event("route", state="done")
    kinds = [kind for kind, _ in peer.heard]
    assert Kind.TEXT not in kinds[: kinds.index(Kind.HANDSHAKE)]
    assert peer.text.strip().endswith(ANSWER)


async def test_without_a_key_one_sentence_and_nothing_else(api):
    with serving(api, key="") as server:
        async with talking(server.url, events=1) as peer:
            await peer.tell(type="ask", text="How much is the premium plan?")
            await peer.event("say", state="done")
    assert peer.text.strip() == "I'm unable to look that up right now."
    failed = next(event for event in events(peer) if event.get("state") == "failed")
    assert failed["reason"] == "no key"
    assert api.requests == []


async def test_routing_is_each_conversations_own(api):
    with serving(api) as server:
        async with talking(server.url, events=1, routing=0) as peer:
            await peer.tell(type="ask", text="How much is the premium plan?")
            refusal = await peer.until(Kind.ERROR)
            assert b"routing is off" in refusal
            await peer.tell(type="set", routing=1)
            await peer.tell(type="ask", text="How much is the premium plan?")
            await peer.event("route", state="answering")
    assert len(api.requests) == 1


async def test_a_cancel_gives_an_ask_up_and_a_restart_forgets_it(api):
    with serving(api) as server:
        async with talking(server.url, events=1) as peer:
            await peer.tell(type="ask", text="This is never answered?")
            await api.asked.wait()
            await peer.tell(type="cancel")
            await peer.event("route", state="stale")
            await peer.tell(type="ask", text="This is never answered either?")
            await peer.event("route", state="asking", id=2)
            await peer.send(Kind.CONTROL, b"\x03")
            await peer.event("route", state="stale", id=2)
            await peer.until(Kind.HANDSHAKE)
            await peer.tell(type="ask", text="How much is the premium plan?")
            await peer.event("route", state="answering", id=3)
    assert not any(event["state"] == "done" for event in events(peer))


async def test_one_agent_frame_for_each_user_frame_while_it_is_looked_up(api):
    with serving(api) as server:
        async with talking(server.url, events=1) as peer:
            for _ in range(3):
                await peer.send(Kind.AUDIO, FRAME)
            await peer.tell(type="ask", text="This is never answered?")
            await peer.event("route", state="asking")
            for _ in range(3):
                await peer.send(Kind.AUDIO, FRAME)
                await peer.until(Kind.AUDIO)


async def test_leaving_frees_the_slot_and_hangs_up_on_the_api(api):
    with serving(api, slots=1) as server:
        async with talking(server.url, events=1) as peer:
            await peer.tell(type="ask", text="This is never answered?")
            await api.asked.wait()
        await api.hung_up.wait()
        async with talking(server.url, events=1) as peer:
            assert await peer.is_alive()


async def test_routes_are_counted_and_no_word_of_them(api):
    with serving(api) as server:
        async with talking(server.url, events=1) as peer:
            await peer.tell(type="ask", text="How much is the premium plan?")
            await peer.event("route", state="answering")
        text = server.engine.metrics.text().decode()
    assert 'personaplex_routes_total{source="client",state="answering"} 1.0' in text
    assert "premium" not in text


def prompt_of(id: str) -> str:
    return next(persona.text for persona in load_personas() if persona.id == id)


@pytest.mark.parametrize(
    ("prompt", "routing", "looks_up"),
    [
        (None, None, False),  # the default persona is a teacher
        (prompt_of("service"), None, False),
        (prompt_of("transgate"), None, True),
        (f"<system> {prompt_of('transgate')} <system>", None, True),
        ("You are a pirate who sells premium rum.", None, False),
        ("You are a pirate who sells premium rum.", True, True),
        (prompt_of("transgate"), False, False),
    ],
)
async def test_a_persona_says_whether_turns_are_looked_up(api, prompt, routing, looks_up):
    answers = answers_for(api.url)
    engine = Service(lambda _progress: EmbeddedBackend(1), answers=answers)
    async with engine.session(SessionConfig(text_prompt=prompt, routing=routing)) as session:
        session.routing.note_turn("How much is the premium plan?")
        await session.routing.settle()
        assert (session.routing.current is not None) is looks_up
    await answers.answerer.close()


async def test_a_restart_closes_what_was_queued(api):
    with serving(api) as server:
        async with talking(server.url, events=1) as peer:
            for text in ("One long sentence that takes its time to be said.", "Two.", "Three."):
                await peer.tell(type="say", text=text)
            await peer.event("say", state="queued", text="Three.")
            await peer.send(Kind.CONTROL, b"\x03")
            await peer.event("say", state="cancelled", text="Three.")
            await peer.until(Kind.HANDSHAKE)
            closed = [e["text"] for e in events(peer) if e["state"] in ("done", "cancelled")]
    assert sorted(closed)[-2:] == ["Three.", "Two."]
    assert len(closed) == 3


@pytest.mark.parametrize(
    ("name", "key", "manner"),
    [("no_key", "", Manner.SILENT), ("failed", "sk-test", Manner.GARBAGE)],
)
async def test_an_apology_was_prepared_at_the_start(monkeypatch, name, key, manner):
    """It takes 3 ms, in which the event loop would serve nobody."""
    prepared, prepare = [], speech.prepare
    async with StandIn(lambda _question: Reply(manner=manner)) as api:
        with serving(api, key=key) as server:
            monkeypatch.setattr(
                speech, "prepare", lambda text, *more: prepared.append(text) or prepare(text, *more)
            )
            async with talking(server.url, events=1, routing=1) as peer:
                await peer.tell(type="ask", text="How much is the premium plan?")
                apology = getattr(server.engine.answers.phrases, name)
                await peer.event("say", state="done", text=apology)
    assert prepared == []
