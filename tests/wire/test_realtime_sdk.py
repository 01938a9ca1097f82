"""`/v1/realtime` through the `openai` package, and every event held against its types."""

import asyncio
import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.sound import assert_says, loud_seconds, speech
from tests.wire.peer import PATIENCE_SECONDS

DOC = (Path(__file__).parents[2] / "docs" / "realtime.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def openai():
    """The package, which takes a second to load."""
    return pytest.importorskip("openai", reason="no openai package (requirements-dev.txt)")


@pytest.fixture
def shapes(openai):
    """The package's own types: what no model of it fits raises ValidationError."""
    from openai.types.realtime import RealtimeServerEvent
    from pydantic import TypeAdapter

    return TypeAdapter(RealtimeServerEvent)


async def test_the_package_talks_listens_and_interrupts(server, openai, shapes):
    heard, sound = [], []
    client = openai.AsyncOpenAI(api_key="none", base_url=f"{server.url}/v1")

    async def until(connection, name):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                event = shapes.validate_python(json.loads(await connection.recv_bytes()))
                heard.append(event)
                if event.type == "response.output_audio.delta":
                    sound.append(base64.b64decode(event.delta))
                if event.type == name:
                    return event

    async with client.realtime.connect(model="gpt-realtime") as connection:
        audio = {"input": {"transcription": {"model": "whisper-1"}}, "output": {"voice": "marin"}}
        session = {"type": "realtime", "instructions": "You are Ann.", "audio": audio}
        await connection.session.update(session=session)
        updated = await until(connection, "session.updated")
        assert updated.session.instructions == "You are Ann."
        await connection.response.create(response={"instructions": "Seven umbrellas"})
        done = await until(connection, "response.done")
        assert done.response.output[0].content[0].transcript == "Seven umbrellas"
        pcm = np.frombuffer(b"".join(sound), "<i2").astype(np.float32) / 32768
        assert_says(pcm, ["Seven", "umbrellas"])

        words = np.concatenate([speech("Hello there my friend"), np.zeros(24_000, np.float32)])
        data = base64.b64encode((words * 32767).astype("<i2").tobytes()).decode()
        await connection.input_audio_buffer.append(audio=data)
        await until(connection, "input_audio_buffer.speech_started")
        committed = await until(connection, "input_audio_buffer.committed")
        sound.clear()
        await until(connection, "response.done")
        pcm = np.frombuffer(b"".join(sound), "<i2").astype(np.float32) / 32768
        assert loud_seconds(pcm) > 0.3

        await connection.conversation.item.retrieve(item_id=committed.item_id)
        item = (await until(connection, "conversation.item.retrieved")).item
        assert (item.role, item.id) == ("user", committed.item_id)
        await connection.response.create(response={"instructions": "One two three four five six"})
        await until(connection, "response.output_audio.delta")
        await connection.response.cancel()
        cancelled = await until(connection, "response.done")
        assert cancelled.response.status_details.reason == "client_cancelled"
        await connection.response.cancel()
        error = (await until(connection, "error")).error
        assert error.code == "response_cancel_not_active"
    assert len({event.type for event in heard}) > 15


@pytest.mark.usefixtures("openai")
async def test_the_recipe_runs(server, monkeypatch):
    recipe = re.search(r"```python\n(.*?)```", DOC, re.DOTALL)[1]
    ran = []
    monkeypatch.setattr(asyncio, "run", ran.append)
    space = {}
    exec(recipe, space)
    ran.pop().close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await space["main"](f"{server.url}/v1")
