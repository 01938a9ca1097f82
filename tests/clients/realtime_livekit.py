"""A conversation of about 20 s through LiveKit's OpenAI plugin, without a room.

pip install livekit-plugins-openai; python tests/clients/realtime_livekit.py URL speech.wav
It prints one line of JSON and exits with 1 where something is missing.
"""

import asyncio
import json
import os
import sys
import time
import wave

import numpy as np
from livekit import rtc
from livekit.plugins import openai

URL, WAV = sys.argv[1:3]
STEP = 960  # samples: 40 ms


async def main() -> bool:
    with wave.open(WAV) as file:  # 24 kHz, mono, 16 bits
        speech = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    seen = {"turns": [], "seconds": 0.0, "heard": [], "started": 0, "stopped": 0, "errors": []}
    reading = set()
    model = openai.realtime.RealtimeModel(
        base_url=f"{URL}/v1", api_key=os.environ.get("PERSONAPLEX_TOKEN", "none"), voice="cedar"
    )
    session = model.session()

    async def read_audio(message) -> None:
        async for frame in message.audio_stream:
            seen["seconds"] += frame.samples_per_channel / frame.sample_rate

    async def read(generation) -> None:
        async for message in generation.message_stream:
            audio = asyncio.create_task(read_audio(message))
            seen["turns"].append("".join([str(text) async for text in message.text_stream]))
            await audio

    def on_generation(generation) -> None:
        reading.add(asyncio.create_task(read(generation)))

    def count(name):
        def add(*_event) -> None:
            seen[name] += 1

        return add

    session.on("generation_created", on_generation)
    session.on("input_speech_started", count("started"))
    session.on("input_speech_stopped", count("stopped"))
    session.on("error", lambda error: seen["errors"].append(str(error)[:300]))
    session.on(
        "input_audio_transcription_completed",
        lambda event: seen["heard"].append(event.transcript) if event.is_final else None,
    )

    async def speak(pcm, seconds: float) -> None:
        due = time.monotonic()
        for at in range(0, min(len(pcm), int(seconds * 24000)), STEP):
            piece = pcm[at : at + STEP]
            session.push_audio(rtc.AudioFrame(piece.tobytes(), 24000, 1, len(piece)))
            due += len(piece) / 24000
            await asyncio.sleep(max(0, due - time.monotonic()))

    silence = np.zeros(24000 * 10, "<i2")
    await session.update_instructions("You are Ann.")
    await speak(silence, 3)  # it greets
    await speak(speech, 60)
    await speak(silence, 8)  # it answers
    said = session.generate_reply(
        instructions="Seven yellow umbrellas are waiting behind the door of the old theatre."
    )
    await speak(silence, 1.6)
    session.interrupt()
    await speak(speech, 2)
    await speak(silence, 4)
    await asyncio.wait_for(said, 1)
    await session.aclose()
    await model.aclose()
    for task in reading:
        task.cancel()
    print(json.dumps(seen))
    text = " ".join(seen["turns"])
    return (
        "Seven" in text
        and "theatre" not in text
        and "You are Ann" not in text
        and seen["seconds"] > 1
        and seen["started"] > 0
        and not seen["errors"]
    )


sys.exit(0 if asyncio.run(main()) else 1)
