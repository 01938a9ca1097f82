"""A conversation of about 20 s through Pipecat's OpenAI Realtime service, in a pipeline of its own.

pip install "pipecat-ai[openai]"; python tests/clients/realtime_pipecat.py WS_URL speech.wav
It prints one line of JSON and exits with 1 where something is missing.
"""

import asyncio
import json
import os
import sys
import time
import wave

import numpy as np
from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    InputAudioRawFrame,
    LLMContextFrame,
    ProposedUserStartedSpeakingFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

URL, WAV = sys.argv[1:3]
STEP = 960  # samples: 40 ms
logger.remove()
logger.add(sys.stderr, level="WARNING")


class Watcher(FrameProcessor):
    """Notes what passes it, in both directions."""

    def __init__(self, seen: dict) -> None:
        super().__init__()
        self.seen = seen

    async def process_frame(self, frame, direction) -> None:
        await super().process_frame(frame, direction)
        match frame:
            case TTSAudioRawFrame():
                self.seen["seconds"] += len(frame.audio) / 48000
            case TTSTextFrame():
                self.seen["said"] += frame.text
            case TranscriptionFrame():
                self.seen["heard"].append(frame.text)
            case ProposedUserStartedSpeakingFrame():
                self.seen["started"] += 1
            case ErrorFrame():
                self.seen["errors"].append(str(frame)[:300])
        await self.push_frame(frame, direction)


async def main() -> bool:
    with wave.open(WAV) as file:  # 24 kHz, mono, 16 bits
        speech = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    seen = {"said": "", "seconds": 0.0, "heard": [], "started": 0, "errors": []}
    before, after = Watcher(seen), Watcher(seen)
    service = OpenAIRealtimeLLMService(
        api_key=os.environ.get("PERSONAPLEX_TOKEN", "none"),
        base_url=f"{URL}/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(
            session_properties=events.SessionProperties(
                instructions="You are Ann.",
                audio=events.AudioConfiguration(
                    input=events.AudioInput(transcription=events.InputAudioTranscription()),
                    output=events.AudioOutput(voice="ash"),
                ),
            )
        ),
    )
    worker = PipelineWorker(Pipeline([before, service, after]), enable_rtvi=False)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())

    async def speak(pcm, seconds: float) -> None:
        due = time.monotonic()
        for at in range(0, min(len(pcm), int(seconds * 24000)), STEP):
            piece = pcm[at : at + STEP]
            await worker.queue_frame(InputAudioRawFrame(piece.tobytes(), 24000, 1))
            due += len(piece) / 24000
            await asyncio.sleep(max(0, due - time.monotonic()))

    silence = np.zeros(24000 * 10, "<i2")
    await asyncio.sleep(1)
    await worker.queue_frame(LLMContextFrame(LLMContext()))  # "begin": a response to create
    await speak(silence, 3)  # it greets
    await speak(speech, 60)
    await speak(silence, 8)  # it answers
    text = "Seven yellow umbrellas are waiting behind the door of the old theatre."
    await service.send_client_event(
        events.ResponseCreateEvent(response=events.ResponseProperties(instructions=text))
    )
    await speak(silence, 1.6)
    await speak(speech, 2)  # the user interrupts it
    await speak(silence, 4)
    await worker.queue_frame(EndFrame())
    await asyncio.wait_for(running, 10)
    print(json.dumps(seen))
    return (
        "Seven" in seen["said"]
        and "theatre" not in seen["said"]
        and seen["seconds"] > 1
        and seen["started"] > 0
        and not seen["errors"]
    )


sys.exit(0 if asyncio.run(main()) else 1)
