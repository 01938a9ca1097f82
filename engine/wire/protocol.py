"""The protocol of `/api`, version 1 of docs/api.md, as pure functions over bytes and mappings.

First the kinds of messages, then the query that opens a conversation, then the JSON of 0x04. The
public Moshi and PersonaPlex clients speak it too.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from engine.config import SamplingConfig
from engine.dialogue import events as ev
from engine.dialogue.persona import MAX_PROMPT_CHARS
from engine.dialogue.session import SessionConfig
from engine.errors import BadParameterError, ConfigError, ProtocolError, RefusedError

VERSION = 1
SOCKETS = ("/api", "/api/chat")  # the paths of conversations
MAX_MESSAGE_BYTES = 256 * 1024
MAX_METADATA_BYTES = 25_000  # 2000 characters, each spelled with 12; is parsed in 5 ms at most
MAX_OPENING_BYTES = 64 * 1024  # 4000 characters, likewise
MAX_OPENING_NAMES = 64  # three times what there is: later clients may have more


class Kind(IntEnum):
    """Byte 0 of every binary message."""

    HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR, PING, SAY = range(8)  # 0x00 to 0x07


class Control(IntEnum):
    """The byte of a control message."""

    START, END_TURN, PAUSE, RESTART = range(4)


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    return bytes([kind]) + payload


def decode(message: bytes) -> tuple[Kind, bytes]:
    """Split one WebSocket message. Raises ProtocolError if it is empty or of an unknown kind."""
    if not message or message[0] >= len(Kind):
        raise ProtocolError(f"first byte is {message[:1].hex() or 'missing'}; kinds are 00 to 07")
    return Kind(message[0]), message[1:]


# -- the query: what a client asks for (docs/api.md) -----------------------------------------------

FORMATS = ("opus", "pcm16")
MAX_SEED = 2**63 - 1
MAX_WHOLE = 2**53  # from it on a float does not hold every whole number
MAX_HEARD_SECONDS = 1e6
SAMPLING = {  # query name -> field of SamplingConfig and its type
    "text_temperature": ("text_temperature", float),
    "audio_temperature": ("audio_temperature", float),
    "text_topk": ("text_top_k", int),
    "audio_topk": ("audio_top_k", int),
    "pad_mult": ("pad_bias", float),
    "repetition_penalty": ("repetition_penalty", float),
    "repetition_penalty_context": ("repetition_context", int),
}
TUNABLE = ("text_temperature", "audio_temperature", "text_topk", "audio_topk")


@dataclass(frozen=True, slots=True)
class Query:
    """A checked query: the session's part, and what only the socket needs."""

    session: SessionConfig
    format: str = "opus"  # "": as before, where a conversation is resumed
    events: bool = False
    warm: bool = True  # on /api/chat 0x00 waits until the public web client listens
    start_at: float = 0.0  # time.monotonic(), before which no 0x00 is sent
    resume: str = field(default="", repr=False)  # the secret of a conversation that goes on
    heard: float | None = None  # seconds of its agent audio that have arrived


def parse_query(query: Mapping[str, str]) -> Query:
    """Check a query; unknown names are ignored. Raises BadParameterError."""
    prompt = query.get("text_prompt")
    if prompt is not None:
        check_prompt(prompt)
    resume = query.get("resume", "")
    fmt = query.get("format", "" if resume else "opus")
    if fmt not in FORMATS and (fmt or not resume):
        raise BadParameterError(f"format is {fmt[:40]!r}; use opus or pcm16", "format: unknown")
    session = SessionConfig(
        text_prompt=prompt,
        voice=query.get("voice_prompt") or None,
        seed=_parse_seed(query),
        sampling=SamplingConfig(**parse_sampling(query, SAMPLING)),
        routing=_parse_flag(query, "routing"),
        transcribe=_parse_flag(query, "transcribe") is not False,
    )
    events = bool(_parse_flag(query, "events"))
    heard = _parse_heard(query) if resume else None
    warm = _parse_flag(query, "warm") is not False
    return Query(session, fmt, events, warm, resume=resume, heard=heard)


def _parse_heard(query: Mapping[str, str]) -> float | None:
    if "heard" not in query:
        return None
    heard = _parse_number("heard", query["heard"], float)
    if not 0 <= heard <= MAX_HEARD_SECONDS:
        raise BadParameterError(
            f"heard is {heard}; use 0 to {MAX_HEARD_SECONDS:.0f} seconds", "heard: out of range"
        )
    return heard


def parse_sampling(
    given: Mapping[str, Any], names: Iterable[str] = TUNABLE
) -> dict[str, float | int]:
    """The fields of SamplingConfig under these names, in range. Raises BadParameterError."""
    fields: dict[str, float | int] = {}
    for name in names:
        if name in given:
            field, kind = SAMPLING[name]
            fields[field] = _parse_number(name, given[name], kind)
    try:
        SamplingConfig(**fields)
    except ConfigError as error:
        name = next(name for name in SAMPLING if str(error).startswith(f"{name} is "))
        raise BadParameterError(str(error), f"{name}: out of range") from error
    return fields


def check_prompt(prompt: str) -> None:
    if len(prompt) > MAX_PROMPT_CHARS:
        raise BadParameterError(
            f"text_prompt has {len(prompt)} characters; use up to {MAX_PROMPT_CHARS}",
            "text_prompt: too long",
        )


def _check_seed(name: str, seed: int) -> int:
    if not -1 <= seed <= MAX_SEED:
        raise BadParameterError(
            f"{name} is {str(seed)[:40]}; use -1 (random) or 0 to {MAX_SEED}",
            f"{name}: out of range",
        )
    return seed


def _parse_seed(query: Mapping[str, str]) -> int:
    """The first seed given that is not −1; the public clients send one for text and audio."""
    for name in ("seed", "text_seed", "audio_seed"):
        if name not in query:
            continue
        seed = _check_seed(name, _parse_number(name, query[name], int))
        if seed >= 0:
            return seed
    return -1


def _parse_number(name: str, value: Any, kind: Callable[[Any], Any]) -> Any:
    """A number of a query or of JSON; 25.0 is a whole one. Raises BadParameterError naming it."""
    what = "a whole number" if kind is int else "a number"
    try:
        if isinstance(value, bool):
            raise ValueError
        if kind is int and isinstance(value, int):
            return value
        if kind is int and isinstance(value, str) and value.strip().lstrip("+-").isdigit():
            return int(value)  # every digit of a large seed
        number = float(value)
        if kind is int and not (number.is_integer() and abs(number) < MAX_WHOLE):
            raise ValueError
        return value if isinstance(value, kind) else kind(number)
    except (TypeError, ValueError, OverflowError):
        told = f"{name}: not {what}"
        raise BadParameterError(f"{name} is {str(value)[:40]!r}; use {what}", told) from None


def _parse_flag(query: Mapping[str, str], name: str) -> bool | None:
    value = query.get(name)
    if value is None:
        return None
    if value not in ("0", "1"):
        raise BadParameterError(f"{name} is {value[:40]!r}; use 0 or 1", f"{name}: not 0 or 1")
    return value == "1"


# -- 0x04: the JSON of events, and of what clients may send (docs/api.md) --------------------------

FIELDS: dict[type, tuple[str, tuple[str, ...]]] = {  # event -> its type on the wire, its fields
    ev.Saying: ("say", ("id", "state", "text", "spoken")),
    ev.Route: ("route", ("id", "state", "question", "source", "knowledge", "reason")),
    ev.UserText: ("user_text", ("text", "start", "end", "final")),
    ev.Closing: ("closing", ("reason", "seconds_left")),
}


def encode_metadata(name: str, seconds: float, **fields: Any) -> bytes:
    """A 0x04 message. `seconds` of agent audio were sent before it."""
    data = {"type": name, "t": round(seconds, 3), **fields}
    return encode(Kind.METADATA, json.dumps(data, ensure_ascii=False).encode())


def parse_metadata(
    payload: bytes, most: int = MAX_METADATA_BYTES, example: str = '{"type": "say", "text": …}'
) -> tuple[str, dict[str, Any]]:
    """(type, object) of a client's message. Raises RefusedError if it is not what it should be.

    example: what a client is told to send instead.
    """
    if len(payload) > most:
        raise RefusedError(
            f"metadata is not JSON of at most {most} bytes (it has {len(payload)}); send less"
        )
    try:
        data = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"metadata is not JSON ({str(error)[:60]}); send an object") from None
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise RefusedError(f"metadata needs a type; send {example}")
    return data["type"], data


def read_text(data: dict[str, Any], name: str = "text") -> str:
    """A text of a message. Raises RefusedError if it is not a string of whole characters."""
    text = data.get(name)
    if not isinstance(text, str):
        raise RefusedError(f"{data['type']}: {name} is missing or not a string; send text")
    if has_half_character(text):
        raise RefusedError(f"{data['type']}: {name} is not valid Unicode; send whole characters")
    return text


def has_half_character(text: str) -> bool:
    """Whether a text holds what JSON can spell, and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def parse_opening(payload: bytes) -> dict[str, str]:
    """The parameters of a first message `open`, as a query has them. Raises BadParameterError."""
    try:
        kind, data = parse_metadata(payload, MAX_OPENING_BYTES, '{"type": "open", …}')
    except RefusedError as error:
        raise BadParameterError(f"open: {error}", "open: not an object with a type") from None
    if kind != "open":
        raise BadParameterError(
            f"type is {kind[:40]!r}; with open=1 the first message is open", "open: not first"
        )
    if len(data) > MAX_OPENING_NAMES:
        raise BadParameterError(
            f"open: {len(data)} names; use up to {MAX_OPENING_NAMES}", "open: too many names"
        )
    asked = {}
    for name, value in data.items():
        if name == "type" or value is None:
            continue
        if isinstance(value, str) and has_half_character(value):
            raise BadParameterError(
                f"open: {name[:40]!r} is not valid Unicode; send whole characters",
                "open: half a character",
            )
        if not isinstance(value, str | int | float):
            raise BadParameterError(
                f"open: {name[:40]!r} is no text, number, true or false; use one of these",
                "open: a value of a wrong kind",
            )
        text = str(int(value) if isinstance(value, bool) else value)
        asked["voice_prompt" if name == "voice" else name] = text
    return asked


def parse_role(data: dict[str, Any]) -> dict[str, Any]:
    """What a `restart` changes, as fields of SessionConfig.

    Raises RefusedError, BadParameterError.
    """
    changes: dict[str, Any] = {}
    if "text_prompt" in data:
        prompt = changes["text_prompt"] = read_text(data, "text_prompt")
        check_prompt(prompt)
    if "voice_prompt" in data:
        changes["voice"] = read_text(data, "voice_prompt") or None
    if "seed" in data:
        changes["seed"] = _check_seed("seed", _parse_number("seed", data["seed"], int))
    return changes
