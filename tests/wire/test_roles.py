"""`restart` as metadata: somebody else from now on, in the same socket and slot (docs/api.md)."""

import json
import threading

import numpy as np
import pytest

from engine.config import ServerConfig
from engine.dialogue.persona import load_personas
from engine.errors import ModelError
from engine.lookup.router import Router
from engine.lookup.routing import build_answers
from engine.runtime.embedded import EmbeddedBackend
from engine.wire.protocol import Kind
from engine.wire.socket import RESTART_COST
from tests.serving import ApiServer
from tests.sound import assert_says
from tests.wire.peer import connected, talking
from tests.wire.test_socket import RESTART, frames


async def restarted(peer, **role):
    """The `ready` of the next beginning."""
    await peer.tell(type="restart", **role)
    ready = await peer.event("ready")
    await peer.until(Kind.HANDSHAKE)
    return ready


async def test_another_persona_voice_and_seed_begin_in_the_same_slot(server, openings):
    async with talking(server.url, events=1, text_prompt="You are Ann.", seed=7) as peer:
        first = peer.events[0]
        ready = await restarted(peer, text_prompt="You are Bob.", voice_prompt="NATM1.pt", seed=9)
        await peer.say("Seven umbrellas")
        mark = len(peer.heard)
        await peer.event("say", state="done")
    assert ready["voice"] == "NATM1"
    assert ready["session"] == first["session"]
    assert "resumed" not in ready
    (slot, ann), (again, bob) = openings
    assert slot == again
    assert (ann.seed, bob.seed) == (7, 9)
    assert (ann.voice, bob.voice) == ("NATF2", "NATM1")
    assert ann.text_ids != bob.text_ids
    pcm = b"".join(data for kind, data in peer.heard[mark:] if kind is Kind.AUDIO)
    pcm = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    assert_says(pcm, ["Seven", "umbrellas"], voice="NATM1")


async def test_what_is_not_named_stays_as_it_was(server, openings):
    query = {"text_prompt": "You are Ann.", "voice_prompt": "VARM3", "seed": 7}
    async with talking(server.url, events=1, **query) as peer:
        await restarted(peer, seed=9)
        await restarted(peer)
        await restarted(peer, text_prompt="")
        await peer.send(Kind.CONTROL, RESTART)
        await peer.event("ready")
    ann, other, same, nobody, again = (opening for _, opening in openings)
    assert [o.seed for o in (ann, other, same, nobody, again)] == [7, 9, 9, 9, 9]
    assert {o.voice for _, o in openings} == {"VARM3"}
    assert ann.text_ids == other.text_ids == same.text_ids
    assert nobody.text_ids == again.text_ids == ()


async def test_what_comes_after_it_is_for_the_new_role_and_what_came_before_is_dropped(server):
    async with talking(server.url, events=1) as peer:
        await peer.say("One two three four five six seven eight.")
        await peer.until(Kind.TEXT)
        await peer.tell(type="restart", voice_prompt="NATM1")
        await peer.say("Umbrella.")
        cancelled = await peer.event("say", state="cancelled")
        await peer.event("ready")
        done = await peer.event("say", state="done")
    assert cancelled["text"].startswith("One two")
    assert done["text"] == "Umbrella."


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ({"voice_prompt": "Bob"}, "voice_prompt is 'Bob'; use one of NATF2"),
        ({"voice_prompt": 3}, "voice_prompt is missing or not a string"),
        ({"voice_prompt": "../../etc/passwd"}, "voice_prompt is"),
        ({"text_prompt": "x" * 4001}, "text_prompt has 4001 characters"),
        ({"text_prompt": None}, "text_prompt is missing or not a string"),
        ({"text_prompt": "half \ud83d"}, "text_prompt is not valid Unicode"),
        ({"seed": "soon"}, "seed is 'soon'"),
        ({"seed": -2}, "seed is -2"),
        ({"seed": 1.5}, "seed is '1.5'"),
        ({"seed": True}, "seed is 'True'"),
        ({"text_prompt": "You are Bob.", "seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
async def test_a_role_that_cannot_be_is_refused_and_the_talk_goes_on(
    server, openings, role, reason
):
    async with talking(server.url, events=1) as peer:
        await frames(peer, 3)
        await peer.send(Kind.METADATA, json.dumps({"type": "restart", **role}).encode())
        refusal = (await peer.until(Kind.ERROR)).decode()
        await frames(peer, 3)
        assert await peer.is_alive()
    assert refusal.startswith("restart: ")
    assert reason in refusal
    assert len(openings) == 1
    assert peer.of(Kind.HANDSHAKE) == [b""]


@pytest.mark.parametrize(
    "fault",
    [
        ModelError("/srv/zanzibarine/NATM1.pt is no voice; put another one there"),
        FileNotFoundError(2, "No such file: it is no voice", "/srv/zanzibarine/NATM1.pt"),
    ],
)
async def test_a_voice_whose_file_is_broken_is_refused_and_the_talk_goes_on(fault):
    class Broken(EmbeddedBackend):
        def prepare(self, opening):
            if opening.voice == "NATM1":
                raise fault

    with ApiServer(load=lambda progress: Broken(1)) as server:
        async with talking(server.url, events=1) as peer:
            await peer.tell(type="restart", voice_prompt="NATM1")
            refusal = (await peer.until(Kind.ERROR)).decode()
            assert refusal.startswith("restart: bad parameter: voice NATM1 cannot be used: ")
            assert "is no voice" in refusal
            assert "zanzibarine" not in refusal
            await frames(peer, 3)
            assert (await restarted(peer, voice_prompt="NATM0"))["voice"] == "NATM0"


async def test_a_role_that_looks_things_up_does_so_from_then_on_and_another_does_not():
    personas = load_personas()
    assistant = next(persona for persona in personas if persona.looks_up)
    with ApiServer(slots=1, answers=build_answers(ServerConfig(), {})) as server:
        async with talking(server.url, events=1, text_prompt="You are Ann.") as peer:
            (session,) = server.engine.sessions
            assert not session.routing._watches
            await restarted(peer, text_prompt=assistant.text)
            assert session.routing._watches
            await restarted(peer, text_prompt="You are Bob.")
            assert not session.routing._watches
            await peer.tell(type="set", routing=1)
            await restarted(peer, seed=4)
            assert session.routing._watches


async def test_who_switches_routing_on_in_a_call_has_its_decisions_prepared(monkeypatch):
    prepared = []
    monkeypatch.setattr(Router, "prepare", lambda router: prepared.append(router))
    answers = build_answers(ServerConfig(routing=False), {})
    with ApiServer(slots=1, answers=answers) as server:
        async with talking(server.url, events=1) as peer:
            assert not prepared
            await peer.tell(type="set", routing=1)
            assert await peer.is_alive()
    assert prepared == [answers.router]


async def test_before_there_is_anything_to_restart_it_is_refused(serve):
    loaded = threading.Event()
    waiting = serve(load=lambda progress: loaded.wait(30) and EmbeddedBackend(1), wait=False)
    async with connected(waiting.url) as peer:
        await peer.tell(type="restart", seed=1)
        refusal = (await peer.until(Kind.ERROR)).decode()
        loaded.set()
        await peer.until(Kind.HANDSHAKE)
    assert refusal.startswith("restart: there is nothing to restart yet")


async def test_roles_in_a_flood_count_as_restarts(server, monkeypatch):
    costs = []
    taken = "engine.wire.socket.ClientPace.take"
    monkeypatch.setattr(taken, lambda self, cost, samples=0: costs.append(cost) or 0.0)
    async with talking(server.url, events=1) as peer:
        await restarted(peer, seed=3)
        assert await peer.is_alive()
    assert max(costs) >= RESTART_COST
