"""The OpenAI Realtime protocol in both dialects, as pure functions over mappings.

First the settings of a session, then names, items and errors, then what the request that opens a
socket says. Source: the event types of the public `openai` package, 3.57.
"""

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.config import SAMPLE_RATE, SamplingConfig
from engine.errors import (
    BadParameterError,
    EndError,
    EngineError,
    RefusedError,
    TooFastError,
    UnauthorizedError,
)
from engine.wire.audio import PcmCodec
from engine.wire.protocol import check_prompt, has_half_character, parse_sampling
from engine.wire.telephony import TelephoneCodec

PATH = "/v1/realtime"
BETA_HEADER = "realtime=v1"  # of `OpenAI-Beta`
SUBPROTOCOL, KEY_PROTOCOL = "realtime", "openai-insecure-api-key."
BETA_PROTOCOL = "openai-beta.realtime-v1"

# -- settings: what a client sees of its session ---------------------------------------------------

OPENAI_VOICES = {  # their names -> ours, of a like pitch
    **{"marin": "NATF2", "alloy": "NATF0", "coral": "NATF1", "sage": "NATF3"},
    **{"shimmer": "VARF0", "nova": "VARF1", "fable": "VARF2"},
    **{"cedar": "NATM0", "ash": "NATM1", "verse": "NATM2", "echo": "NATM3"},
    **{"ballad": "VARM0", "onyx": "VARM1"},
}
FORMATS = {  # of the GA dialect -> of the beta
    "audio/pcm": "pcm16",
    "audio/pcmu": "g711_ulaw",
    "audio/pcma": "g711_alaw",
}
TURN_DETECTION = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
    "create_response": True,
    "interrupt_response": True,
}
UNABLE = {  # field of a session or a response -> why it is refused, where it asks for something
    "tools": "this model calls no tools; leave `tools` empty",
    "prompt": "there are no stored prompts here; use `instructions`",
}


class RequestError(RefusedError):
    """A client's event that is refused, in the protocol's form. The conversation goes on."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True, slots=True)
class Settings:
    """A session as its client has set it."""

    instructions: str
    voice: str = ""  # as the client has named it; "": the server's
    format_in: str = "audio/pcm"
    format_out: str = "audio/pcm"
    turn_detection: Mapping[str, Any] | None = field(default_factory=lambda: dict(TURN_DETECTION))
    transcription: Mapping[str, Any] | None = None  # None: the client does not want the words
    temperature: float = SamplingConfig().text_temperature
    noted: Mapping[str, Any] = field(default_factory=dict)  # what has no effect, shown as it came

    def update(
        self, data: Mapping[str, Any], find_voice: Callable[[str], str | None]
    ) -> "Settings":
        """With the fields of a `session.update`, in either dialect. Raises RequestError."""
        if data.get("type", "realtime") != "realtime":
            raise RequestError("session.type must be 'realtime': speech to speech", "session.type")
        refuse_the_unable(data, "session")
        audio = read_object(data, "audio")
        heard, said = read_object(audio, "input"), read_object(audio, "output")
        changes: dict[str, Any] = {}
        if "instructions" in data:
            changes["instructions"] = text = read_string(data, "instructions")
            with as_request_error("session.instructions"):
                check_prompt(text)
        voice = said.get("voice", data.get("voice"))
        if voice is not None:
            changes["voice"] = voice = read_string({"voice": find_id(voice)}, "voice")
            with as_request_error("session.audio.output.voice"):
                find_voice(voice)
        for name, fmt in (
            ("format_in", heard.get("format", data.get("input_audio_format"))),
            ("format_out", said.get("format", data.get("output_audio_format"))),
        ):
            if fmt is not None:
                changes[name] = read_format(fmt)
        for source in (heard, data):
            if "turn_detection" in source:
                changes["turn_detection"] = read_turn_detection(source["turn_detection"])
        for source, name in ((heard, "transcription"), (data, "input_audio_transcription")):
            if name in source:
                changes["transcription"] = read_object(source, name) or None
        if data.get("temperature") is not None:
            with as_request_error("session.temperature"):
                parsed = parse_sampling({"text_temperature": data["temperature"]})
            changes["temperature"] = float(parsed["text_temperature"])
        if said.get("speed") not in (None, 1):
            raise RequestError(
                "this model speaks at its own pace; use 1", "session.audio.output.speed"
            )
        refuse_text_only(data, "session")
        noted = {name: data[name] for name in NOTED if name in data}
        return replace(self, **changes, noted={**self.noted, **noted})

    @property
    def manual(self) -> bool:
        """Whether the client itself says when a turn of the user is over."""
        return self.turn_detection is None

    def show(
        self, session_id: str, model: str, voice: str, hears: bool, beta: bool
    ) -> dict[str, Any]:
        """The session as an object of the protocol."""
        transcription = dict(self.transcription) if self.transcription and hears else None
        turns = dict(self.turn_detection) if self.turn_detection else None
        shown = {
            "id": session_id,
            "object": "realtime.session",
            "model": model,
            "instructions": self.instructions,
            "tools": [],
            "tool_choice": "auto",
        }
        if beta:
            return shown | {
                "modalities": ["text", "audio"],
                "voice": voice,
                "input_audio_format": FORMATS[self.format_in],
                "output_audio_format": FORMATS[self.format_out],
                "input_audio_transcription": transcription,
                "turn_detection": turns,
                "temperature": self.temperature,
                "max_response_output_tokens": "inf",
            }
        return {
            "type": "realtime",
            **shown,
            "output_modalities": ["audio"],
            "audio": {
                "input": {
                    "format": show_format(self.format_in),
                    "transcription": transcription,
                    "noise_reduction": None,
                    "turn_detection": turns,
                },
                "output": {"format": show_format(self.format_out), "voice": voice, "speed": 1.0},
            },
            "max_output_tokens": "inf",
            **self.noted,
        }


NOTED = ("tool_choice", "tracing", "truncation", "include", "max_output_tokens", "reasoning")


@contextlib.contextmanager
def as_request_error(param: str) -> Iterator[None]:
    """Say of which field an error is, and let the conversation go on."""
    try:
        yield
    except EngineError as error:
        raise RequestError(Exception.__str__(error), param) from None


def refuse_the_unable(data: Mapping[str, Any], where: str) -> None:
    for name, why in UNABLE.items():
        if data.get(name):
            raise RequestError(why, f"{where}.{name}", "unsupported_value")


def refuse_text_only(data: Mapping[str, Any], where: str) -> None:
    for name in ("output_modalities", "modalities"):
        wanted = data.get(name)
        if wanted is not None and "audio" not in wanted:
            raise RequestError(
                "this model always speaks; use ['audio']", f"{where}.{name}", "unsupported_value"
            )


def read_object(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object of an event; {} where it is missing or null. Raises RequestError."""
    value = data.get(name)
    if value is not None and not isinstance(value, dict):
        raise RequestError(f"{name} must be an object", name, "invalid_type")
    return value or {}


def read_string(data: Mapping[str, Any], name: str) -> str:
    """Raises RequestError unless it is a string of whole characters."""
    value = data.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{name} is missing or no string", name, "invalid_type")
    if has_half_character(value):
        raise RequestError(f"{name} is not valid Unicode; send whole characters", name)
    return value


def find_id(voice: Any) -> Any:
    return voice.get("id") if isinstance(voice, dict) else voice


def read_format(value: Any) -> str:
    """The GA name of an audio format of either dialect. Raises RequestError."""
    rate = None
    if isinstance(value, dict):
        value, rate = value.get("type"), value.get("rate")
    for name, beta in FORMATS.items():
        if value in (name, beta):
            if rate in (None, SAMPLE_RATE if name == "audio/pcm" else 8000):
                return name
            break
    raise RequestError(
        f"format is {str(value)[:40]!r} at rate {str(rate)[:10]}; use audio/pcm (24000), "
        "audio/pcmu or audio/pcma (8000)",
        "format",
    )


def show_format(name: str) -> dict[str, Any]:
    return {"type": name, "rate": SAMPLE_RATE} if name == "audio/pcm" else {"type": name}


def read_turn_detection(value: Any) -> Mapping[str, Any] | None:
    """Raises RequestError where the model is to be silent until it is asked."""
    if value is None or value is False:  # Pipecat says false
        return None
    if not isinstance(value, dict):
        raise RequestError("turn_detection must be an object or null", "turn_detection")
    if value.get("create_response") is False:
        raise RequestError(
            "this model answers by itself; leave create_response true, or pause your audio",
            "turn_detection.create_response",
            "unsupported_value",
        )
    given = {name: entry for name, entry in value.items() if entry is not None}
    if given.get("type") == "semantic_vad":
        return {"create_response": True, "interrupt_response": True, "eagerness": "auto", **given}
    return {**TURN_DETECTION, **given}


def make_codec(name: str) -> PcmCodec | TelephoneCodec:
    return PcmCodec() if name == "audio/pcm" else TelephoneCodec(name[-1])


# -- names, items and errors -----------------------------------------------------------------------

BETA_NAMES = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "conversation.item.added": "conversation.item.created",
    "conversation.item.done": "",  # was not told
}


def make_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"


def refuse_constant(name: str) -> None:
    raise ValueError(name)  # NaN and the infinities are no JSON


def read_content(item: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(texts, audio in base64) of a message. Raises RequestError where there is an image."""
    texts, audio = [], []
    content = item.get("content")
    if not isinstance(content, list):
        raise RequestError("content must be a list of parts", "item.content", "invalid_type")
    for part in content:
        match part.get("type"):
            case "input_text" | "output_text" | "text":
                texts.append(read_string(part, "text"))
            case "input_audio":
                audio.append(read_string(part, "audio"))
            case "output_audio" | "audio":
                texts += [part["transcript"]] if part.get("transcript") else []
            case kind:
                raise RequestError(
                    f"this model takes text and audio, and no {str(kind)[:40]}",
                    "item.content",
                    "unsupported_value",
                )
    return texts, audio


def show_error(error: EngineError, event_id: Any = None) -> dict[str, Any]:
    """An error as an object of the protocol."""
    ends = isinstance(error, EndError)
    code: str | None = getattr(error, "code", "invalid_value")
    if isinstance(error, UnauthorizedError):
        code = "invalid_api_key"
    elif ends:
        code = error.prefix.rstrip(": ").replace(" ", "_")
    theirs = isinstance(error, UnauthorizedError | BadParameterError | TooFastError) or not ends
    return {
        "type": "invalid_request_error" if theirs else "server_error",
        "code": code,
        "message": str(error),
        "param": getattr(error, "param", None),
        "event_id": event_id,
    }


def encode_error(error: EngineError, event_id: Any = None) -> str:
    """The event that tells an error."""
    event = {"type": "error", "event_id": make_id("event"), "error": show_error(error, event_id)}
    return json.dumps(event)


def list_protocols(headers: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in headers.get("Sec-WebSocket-Protocol", "").split(",")]


def is_beta(headers: Mapping[str, str]) -> bool:
    """Whether a client asks for the old names. A browser can do so by a sub-protocol alone."""
    named = BETA_HEADER in headers.get("OpenAI-Beta", "")
    return named or BETA_PROTOCOL in list_protocols(headers)


def find_key(headers: Mapping[str, str]) -> str:
    """The key that a browser gives as a sub-protocol, or none."""
    for name in list_protocols(headers):
        if name.startswith(KEY_PROTOCOL):
            return name.removeprefix(KEY_PROTOCOL)
    return ""
