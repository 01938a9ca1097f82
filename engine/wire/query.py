"""The query string of `/api`: what a client asks for, checked (wire.md 2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.config import SamplingConfig
from engine.dialogue.personas import MAX_PROMPT_CHARS
from engine.dialogue.session import SessionConfig
from engine.errors import BadParameterError, ConfigError

FORMATS = ("opus", "pcm16")
MAX_SEED = 2**63 - 1
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
    """A checked query: what concerns the session, and what concerns the socket."""

    session: SessionConfig
    format: str = "opus"
    events: bool = False


def parse(query: Mapping[str, str]) -> Query:
    """Check a query; unknown names are ignored. Raises BadParameterError."""
    prompt = query.get("text_prompt")
    if prompt is not None and len(prompt) > MAX_PROMPT_CHARS:
        raise BadParameterError(f"text_prompt has {len(prompt)} characters; use up to 4000")
    fmt = query.get("format", "opus")
    if fmt not in FORMATS:
        raise BadParameterError(f"format is {fmt[:40]!r}; use opus or pcm16")
    routing = _flag(query, "routing")
    session = SessionConfig(
        text_prompt=prompt,
        voice=query.get("voice_prompt") or None,
        seed=_seed(query),
        sampling=_sampling(query),
        routing=routing,
        transcribe=_flag(query, "transcribe") is not False,
    )
    return Query(session, fmt, bool(_flag(query, "events")))


def tuned(changes: Mapping[str, Any]) -> dict[str, float | int]:
    """SamplingConfig fields of a `set` message. Raises BadParameterError."""
    fields: dict[str, float | int] = {}
    for name in TUNABLE:
        if name in changes:
            field, kind = SAMPLING[name]
            fields[field] = _number(name, changes[name], kind)
    try:
        SamplingConfig(**fields)
    except ConfigError as error:
        raise BadParameterError(str(error)) from error
    return fields


def _sampling(query: Mapping[str, str]) -> SamplingConfig:
    fields = {
        field: _number(name, query[name], kind)
        for name, (field, kind) in SAMPLING.items()
        if name in query
    }
    try:
        return SamplingConfig(**fields)
    except ConfigError as error:
        raise BadParameterError(str(error)) from error


def _seed(query: Mapping[str, str]) -> int:
    """The first seed given that is not −1; the public clients send one for text and audio."""
    for name in ("seed", "text_seed", "audio_seed"):
        if name not in query:
            continue
        seed = _number(name, query[name], int)
        if not -1 <= seed <= MAX_SEED:
            raise BadParameterError(f"{name} is {seed}; use -1 (random) or 0 to {MAX_SEED}")
        if seed >= 0:
            return seed
    return -1


def _number(name: str, value: Any, kind: Callable[[Any], Any]) -> Any:
    """A number of a query or of JSON. Raises BadParameterError naming it."""
    what = "a whole number" if kind is int else "a number"
    try:
        number = float(value)
        if isinstance(value, bool) or (kind is int and number != int(number)):
            raise ValueError
        return int(value) if kind is int and not isinstance(value, float) else kind(number)
    except (TypeError, ValueError, OverflowError):
        raise BadParameterError(f"{name} is {str(value)[:40]!r}; use {what}") from None


def _flag(query: Mapping[str, str], name: str) -> bool | None:
    value = query.get(name)
    if value is None:
        return None
    if value not in ("0", "1"):
        raise BadParameterError(f"{name} is {value[:40]!r}; use 0 or 1")
    return value == "1"
