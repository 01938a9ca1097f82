"""`/v1/realtime`: OpenAI's Realtime protocol over a real socket (docs/realtime.md)."""

import asyncio
import base64
import json
import re
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from engine.config import ServerConfig
from engine.dialogue.persona import prompt_ids
from engine.dialogue.session import Session
from engine.errors import ModelError
from engine.lookup.routing import build_answers
from engine.runtime.embedded import EmbeddedBackend
from engine.wire import realtime
from engine.wire.openai import OPENAI_VOICES, Fields, RequestError
from engine.wire.realtime import HANDLERS, MAX_EVENT_BYTES, PRE_ROLL_FRAMES
from engine.wire.telephony import TelephoneCodec
from tests.serving import ApiServer
from tests.sound import assert_says, loud_seconds, speech
from tests.wire.peer import PATIENCE_SECONDS, eventually
from tests.wire.raw import TEXT, frame, raw
from tests.wire.test_limits import turns_with_pieces

DOC = (Path(__file__).parents[2] / "docs" / "realtime.md").read_text(encoding="utf-8")
SILENCE = np.zeros(24_000, np.float32)
BETA = {"OpenAI-Beta": "realtime=v1"}


class Client:
    """What one socket got, in order: events, and deliberately no more."""

    def __init__(self, ws):
        self.ws, self.heard = ws, []

    async def send(self, name, **fields):
        await self.ws.send_str(json.dumps({"type": name, **fields}))

    async def append(self, pcm, law=""):
        data = np.asarray(pcm * 32767, "<i2").tobytes()
        data = TelephoneCodec(law).encode(pcm) if law else data
        await self.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())

    async def update(self, **session):
        await self.send("session.update", session={"type": "realtime", **session})
        return (await self.until("session.updated"))["session"]

    async def say(self, text, **fields):
        await self.send("response.create", response={"instructions": text, **fields})

    async def next(self):
        """The next event, or None once the socket is closed."""
        message = await self.ws.receive(PATIENCE_SECONDS)
        if message.type is not aiohttp.WSMsgType.TEXT:
            return None
        self.heard.append(json.loads(message.data))
        return self.heard[-1]

    async def until(self, *names):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (event := await self.next()) is not None:
                if event["type"] in names:
                    return event
        raise AssertionError(f"closed with {self.ws.close_code} before {names}: {self.errors}")

    async def refused(self):
        return (await self.until("error"))["error"]

    async def end(self):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.next() is not None:
                pass
        return self.errors[-1], self.ws.close_code

    def of(self, name):
        return [event for event in self.heard if event["type"] == name]

    @property
    def errors(self):
        return [event["error"] for event in self.of("error")]

    def sound(self, name="response.output_audio.delta", decode=None):
        data = b"".join(base64.b64decode(event["delta"]) for event in self.of(name))
        if decode:
            return np.concatenate(list(decode(data)))
        return np.frombuffer(data, "<i2").astype(np.float32) / 32768


@asynccontextmanager
async def connected(server, path="/v1/realtime?model=gpt-realtime", **options):
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(server.url + path, max_msg_size=0, **options) as ws,
    ):
        yield Client(ws)


async def test_a_text_is_said_as_one_response_with_sound_and_words(server):
    async with connected(server) as client:
        await client.until("session.created")
        await client.say("Seven umbrellas", metadata={"topic": "rain"})
        done = (await client.until("response.done"))["response"]
    names = [event["type"] for event in client.heard]
    once = [name for name in dict.fromkeys(names) if not name.endswith(".delta")]
    assert once == [
        "session.created",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    words = [event["delta"] for event in client.of("response.output_audio_transcript.delta")]
    assert "".join(words).strip() == "Seven umbrellas"
    assert done["status"] == "completed"
    assert done["metadata"] == {"topic": "rain"}
    assert done["output"][0]["content"] == [
        {"type": "output_audio", "transcript": "Seven umbrellas"}
    ]
    pcm = client.sound()
    assert_says(pcm, ["Seven", "umbrellas"])
    before = np.flatnonzero(np.abs(pcm) > 0.01)[0] / 1920  # frames
    assert before <= PRE_ROLL_FRAMES + 5  # its text comes first, and "S" is soft
    assert len(pcm) / 24000 < loud_seconds(pcm) + 2  # it is sent while the agent speaks, not on


async def test_ids_belong_together(server):
    async with connected(server) as client:
        await client.say("Hello")
        await client.until("response.done")
    created = client.of("response.created")[0]["response"]["id"]
    item = client.of("response.output_item.added")[0]["item"]["id"]
    for event in client.heard[1:]:
        assert event.get("response_id", created) == created
        assert event.get("item_id", item) == item
    assert len({event["event_id"] for event in client.heard}) == len(client.heard)


async def test_a_beta_client_hears_the_old_names_and_sees_a_flat_session(server):
    async with connected(server, headers=BETA) as client:
        session = (await client.until("session.created"))["session"]
        assert session["input_audio_format"] == session["output_audio_format"] == "pcm16"
        assert session["modalities"] == ["text", "audio"]
        updated = await client.update(
            voice="alloy", output_audio_format="g711_ulaw", temperature=0.9, instructions="Be Ann."
        )
        assert updated["voice"] == "alloy"
        assert updated["temperature"] == 0.9
        await client.say("Seven umbrellas")
        done = await client.until("response.done")
    names = {event["type"] for event in client.heard}
    assert {
        "response.audio.delta",
        "response.audio.done",
        "response.audio_transcript.delta",
    } < names
    assert {"response.audio_transcript.done", "conversation.item.created"} < names
    assert not [name for name in names if "output_audio" in name]
    assert "conversation.item.done" not in names
    assert done["response"]["output"][0]["content"][0]["type"] == "audio"
    pcm = client.sound("response.audio.delta", TelephoneCodec("u").decode)
    assert loud_seconds(pcm) > 0.5


@pytest.mark.parametrize("law", ["u", "a"])
async def test_telephones_talk_and_listen_at_8_khz(server, law):
    name = {"type": f"audio/pcm{law}"}
    async with connected(server) as client:
        session = await client.update(
            audio={"input": {"format": name}, "output": {"format": name, "voice": "NATF2"}}
        )
        assert session["audio"]["input"]["format"] == name
        await client.append(np.concatenate([speech("Good morning"), SILENCE]), law)
        await client.until("input_audio_buffer.speech_started")
        await client.until("input_audio_buffer.speech_stopped")
        await client.until("response.done")  # the test voice plays it back
        mark = len(client.heard)
        await client.say("Seven umbrellas")
        while (await client.until("response.done"))["response"]["output"][0]["content"][0][
            "transcript"
        ] != "Seven umbrellas":
            mark = len(client.heard)
    del client.heard[:mark]
    data = b"".join(
        base64.b64decode(event["delta"]) for event in client.of("response.output_audio.delta")
    )
    assert len(data) % 640 == 0  # 80 ms at 8 kHz, a byte a sample
    pcm = np.concatenate(list(TelephoneCodec(law).decode(data)))
    assert_says(pcm, ["Seven", "umbrellas"], at_least=0.75)  # the line ends at 3.4 kHz


async def test_the_persona_and_the_voice_are_those_of_the_first_audio(server, openings):
    async with connected(server) as client:
        await client.update(tracing="auto")
        await client.update(instructions="You are Ann.", audio={"output": {"voice": "ash"}})
        await client.update(instructions="You are Bob.")
        assert server.engine.free == server.engine.slots  # nobody talks yet
        await client.say("Hello")
        await client.until("response.done")
        updated = await client.update(instructions="You are Bob.")
        assert updated["instructions"] == "You are Bob."
    ((_, opening),) = openings
    assert opening.voice == OPENAI_VOICES["ash"]
    tokenizer = server.engine.scheduler.backend.tokenizer
    assert opening.text_ids == prompt_ids("You are Bob.", tokenizer)


async def test_without_instructions_it_is_the_servers_first_persona(server, openings):
    async with connected(server) as client:
        shown = (await client.until("session.created"))["session"]["instructions"]
        await client.say("Hello")
        await client.until("response.done")
    assert shown == server.engine.personas[0].text
    tokenizer = server.engine.scheduler.backend.tokenizer
    assert openings[0][1].text_ids == prompt_ids(shown, tokenizer)


async def test_another_persona_later_begins_anew_in_the_same_slot(server, openings):
    async with connected(server) as client:
        await client.update(instructions="You are Ann.")
        await client.say("Hello")
        await client.until("response.done")
        await client.update(instructions="You are Bob.", audio={"output": {"voice": "NATM1"}})
        await client.say("Seven umbrellas")
        await client.until("response.done")
    (slot, ann), (again, bob) = openings
    assert slot == again
    assert ann.text_ids != bob.text_ids
    assert (ann.voice, bob.voice) == ("NATF2", "NATM1")


async def test_audio_that_comes_before_the_slot_is_heard(server):
    async with connected(server) as client:
        await client.append(np.concatenate([speech("Hello there my friend"), SILENCE]))
        started = await client.until("input_audio_buffer.speech_started")
        stopped = await client.until("input_audio_buffer.speech_stopped")
        committed = await client.until("input_audio_buffer.committed")
        added = await client.until("conversation.item.added")
        assert started["item_id"] == stopped["item_id"] == committed["item_id"]
        assert added["item"]["id"] == started["item_id"]
        assert added["item"]["role"] == "user"
        assert 0 <= started["audio_start_ms"] < stopped["audio_end_ms"] <= 4000
        await client.until("response.done")  # it is played back, though nothing more is sent
    assert loud_seconds(client.sound()) > 0.5


async def test_a_client_with_a_button_is_answered_though_it_sends_nothing_more(server):
    async with connected(server) as client:
        await client.update(audio={"input": {"turn_detection": None}})
        await client.append(speech("Hello there my friend"))
        await client.send("input_audio_buffer.commit")
        committed = await client.until("input_audio_buffer.committed")
        await client.send("response.create")
        while loud_seconds(client.sound()) < 1:  # it greets, and plays it back
            await client.until("response.done")
    assert not client.of("input_audio_buffer.speech_started")
    assert client.of("conversation.item.added")[0]["item"]["id"] == committed["item_id"]


async def test_a_commit_of_nothing_is_refused(server):
    async with connected(server) as client:
        await client.send("input_audio_buffer.commit", event_id="mine")
        error = await client.refused()
    assert error["code"] == "input_audio_buffer_commit_empty"
    assert error["event_id"] == "mine"


async def test_a_cancelled_response_is_silent_and_over(server):
    async with connected(server) as client:
        await client.say("Seven yellow umbrellas are waiting behind the door of the theatre")
        await client.until("response.output_audio_transcript.delta")
        await client.send("response.cancel")
        done = (await client.until("response.done"))["response"]
        mark = len(client.heard)
        await client.append(np.concatenate([SILENCE, SILENCE]))
        await client.send("response.cancel")
        error = await client.refused()
    assert done["status"] == "cancelled"
    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert "theatre" not in done["output"][0]["content"][0]["transcript"]
    assert done["output"][0]["status"] == "incomplete"
    assert error["code"] == "response_cancel_not_active"
    assert not [e for e in client.heard[mark:] if e["type"].startswith("response.")]


async def test_what_is_played_can_be_cleared(server):
    async with connected(server) as client:
        await client.say("Seven yellow umbrellas are waiting behind the door of the theatre")
        await client.until("response.output_audio.delta")
        await client.send("output_audio_buffer.clear")
        await client.until("response.done")
        await client.until("output_audio_buffer.cleared")
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")


async def test_a_user_who_speaks_interrupts_what_is_being_said(server):
    async with connected(server) as client:
        await client.say("Seven yellow umbrellas are waiting behind the door of the old theatre")
        await client.until("response.output_audio_transcript.delta")
        await client.append(np.concatenate([speech("Please stop that at once now"), SILENCE]))
        await client.until("input_audio_buffer.speech_started")
        done = (await client.until("response.done"))["response"]
    assert done["status"] == "cancelled"
    assert done["status_details"]["reason"] == "turn_detected"
    assert "theatre" not in done["output"][0]["content"][0]["transcript"]


async def test_texts_are_said_one_after_the_other_each_as_its_own_response(server):
    async with connected(server) as client:
        await client.say("Seven", metadata={"n": "1"})
        await client.say("Eight", metadata={"n": "2"})
        first = (await client.until("response.done"))["response"]
        second = (await client.until("response.done"))["response"]
    assert [r["metadata"]["n"] for r in (first, second)] == ["1", "2"]
    assert [r["output"][0]["content"][0]["transcript"] for r in (first, second)] == [
        "Seven",
        "Eight",
    ]


async def test_instructions_of_the_session_before_the_text_are_not_said(server):
    async with connected(server) as client:
        await client.update(instructions="You are Ann.")
        await client.say("You are Ann.\nSeven umbrellas")  # as LiveKit sends it
        done = (await client.until("response.done"))["response"]
    assert done["output"][0]["content"][0]["transcript"] == "Seven umbrellas"


async def test_a_text_of_the_assistant_in_input_is_said(server):
    content = [{"type": "output_text", "text": "Seven umbrellas"}]
    item = {"type": "message", "role": "assistant", "content": content}
    async with connected(server) as client:
        await client.send("response.create", response={"input": [item]})
        await client.until("response.done")
    assert_says(client.sound(), ["Seven", "umbrellas"])


def text_of_a_user(text, **fields):
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "user", "content": content, **fields}


async def test_items_are_added_told_and_deleted_by_their_ids(server):
    async with connected(server) as client:
        item = text_of_a_user("What does it cost?", id="q1")
        await client.send("conversation.item.create", item=item)
        added = await client.until("conversation.item.added")
        assert added["item"]["content"] == item["content"]
        assert added["previous_item_id"] is None
        await client.send("conversation.item.create", item=item)
        assert (await client.refused())["code"] == "item_create_duplicate_item_id"
        await client.send("conversation.item.create", item={**item, "id": "q2"})
        assert (await client.until("conversation.item.added"))["previous_item_id"] == "q1"
        await client.send("conversation.item.retrieve", item_id="q1")
        assert (await client.until("conversation.item.retrieved"))["item"]["id"] == "q1"
        await client.send("conversation.item.delete", item_id="q1")
        assert (await client.until("conversation.item.deleted"))["item_id"] == "q1"
        await client.send("conversation.item.retrieve", item_id="q1")
        assert (await client.refused())["code"] == "item_retrieve_invalid_item_id"


async def test_a_users_text_is_looked_up_once_when_a_response_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(Session, "ask", lambda _session, text: asked.append(text))
    with ApiServer(slots=1, answers=build_answers(ServerConfig(), {})) as server:
        async with connected(server) as client:
            item = text_of_a_user("What does it cost?")
            await client.send("conversation.item.create", item=item)
            await client.until("conversation.item.added")
            assert not asked
            await client.send("response.create")
            await client.until("response.created")
            assert asked == ["What does it cost?"]
            await client.send("response.cancel")  # it would greet
            await client.until("response.done")
            await client.send("response.create", response={"input": [text_of_a_user("Where?")]})
            await client.until("response.created")
    assert asked == ["What does it cost?", "Where?"]


async def test_a_users_text_that_nobody_can_look_up_ends_nothing(server):
    async with connected(server) as client:
        await client.send("conversation.item.create", item=text_of_a_user("Say hello."))
        await client.send("response.create")  # as Pipecat begins
        await client.until("response.output_audio.delta")
        while loud_seconds(client.sound()) < 0.1:  # it greets
            await client.until("response.output_audio.delta")
    assert not client.errors


async def test_a_second_response_without_a_text_is_refused_with_their_code(server):
    async with connected(server) as client:
        await client.send("response.create")
        await client.send("response.create", event_id="mine")
        error = await client.refused()
    assert error["code"] == "conversation_already_has_active_response"
    assert error["event_id"] == "mine"


async def test_commands_that_cannot_wait_for_the_slot_are_refused_in_a_clients_own_words(
    server, monkeypatch
):
    never = asyncio.Event()  # nobody sets it
    monkeypatch.setattr(type(server.engine), "connect", lambda *_: never.wait())
    async with connected(server) as client:
        for _ in range(66):
            await client.send("response.create")
            await client.send("response.cancel")
        error = await client.refused()
    assert error["message"] == "64 commands wait for the conversation to begin"


async def test_more_texts_than_may_wait_are_refused_and_no_response_is_left_open(server):
    async with connected(server) as client:
        for number in range(12):
            await client.say("Seven yellow umbrellas are waiting", metadata={"n": str(number)})
        assert [(await client.refused())["code"] for _ in range(2)] == ["invalid_value"] * 2
        await client.send("response.cancel")
        done = [(await client.until("response.done"))["response"] for _ in range(10)]
    assert sorted(int(response["metadata"]["n"]) for response in done) == list(range(10))
    assert {response["status"] for response in done} == {"cancelled"}
    created = [event["response"]["id"] for event in client.of("response.created")]
    assert created == [response["id"] for response in done]


async def test_the_texts_that_wait_are_cancelled_with_the_one_that_is_said(server):
    async with connected(server) as client:
        await client.say("Seven yellow umbrellas are waiting behind the door of the old theatre")
        await client.say("Eight", metadata={"n": "2"})
        await client.until("response.output_audio_transcript.delta")
        await client.send("response.cancel")
        first = (await client.until("response.done"))["response"]
        second = (await client.until("response.done"))["response"]
    assert (first["status"], second["status"]) == ("cancelled", "cancelled")
    assert second["metadata"] == {"n": "2"}
    assert second["output"] == []


async def test_what_the_agent_goes_on_to_say_after_a_text_is_another_response(server, monkeypatch):
    """Else one that was cut while the agent had something to say itself would never be done."""
    monkeypatch.setattr(realtime, "AUDIBLE", -1.0)  # it is never quiet
    async with connected(server) as client:
        await client.say("Seven umbrellas", metadata={"n": "1"})
        await client.until("response.output_audio.done")
        while (await client.until("response.done"))["response"]["metadata"] != {"n": "1"}:
            pass
        after = await client.until("response.created")
        await client.until("response.output_audio.delta")
    assert after["response"]["metadata"] is None
    said = client.of("response.done")[-1]["response"]
    assert said["status"] == "completed"
    assert said["output"][0]["content"][0]["transcript"] == "Seven umbrellas"


async def test_a_truncated_item_ends_where_the_client_stopped_listening(server):
    async with connected(server) as client:
        await client.say("Seven yellow umbrellas")
        done = (await client.until("response.done"))["response"]
        item_id = done["output"][0]["id"]
        end = {"content_index": 0, "audio_end_ms": 400}
        await client.send("conversation.item.truncate", item_id=item_id, **end)
        assert (await client.until("conversation.item.truncated"))["audio_end_ms"] == 400
        await client.send("conversation.item.retrieve", item_id=item_id)
        item = (await client.until("conversation.item.retrieved"))["item"]
    transcript = item["content"][0]["transcript"]
    assert transcript.startswith("Seven")
    assert "umbrellas" not in transcript


async def test_no_end_of_an_item_that_is_none_is_taken(server):
    async with connected(server) as client:
        await client.say("Seven yellow umbrellas")
        item_id = (await client.until("response.output_item.added"))["item"]["id"]
        for end in (-1, True, "7", None, {}, 1e9, 1e308, 10**400):
            await client.send("conversation.item.truncate", item_id=item_id, audio_end_ms=end)
            assert (await client.refused())["param"] == "audio_end_ms"
        for index in (1, -1, "0", {}):
            fields = {"audio_end_ms": 0, "content_index": index}
            await client.send("conversation.item.truncate", item_id=item_id, **fields)
            assert (await client.refused())["param"] == "content_index"
        await client.send("conversation.item.truncate", item_id=item_id, audio_end_ms=0)
        await client.until("conversation.item.truncated")  # while it is said: it goes on
        done = (await client.until("response.done"))["response"]
    assert done["output"][0]["content"][0]["transcript"] == "Seven yellow umbrellas"


async def test_what_a_client_has_shown_again_is_no_store_of_its_own(server, monkeypatch):
    """Two hundred items of 25 kB, and two hundred sockets of one address, are a gigabyte."""
    monkeypatch.setattr(realtime, "MAX_ITEMS_BYTES", 30_000)
    async with connected(server) as client:
        for name in ("first", "second"):
            item = text_of_a_user("x" * 20_000, id=name)
            await client.send("conversation.item.create", item=item)
            await client.until("conversation.item.done")
        await client.send("conversation.item.retrieve", item_id="first")
        assert (await client.refused())["code"] == "item_retrieve_invalid_item_id"
        await client.send("conversation.item.retrieve", item_id="second")
        await client.until("conversation.item.retrieved")


async def test_an_event_counts_by_its_answer_too(server, monkeypatch):
    """One that asks for 20 kB has a few bytes itself."""
    costs = []
    taken = "engine.wire.socket.ClientPace.take"
    monkeypatch.setattr(taken, lambda self, cost, samples=0: costs.append(cost) or 0.0)
    async with connected(server) as client:
        item = text_of_a_user("x" * 20_000, id="long")
        await client.send("conversation.item.create", item=item)
        await client.send("conversation.item.retrieve", item_id="long")
        await client.until("conversation.item.retrieved")
        await client.send("session.update", session={"tool_choice": "x" * 9000})
        await client.until("session.updated")
        await client.send("session.update", session={})
        await client.until("session.updated")
        await client.send("session.update", session={"tool_choice": "x" * 10_000})
        assert (await client.refused())["param"] == "session.tool_choice"
    assert costs[1] > realtime.COMMAND_COST + 20_000 / 1024
    assert costs[3] > realtime.COMMAND_COST + 9000 / 1024


async def test_audio_counts_by_its_bytes_in_whatever_event_it_is_and_refused_too(
    server, monkeypatch
):
    """As text it would count for twenty times as much: nothing would be read for half a minute."""
    costs = []
    taken = "engine.wire.socket.ClientPace.take"
    monkeypatch.setattr(taken, lambda self, cost, samples=0: costs.append(cost) or 0.0)
    audio = "AAAA" * 100_000
    item = {"role": "user", "type": "message", "content": [{"type": "input_audio", "audio": audio}]}
    async with connected(server) as client:
        await client.send("input_audio_buffer.append", audio=audio)
        await client.send("input_audio_buffer.append", audio="YWJj" + audio)  # half a sample
        await client.refused()
        await client.send("conversation.item.create", item=item)
        await client.until("conversation.item.done")
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
    assert max(costs) < 3 * len(audio) / 1024 + 1400


@pytest.mark.parametrize("value", ["1e999", "NaN", "-Infinity", "9" * 5000])
async def test_numbers_that_json_cannot_say_again_are_no_json(server, value):
    async with connected(server) as client:
        event = '{"type":"response.create","response":{"metadata":[7]}}'
        await client.ws.send_str(event.replace("7", value))
        error = await client.refused()
    assert error["code"] == "invalid_json"


async def test_what_is_nested_too_deep_to_be_shown_again_ends_nothing(server):
    """JSON of 979 levels can be read here, and not be written a few calls deeper."""
    events = [
        '{"type":"session.update","session":{"tracing":%s}}',
        '{"type":"session.update","session":{"audio":{"input":{"turn_detection":{"x":%s}}}}}',
        '{"type":"session.update","session":{"input_audio_transcription":{"x":%s}}}',
        '{"type":"response.create","response":{"metadata":%s}}',
        '{"type":"conversation.item.create","item":{"type":"message","role":"user","content":%s}}',
    ]
    async with connected(server) as client:
        for depth in (9, 900, *range(974, 984), 5000):
            for event in events:
                await client.ws.send_str(event % ("[" * depth + "]" * depth))
                await client.refused()
        await client.send("input_audio_buffer.clear", event_id=[[[[[[[[[[]]]]]]]]]])
        await client.until("input_audio_buffer.cleared")


async def test_the_users_words_come_where_they_are_wanted(server):
    async with connected(server) as client:
        transcription = {"model": "whisper-1"}
        await client.update(audio={"input": {"transcription": transcription}})
        await client.append(np.concatenate([speech("Hello there my friend"), SILENCE]))
        committed = await client.until("input_audio_buffer.committed")
        (session,) = server.engine.sessions
        session._take_words("Hello there, my friend.", 0.1, 1.5, True)  # as ears would
        done = await client.until("conversation.item.input_audio_transcription.completed")
    assert done["item_id"] == committed["item_id"]
    assert done["transcript"] == "Hello there, my friend."
    assert done["usage"] == {"type": "duration", "seconds": pytest.approx(1.4)}


DEEP = [[[[[[[[[["a"]]]]]]]]]]
NOT_THEIRS = ("voice_prompt", "text_prompt", "text_temperature", "0x0", "handshake", "format=")
NOT_THEIRS += ("say:", "ask:", "restart", "token", "bad parameter")


def deep(name, value, *path):
    """({"audio": {"output": {name: value}}}, "session.audio.output.name") and such."""
    fields = {name: value}
    for part in reversed(path):
        fields = {part: fields}
    return fields, ".".join(("session", *path, name))


@pytest.mark.parametrize(
    ("session", "param"),
    [
        deep("tools", [{"type": "function", "name": "f", "parameters": {}}]),
        deep("output_modalities", ["text"]),
        deep("modalities", 7),
        deep("prompt", {"id": "p"}),
        deep("voice", "Bob", "audio", "output"),
        deep("voice", "Bob"),
        ({"voice": {"id": 7}}, "session.voice.id"),
        deep("speed", 1.5, "audio", "output"),
        deep("speed", 1.5),
        deep("format", {"type": "audio/pcm", "rate": 16000}, "audio", "input"),
        deep("format", {"type": "audio/opus"}, "audio", "output"),
        deep("input_audio_format", "mp3"),
        deep("output_audio_format", 7),
        deep("instructions", "x" * 4001),
        deep("instructions", ["You are Ann."]),
        deep("temperature", 3),
        deep("temperature", "warm"),
        deep("create_response", False, "audio", "input", "turn_detection"),
        deep("create_response", False, "turn_detection"),
        deep("turn_detection", "server_vad", "audio", "input"),
        deep("transcription", "whisper-1", "audio", "input"),
        deep("input_audio_transcription", True),
        deep("input", "loud", "audio"),
        deep("audio", []),
        deep("tracing", DEEP),
        deep("type", "transcription"),
    ],
)
async def test_what_the_model_cannot_do_is_refused_by_its_name_and_changes_nothing(
    server, session, param
):
    async with connected(server) as client:
        before = (await client.until("session.created"))["session"]
        asked = {"type": "realtime", "instructions": "You are Ann.", **session}
        await client.send("session.update", session=asked, event_id="mine")
        error = await client.refused()
        after = await client.update()
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["event_id"]) == (param, "mine")
    assert error["message"].startswith(f"{param} ")
    assert not [word for word in NOT_THEIRS if word in error["message"]]
    assert after == before


def message_of(*content, **fields):
    return {"type": "message", "role": "user", "content": list(content), **fields}


WRONG_FIELDS = [
    ("input_audio_buffer.append", {}, "audio"),
    ("input_audio_buffer.append", {"audio": 7}, "audio"),
    ("input_audio_buffer.append", {"audio": "no base 64!"}, "audio"),
    ("input_audio_buffer.append", {"audio": "YWJj"}, "audio"),  # half a sample
    ("conversation.item.create", {"item": 7}, "item"),
    ("conversation.item.create", {"item": {"type": "function_call_output"}}, "item.type"),
    ("conversation.item.create", {"item": message_of(role="tool")}, "item.role"),
    ("conversation.item.create", {"item": message_of(id=7)}, "item.id"),
    ("conversation.item.create", {"item": message_of(id="x" * 129)}, "item.id"),
    ("conversation.item.create", {"item": message_of(content="Hi")}, "item.content"),
    ("conversation.item.create", {"item": message_of("Hi")}, "item.content[0]"),
    (
        "conversation.item.create",
        {"item": message_of({"type": "input_text", "text": "Hi"}, {"type": "input_text"})},
        "item.content[1].text",
    ),
    (
        "conversation.item.create",
        {"item": message_of({"type": "input_audio", "audio": "%"})},
        "item.content[0].audio",
    ),
    (
        "conversation.item.create",
        {"item": message_of({"type": "output_audio", "transcript": DEEP})},
        "item.content[0].transcript",
    ),
    ("conversation.item.truncate", {"audio_end_ms": 7}, "item_id"),
    ("conversation.item.delete", {"item_id": "none"}, "item_id"),
    ("conversation.item.retrieve", {"item_id": {}}, "item_id"),
    ("response.create", {"response": "Hi"}, "response"),
    ("response.create", {"response": {"instructions": ["Hi"]}}, "response.instructions"),
    ("response.create", {"response": {"instructions": "Hi " * 700}}, "response.instructions"),
    ("response.create", {"response": {"input": "Hi"}}, "response.input"),
    ("response.create", {"response": {"input": [{"type": "x"}]}}, "response.input[0].type"),
    (
        "response.create",
        {"response": {"input": [message_of({"type": "input_image"})]}},
        "response.input[0].content[0].type",
    ),
    (
        "response.create",
        {"response": {"input": [message_of({"type": "input_audio", "audio": "AAAA"})]}},
        "response.input[0].content",
    ),
    ("response.create", {"response": {"metadata": DEEP}}, "response.metadata"),
    ("response.create", {"response": {"tools": [{}]}}, "response.tools"),
    ("no.such.event", {}, "type"),
]


async def test_every_error_names_the_field_of_the_client_that_is_wrong(server):
    told = []
    async with connected(server) as client:
        for name, fields, _param in WRONG_FIELDS:
            await client.send(name, event_id="mine", **fields)
            told.append(await client.refused())
    assert [error["param"] for error in told] == [param for _, _, param in WRONG_FIELDS]
    for error in told:
        assert error["event_id"] == "mine"
        assert error["message"].startswith(f"{error['param']} "), error
        assert not [word for word in NOT_THEIRS if word in error["message"]], error


class BrokenVoices(EmbeddedBackend):
    """One in which two men's files are none."""

    def prepare(self, opening):
        if opening.voice in ("NATM1", "NATM3"):
            raise ModelError(f"/srv/{opening.voice}.pt is no voice; put another one there")


async def test_a_voice_whose_file_is_broken_is_told_by_the_name_that_the_client_gave_it():
    with ApiServer(load=lambda progress: BrokenVoices(1)) as server:
        async with connected(server) as client:
            await client.update(voice="ash")
            await client.append(SILENCE)
            ended, code = await client.end()
        async with connected(server) as client:
            await client.say("Hello")
            await client.until("response.done")
            wish = {"audio": {"output": {"voice": "echo"}}}
            await client.send("session.update", session=wish, event_id="mine")
            refused = await client.refused()
            updated = await client.update()
    assert (ended["code"], ended["param"], code) == ("bad_parameter", "session.voice", 1008)
    assert "voice ash cannot be used" in ended["message"]
    assert (refused["param"], refused["event_id"]) == ("session.audio.output.voice", "mine")
    assert "voice echo cannot be used" in refused["message"]
    assert updated["audio"]["output"]["voice"] == "NATF2"


async def test_a_text_that_holds_no_word_is_refused_by_name_and_its_response_has_failed(server):
    async with connected(server) as client:
        await client.send("response.create", event_id="mine", response={"instructions": "*** —"})
        error = await client.refused()
        done = (await client.until("response.done"))["response"]
    assert (error["param"], error["event_id"]) == ("response.instructions", "mine")
    assert error["message"] == "nothing in this text can be spoken; send words"
    assert done["status"] == done["status_details"]["type"] == "failed"
    assert done["output"] == []


async def test_the_same_voice_by_another_name_begins_nothing_anew(server, openings):
    async with connected(server) as client:
        await client.say("Hello")
        await client.until("response.done")
        for name in ("marin", "natf2.pt", "NATF2"):  # the server's, which it had
            assert (await client.update(voice=name))["audio"]["output"]["voice"] == name
    assert len(openings) == 1


async def test_images_and_tool_outputs_are_refused_by_name(server):
    image = [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]
    items = [
        {"type": "message", "role": "user", "content": image},
        {"type": "function_call_output", "call_id": "c", "output": "4"},
    ]
    async with connected(server) as client:
        for item, name in zip(items, ("input_image", "function_call_output"), strict=True):
            await client.send("conversation.item.create", item=item)
            error = await client.refused()
            assert name in error["message"]
            assert error["code"] == "unsupported_value"


@pytest.mark.parametrize("value", [None, 7, "text", [], [[]], {"a": {}}, True, "\ud800"])
async def test_no_field_of_a_wrong_kind_ends_a_conversation(server, value):
    events = [
        ("session.update", "session"),
        ("input_audio_buffer.append", "audio"),
        ("conversation.item.create", "item"),
        ("conversation.item.truncate", "item_id"),
        ("conversation.item.retrieve", "item_id"),
        ("response.create", "response"),
    ]
    inner = ["instructions", "audio", "tools", "input", "metadata", "content", "modalities"]
    async with connected(server) as client:
        for name, field in events:
            await client.send(name, **{field: value})
            for part in inner:
                body = {"type": "message", "role": "user", part: value}
                if name != "session.update":
                    await client.send(name, **{field: body})
                else:
                    await client.send(name, **{field: {part: value}})
        wrong = ("", "[]", "7", "{", '{"type": 7}', '{"type": "no.such"}', "[" * 5000)
        for text in wrong:
            await client.ws.send_str(text)
        await client.ws.send_bytes(b"\x07hello")
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
    assert len(client.errors) > len(wrong)  # the bytes, too
    for error in client.errors:
        assert error["type"] == "invalid_request_error"
        assert error["message"]


async def test_a_large_event_of_a_telephone_is_decoded_in_many_turns(server, monkeypatch):
    """At once 2 MiB of it would take 200 ms of the loop."""
    async with connected(server) as client:
        await client.update(audio={"input": {"format": {"type": "audio/pcmu"}}})
        with turns_with_pieces(server, monkeypatch, TelephoneCodec, "decode") as taken:
            await client.append(np.zeros(20 * 24_000, np.float32), "u")
            await client.send("input_audio_buffer.commit")
            await client.until("input_audio_buffer.committed")
    assert len(taken) == 20


def test_a_string_is_not_looked_at_character_by_character():
    """2 MiB of audio would take 200 ms of the loop, and takes 6."""

    class Audio(str):
        def __iter__(self):
            raise AssertionError("somebody looks at each character")

    assert Fields({"audio": Audio("AAAA")}).string("audio") == "AAAA"
    with pytest.raises(RequestError, match="whole characters"):
        Fields({"audio": Audio("AA\ud83d")}).string("audio")


async def test_half_a_sample_and_no_base64_are_refused(server):
    async with connected(server) as client:
        await client.send("input_audio_buffer.append", audio=base64.b64encode(b"abc").decode())
        assert "even" in (await client.refused())["message"]
        await client.send("input_audio_buffer.append", audio="no base 64!")
        assert "base64" in (await client.refused())["message"]


async def test_too_large_an_event_and_too_much_audio_end_it(server):
    async with connected(server) as client:
        await client.send("input_audio_buffer.append", audio="A" * (MAX_EVENT_BYTES + 1))
        error, code = await client.end()
    assert (error["code"], code) == ("too_fast", 1008)
    async with connected(server) as client:
        for _ in range(32):
            await client.append(SILENCE)
        error, code = await client.end()
    assert (error["code"], code) == ("too_fast", 1008)


async def test_a_large_event_of_many_values_is_not_even_parsed(server):
    """Else one message keeps the loop from everybody for 200 ms."""
    values = [[]] * 200_000
    async with connected(server) as client:
        await client.send("input_audio_buffer.append", audio="", x=values)
        assert "too many values" in (await client.refused())["message"]
    item = text_of_a_user("What does it cost, then?", id="q1")
    item["content"].append({"type": "input_audio", "audio": "AAAA" * 100_000})
    async with connected(server) as client:  # a large one of audio is taken as ever
        await client.send("conversation.item.create", item=item)
        await client.until("conversation.item.added")
    assert not client.errors


async def test_what_is_said_to_a_model_that_loads_for_long_ends_nothing(monkeypatch):
    monkeypatch.setattr(realtime, "LONG_WAKE_SECONDS", 0.1)
    monkeypatch.setattr(realtime, "MAX_BURST_SECONDS", 1.5)
    warm = threading.Event()

    def load(_progress):
        assert warm.wait(PATIENCE_SECONDS)
        return EmbeddedBackend(1)

    with ApiServer(load=load, wait=False) as server:
        async with connected(server) as client:
            for _ in range(25):
                await client.append(SILENCE[:2400])
            await asyncio.sleep(1.5)  # of 2.5 s: no more than it waited, and 1 s of backlog
            warm.set()
            await client.until("session.created")
            await client.say("Seven umbrellas")
            await client.until("response.done")
    assert not client.errors
    (line,) = re.findall(
        rb'^personaplex_dropped_user_frames_total\{reason="early"\} (.*)$',
        server.engine.metrics.text(),
        re.MULTILINE,
    )
    assert float(line) > 10  # frames: about 1.5 s


async def test_a_full_server_is_busy(serve):
    server = serve(slots=1)
    async with connected(server) as one, connected(server) as other:
        await one.say("Hello")
        await one.until("response.done")
        await other.append(SILENCE)
        error, code = await other.end()
    assert (error["code"], error["type"], code) == ("busy", "server_error", 1013)
    await eventually(lambda: server.engine.free == 1)


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "Bearer secret"}},
        {"protocols": ["realtime", "openai-insecure-api-key.secret", "openai-beta.realtime-v1"]},
        {"protocols": ["realtime", "openai-insecure-api-key.secret", "openai-agents-sdk.0.1"]},
        {"path": "/v1/realtime?token=secret"},
    ],
)
async def test_the_token_comes_as_a_bearer_or_as_a_sub_protocol(serve, options):
    server = serve(token="secret")
    async with connected(server, **options) as client:
        session = (await client.until("session.created"))["session"]
        assert client.ws.protocol == ("realtime" if "protocols" in options else None)
    beta = "openai-beta.realtime-v1" in options.get("protocols", [])
    assert ("modalities" in session) == beta


@pytest.mark.parametrize(
    "options",
    [{}, {"headers": {"Authorization": "Bearer wrong"}}, {"protocols": ["realtime"]}],
)
async def test_a_wrong_token_is_an_error_in_their_form(serve, options):
    server = serve(token="secret")
    async with connected(server, **options) as client:
        error, code = await client.end()
    assert (error["code"], code) == ("invalid_api_key", 1008)
    assert error["message"].startswith("unauthorized: the API key is wrong or missing; give")
    assert len(client.heard) == 1


async def test_a_socket_that_leaves_gives_its_slot_back(server):
    async with connected(server) as client:
        await client.say("Hello")
        await client.until("response.done")
        assert server.engine.free == server.engine.slots - 1
    await eventually(lambda: server.engine.free == server.engine.slots)


async def test_audio_of_no_length_takes_no_slot(server):
    async with connected(server) as client:
        await client.send("input_audio_buffer.append", audio="")
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        assert server.engine.free == server.engine.slots


async def test_a_line_that_is_half_closed_is_a_client_that_has_left(server):
    async with raw(server.url) as line:
        await line.upgrade("/v1/realtime")
        await line.send(frame(b'{"type":"response.create"}', TEXT))
        await line.until(TEXT, b'{"type": "response.created"')
        line.writer.write_eof()
        await eventually(lambda: server.engine.free == server.engine.slots)


@pytest.mark.parametrize("name", [*HANDLERS, "input_audio_buffer.append"])
def test_every_event_of_a_client_is_documented(name):
    assert f"`{name}`" in DOC.split("## Events from the client")[1].split("## Events from")[0]


@pytest.mark.parametrize(("theirs", "ours"), OPENAI_VOICES.items())
def test_every_voice_is_documented(theirs, ours):
    assert f"{theirs} {ours}" in " ".join(DOC.split())
