"""The protocol of `/api`: message kinds, control bytes, and two pure functions.

Version 1 of docs/api.md. Compatible with the public Moshi and PersonaPlex clients.
"""

from enum import IntEnum

from engine.errors import ProtocolError

VERSION = 1
MAX_MESSAGE_BYTES = 256 * 1024
PATHS = ("/api", "/api/chat")


class Kind(IntEnum):
    """Byte 0 of every binary message."""

    HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR, PING, SAY = range(8)  # 0x00 to 0x07


class Control(IntEnum):
    """The byte of a control message."""

    START, END_TURN, PAUSE, RESTART = range(4)


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """One WebSocket message."""
    return bytes([kind]) + payload


def decode(message: bytes) -> tuple[Kind, bytes]:
    """Split one WebSocket message. Raises ProtocolError if it is empty or of an unknown kind."""
    if not message or message[0] >= len(Kind):
        raise ProtocolError(f"first byte is {message[:1].hex() or 'missing'}; kinds are 00 to 07")
    return Kind(message[0]), message[1:]
