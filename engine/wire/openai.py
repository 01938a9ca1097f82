"""The OpenAI Realtime protocol in both dialects, as pure functions over mappings.

First the settings of a session, then names, items and errors, then what the request that opens a
socket says. Source: the event types of the public `openai` package, 3.57.
"""

import base64
import binascii
import contextlib
import json
import math
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
    "tools": "must be empty: this model calls no tools",
    "prompt": "names a stored prompt, and there are none here; use instructions",
}
# Of a value that a client may give to be shown again: much deeper ones cannot be written.
MAX_DEPTH, MAX_KEPT_BYTES = 8, 10_000


class RequestError(RefusedError):
    """A client's event that is refused, in the protocol's form. The conversation goes on."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.code = param, code


class VoiceError(BadParameterError):
    """The voice that a conversation was to begin with cannot be used: it ends."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message, "a voice's file that is no voice")
        self.param = param


class Fields:
    """An object of a client's event that knows where it stands there, so that errors can say it."""

    def __init__(self, data: Mapping[str, Any], path: str = "") -> None:
        self.data, self.path = data, path

    def place(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Any:
        return self.data.get(name)

    def refuse(self, name: str, message: str, code: str = "invalid_value") -> RequestError:
        """The error about one field; the message goes on after its name."""
        place = self.place(name)
        return RequestError(f"{place} {message}", place, code)

    def object(self, name: str) -> "Fields":
        """An object; an empty one where it is missing or null. Raises RequestError."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(name, "is no object", "invalid_type")
        return Fields(value or {}, self.place(name))

    def objects(self, name: str) -> "list[Fields]":
        """A list of objects; an empty one where it is missing or null. Raises RequestError."""
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            raise self.refuse(name, "is no list", "invalid_type")
        places = {f"{name}[{at}]": part for at, part in enumerate(value or [])}
        parts = Fields(places, self.path)
        return [parts.object(place) for place in places]

    def string(self, name: str) -> str:
        """Raises RequestError unless it is a string of whole characters."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.refuse(name, "is missing or no string", "invalid_type")
        if has_half_character(value):
            raise self.refuse(name, "is not valid Unicode; send whole characters")
        return value

    def audio(self, name: str) -> bytes:
        """What a string in base64 stands for. Raises RequestError."""
        try:
            return base64.b64decode(self.string(name), validate=True)
        except (binascii.Error, ValueError):
            raise self.refuse(name, "is not base64") from None

    def kept(self, name: str) -> Any:
        """A value that is shown again as it came. Raises RequestError where it is large or deep."""
        if is_deep(value := self.get(name)):
            raise self.refuse(name, f"is nested more than {MAX_DEPTH} deep")
        if len(json.dumps(value)) > MAX_KEPT_BYTES:
            raise self.refuse(name, f"has more than {MAX_KEPT_BYTES} bytes")
        return value

    @contextlib.contextmanager
    def naming(self, name: str, ours: str) -> Iterator[None]:
        """Say an error about a parameter of `/api` of this field; the conversation goes on."""
        try:
            yield
        except EngineError as error:
            raise self.refuse(name, Exception.__str__(error).removeprefix(f"{ours} ")) from None


def is_deep(value: Any, most: int = MAX_DEPTH) -> bool:
    """Whether objects and lists are nested deeper than this."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return most == 0 or any(is_deep(part, most - 1) for part in inner)


@dataclass(frozen=True, slots=True)
class Settings:
    """A session as its client has set it."""

    instructions: str
    voice: str = ""  # as the client has named it; "": the server's
    voice_at: str | None = None  # in which field it did
    format_in: str = "audio/pcm"
    format_out: str = "audio/pcm"
    turn_detection: Mapping[str, Any] | None = field(default_factory=lambda: dict(TURN_DETECTION))
    transcription: Mapping[str, Any] | None = None  # None: the client does not want the words
    temperature: float = SamplingConfig().text_temperature
    noted: Mapping[str, Any] = field(default_factory=dict)  # what has no effect, shown as it came

    def update(self, session: Fields, find_voice: Callable[[str], str]) -> "Settings":
        """With the fields of a `session.update`, in either dialect. Raises RequestError."""
        if session.data.get("type", "realtime") != "realtime":
            raise session.refuse("type", "must be 'realtime': speech to speech")
        refuse_the_unable(session)
        audio = session.object("audio")
        heard, said = audio.object("input"), audio.object("output")
        changes: dict[str, Any] = {}
        if "instructions" in session.data:
            changes["instructions"] = text = session.string("instructions")
            with session.naming("instructions", "text_prompt"):
                check_prompt(text)
        for fields in (session, said):
            if fields.get("voice") is not None:
                changes["voice"] = voice = read_id(fields, "voice")
                changes["voice_at"] = fields.place("voice")
                with fields.naming("voice", "voice_prompt"):
                    find_voice(voice)
        for name, way, beta in (
            ("format_in", heard, "input_audio_format"),
            ("format_out", said, "output_audio_format"),
        ):
            for fields, field_name in ((session, beta), (way, "format")):
                if fields.get(field_name) is not None:
                    changes[name] = read_format(fields, field_name)
        for fields in (session, heard):
            if "turn_detection" in fields.data:
                changes["turn_detection"] = read_turn_detection(fields)
        for fields, name in ((session, "input_audio_transcription"), (heard, "transcription")):
            if name in fields.data:
                changes["transcription"] = read_transcription(fields, name)
        if session.get("temperature") is not None:
            with session.naming("temperature", "text_temperature"):
                parsed = parse_sampling({"text_temperature": session.get("temperature")})
            changes["temperature"] = float(parsed["text_temperature"])
        for fields in (session, said):
            if fields.get("speed") not in (None, 1):
                raise fields.refuse("speed", "must be 1: this model speaks at its own pace")
        noted = {name: session.kept(name) for name in NOTED if name in session.data}
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


def refuse_the_unable(fields: Fields) -> None:
    """Raises RequestError where a session or a response asks for what the model cannot do."""
    for name, why in UNABLE.items():
        if fields.get(name):
            raise fields.refuse(name, why, "unsupported_value")
    for name in ("output_modalities", "modalities"):
        wanted = fields.get(name)
        if wanted is not None and not (isinstance(wanted, list) and "audio" in wanted):
            why = "must hold 'audio': this model always speaks"
            raise fields.refuse(name, why, "unsupported_value")


def read_id(fields: Fields, name: str) -> str:
    """A name, or an object that has it as its `id`. Raises RequestError."""
    if isinstance(fields.get(name), dict):
        return fields.object(name).string("id")
    return fields.string(name)


def read_format(fields: Fields, name: str) -> str:
    """The GA name of an audio format of either dialect. Raises RequestError."""
    value, rate = fields.get(name), None
    if isinstance(value, dict):
        value, rate = value.get("type"), value.get("rate")
    for ga, beta in FORMATS.items():
        if value in (ga, beta):
            if rate in (None, SAMPLE_RATE if ga == "audio/pcm" else 8000):
                return ga
            break
    found = f"{str(value)[:40]!r}" + (f" at rate {str(rate)[:10]}" if rate is not None else "")
    known = "audio/pcm (rate 24000), audio/pcmu or audio/pcma (rate 8000)"
    raise fields.refuse(name, f"is {found}; use {known}")


def read_transcription(fields: Fields, name: str) -> Mapping[str, Any] | None:
    fields.object(name)
    return fields.kept(name) or None


def show_format(name: str) -> dict[str, Any]:
    return {"type": name, "rate": SAMPLE_RATE} if name == "audio/pcm" else {"type": name}


def read_turn_detection(fields: Fields) -> Mapping[str, Any] | None:
    """Raises RequestError where the model is to be silent until it is asked."""
    value = fields.get("turn_detection")
    if value is None or value is False:  # Pipecat says false
        return None
    turns = fields.object("turn_detection")
    if turns.get("create_response") is False:
        why = "must be true: this model answers by itself; pause your audio instead"
        raise turns.refuse("create_response", why, "unsupported_value")
    fields.kept("turn_detection")
    given = {name: entry for name, entry in turns.data.items() if entry is not None}
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


def parse_event(text: str) -> Any:
    """JSON as its rule has it. Raises ValueError, RecursionError."""
    return json.loads(text, parse_constant=refuse_constant, parse_float=parse_finite)


def refuse_constant(name: str) -> None:
    raise ValueError(name)  # NaN and the infinities are no JSON


def parse_finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(digits)  # it would be shown as one of those
    return number


@dataclass(slots=True)
class Content:
    """What a message holds."""

    texts: list[str] = field(default_factory=list)
    audio: list[bytes] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)  # its parts, without audio


def read_content(item: Fields) -> Content:
    """Raises RequestError where a part is an image, or anything else that a model cannot hear."""
    content = Content()
    if item.get("content") is None:
        raise item.refuse("content", "is missing; send a list of parts", "invalid_type")
    for part in item.objects("content"):
        kind, name = part.get("type"), "transcript"
        match kind:
            case "input_text" | "output_text" | "text":
                name = "text"
                content.texts.append(part.string(name))
            case "input_audio":
                content.audio.append(part.audio("audio"))
            case "output_audio" | "audio":
                content.texts += [part.string(name)] if part.get(name) else []
            case _:
                why = f"is {str(kind)[:40]!r}; this model takes text and audio"
                raise part.refuse("type", why, "unsupported_value")
        given = part.get(name) is not None
        content.shown.append({"type": kind, name: part.string(name) if given else None})
    return content


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
