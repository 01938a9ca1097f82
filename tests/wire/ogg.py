"""Ogg pages as other clients make them; sphn's own writer is only one of them."""

import struct

import numpy as np

EMPTY_PACKET_PAGE = struct.pack("<4sBBqIIIB", b"OggS", 0, 0, 0, 42, 2, 0, 1) + b"\0"


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


CRC_TABLE = _crc_table()


def crc(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFFFFFF) ^ CRC_TABLE[(value >> 24) ^ byte]
    return value


def page(packets: list[bytes], flags: int, granule: int, number: int, serial: int = 7) -> bytes:
    """One whole Ogg page."""
    lacing = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in packets)
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, number, 0, len(lacing))
    whole = head + lacing + b"".join(packets)
    return whole[:22] + struct.pack("<I", crc(whole)) + whole[26:]


def pages(stream: bytes) -> list[bytes]:
    """A stream cut before each page."""
    return [b"OggS" + part for part in stream.split(b"OggS")[1:]]


def packets(stream: bytes) -> list[bytes]:
    """The packets of a stream, headers too."""
    found, rest = [], b""
    for one in pages(stream):
        count = one[26]
        at = 27 + count
        for size in one[27 : 27 + count]:
            rest += one[at : at + size]
            at += size
            if size < 255:
                found.append(rest)
                rest = b""
    return found


def peak(pcm: np.ndarray) -> float:
    return float(np.abs(pcm).max()) if len(pcm) else 0.0
