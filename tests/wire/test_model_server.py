"""The real model behind `/api`: what clients hear is what the model says, several at once."""

import asyncio

import numpy as np
import pytest
import soundfile

from engine.commands.offline import drive_conversation, split_frames
from engine.config import FRAME_SAMPLES, ServerConfig
from engine.dialogue.persona import prompt_ids
from engine.runtime.backend import Opening
from engine.runtime.seat import QUIET_PEAK
from engine.runtime.starting import load_personaplex
from engine.wire.client import Client
from engine.wire.protocol import Kind
from tests.runtime.conftest import TINY, make_thin
from tests.serving import ApiServer

FRAMES = 20
PERSONA = "You are a calm helper."
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(make_thin(tmp_path_factory.mktemp("thin")))


@pytest.fixture(scope="module")
def model_server(model, never_overloaded):
    backend = load_personaplex(ServerConfig(model=model, device="cpu", slots=3))
    with ApiServer(load=lambda progress: backend) as server:
        yield server


@pytest.fixture(scope="module")
def user() -> np.ndarray:
    """Nowhere quiet: of what is, a server on a busy machine may drop some."""
    samples, _ = soundfile.read(TINY / "input_user.wav", dtype="float32")
    hum = 2 * QUIET_PEAK * np.sin(np.arange(FRAMES * FRAME_SAMPLES) * 0.05)
    return (samples[: FRAMES * FRAME_SAMPLES] / 2 + hum).astype(np.float32)


async def talk(url: str, user: np.ndarray, **query) -> np.ndarray:
    """Send everything at once; the first samples that come back, as many as were sent."""
    heard, count = [], 0
    async with Client(url, text_prompt=PERSONA, **query) as client:
        async for message in client.messages():
            if message.kind is Kind.HANDSHAKE:
                await client.send_audio(user)
            if message.kind is Kind.AUDIO:
                heard.append(message.pcm)
                count += len(message.pcm)
            if count >= len(user):
                return np.concatenate(heard)[: len(user)]
            assert message.kind is not Kind.ERROR, message.text
    raise AssertionError(f"closed with {client.close_code} after {count} samples")


def test_three_at_once_each_hear_what_a_conversation_alone_says(model_server, model, user):
    async def all_three() -> list[np.ndarray]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            voices = (("TINYF0", 5), ("TINYM0", 6), ("TINYF0", 7))
            return await asyncio.gather(
                *(talk(model_server.url, user, voice_prompt=v, seed=s) for v, s in voices)
            )

    first, _, third = asyncio.run(all_three())
    alone = load_personaplex(ServerConfig(model=model, device="cpu", slots=1))
    ids = prompt_ids(PERSONA, alone.tokenizer)
    for heard, seed in ((first, 5), (third, 7)):
        frames = drive_conversation(alone, Opening("TINYF0", ids, seed=seed), split_frames(user))
        want = np.concatenate([frame.pcm for frame in frames])
        np.testing.assert_allclose(heard, np.clip(want, -1, 1), atol=2 / 32768)
    assert not np.allclose(first, third, atol=0.01)
