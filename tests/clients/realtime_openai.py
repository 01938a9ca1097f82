"""A conversation of about 20 s through the `openai` package.

pip install "openai[realtime]"; python tests/clients/realtime_openai.py URL speech.wav
It prints one line of JSON and exits with 1 where something is missing.
"""

import asyncio
import base64
import json
import os
import sys
import time
import wave
from collections import Counter

from openai import AsyncOpenAI

STEP = 1920  # bytes: 40 ms


async def main(url: str, wav: str) -> bool:
    with wave.open(wav) as file:  # 24 kHz, mono, 16 bits
        speech = file.readframes(file.getnframes())
    events, turns, heard, errors, size = Counter(), [], [], [], 0
    client = AsyncOpenAI(api_key=os.environ.get("PERSONAPLEX_TOKEN", "none"), base_url=f"{url}/v1")
    async with client.realtime.connect(model="personaplex") as connection:

        async def read() -> None:
            nonlocal size
            async for event in connection:
                events[event.type] += 1
                match event.type:
                    case "response.output_audio.delta":
                        size += len(base64.b64decode(event.delta))
                    case "response.output_audio_transcript.done":
                        turns.append(event.transcript)
                    case "conversation.item.input_audio_transcription.completed":
                        heard.append(event.transcript)
                    case "error":
                        errors.append(event.error.message)

        async def speak(pcm: bytes, seconds: float) -> None:
            due = time.monotonic()
            for at in range(0, min(len(pcm), int(seconds * 48000)), STEP):
                piece = base64.b64encode(pcm[at : at + STEP]).decode()
                await connection.input_audio_buffer.append(audio=piece)
                due += 0.04
                await asyncio.sleep(max(0, due - time.monotonic()))

        reading = asyncio.create_task(read())
        await connection.session.update(
            session={
                "type": "realtime",
                "instructions": "You are Ann.",
                "audio": {
                    "input": {"transcription": {"model": "whisper-1"}},
                    "output": {"voice": "marin"},
                },
            }
        )
        await speak(bytes(480_000), 3)  # it greets
        await speak(speech, 60)
        await speak(bytes(480_000), 8)  # it answers
        text = "Seven yellow umbrellas are waiting behind the door of the old theatre."
        await connection.response.create(response={"instructions": text})
        await speak(bytes(480_000), 1.6)
        await speak(speech, 2)  # the user interrupts it
        await speak(bytes(480_000), 4)
        reading.cancel()
    seconds = size / 48000
    print(json.dumps({"events": events, "turns": turns, "heard": heard, "seconds": seconds}))
    said = " ".join(turns)
    whole = "Seven" in said and "theatre" not in said and seconds > 1 and not errors
    return whole and events["input_audio_buffer.speech_started"] > 0


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main(*sys.argv[1:3])) else 1)
