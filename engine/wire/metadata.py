"""0x04: the JSON of events, and the JSON clients may send (wire.md 3)."""

import json
from typing import Any

from engine.dialogue import events as ev
from engine.errors import RefusedError

FIELDS: dict[type, tuple[str, tuple[str, ...]]] = {  # event -> its type on the wire, its fields
    ev.Saying: ("say", ("id", "state", "text", "spoken")),
    ev.Route: ("route", ("id", "state", "question", "source", "knowledge", "reason")),
    ev.UserText: ("user_text", ("text", "start", "end", "final")),
    ev.Closing: ("closing", ("reason", "seconds_left")),
}


def event_json(event: ev.Event, seconds: float) -> bytes | None:
    """The payload of an event; None for what travels as another kind or not at all."""
    if type(event) not in FIELDS:
        return None
    name, fields = FIELDS[type(event)]
    return message(name, seconds, **{field: getattr(event, field) for field in fields})


def message(name: str, seconds: float, **fields: Any) -> bytes:
    """Any 0x04 payload; `seconds` of agent audio were sent before it."""
    return json.dumps({"type": name, "t": round(seconds, 3), **fields}, ensure_ascii=False).encode()


def parse(payload: bytes) -> tuple[str, dict[str, Any]]:
    """(type, object) of a client's message. Raises RefusedError if it is not what it should be."""
    try:
        data = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"metadata is not JSON ({str(error)[:60]}); send an object") from None
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise RefusedError('metadata needs a type; send {"type": "say", "text": …}')
    return data["type"], data


def text_field(data: dict[str, Any]) -> str:
    """The `text` of a message. Raises RefusedError if it is not a string of whole characters."""
    text = data.get("text")
    if not isinstance(text, str):
        raise RefusedError(f"{data['type']}: text is missing or not a string; send text")
    if any("\ud800" <= char <= "\udfff" for char in text):  # JSON can spell half a character
        raise RefusedError(f"{data['type']}: text is not valid Unicode; send whole characters")
    return text
