"""Audio as it travels on one socket, in both directions: an Ogg/Opus byte stream, or raw PCM16.

Opus is `sphn` 0.2.1, which has four traps. Its reader hangs after garbage, so only whole pages
reach it. It decodes a whole page at once, which stops all other threads (10 ms for 4 s of audio),
and refuses more than 5 s, so packets go in one by one. It makes 5 s of an empty packet, so these
are left out. Its encoder breaks on NaN, so samples are made finite before it.
"""

import zlib
from collections.abc import Iterator

import numpy as np

from engine.config import SAMPLE_RATE
from engine.errors import BadAudioError, BadParameterError

PAGE = b"OggS\0"  # every Ogg page begins with it: the name, and its version
PAGE_HEAD = 27  # bytes, of which the last says how many lengths of segments follow
CONTINUED, LAST = 1, 4  # flags of a page: it begins within a packet; it ends the stream
PART_BYTES = 2 * SAMPLE_RATE  # of pcm16 that are decoded at once: 1 s
MOST_STRAY_BYTES = 3000  # between two pages; then it is no Ogg stream
MOST_BROKEN_PAGES = 8  # beyond one in ten: to look at one costs more than to send it
SEEN_PACKETS = 4  # messages for each configuration of Opus, or they are not called its packets
MOST_PACKET_BYTES = 1275  # of one Opus frame
INT16_SCALE = 32768
NOTHING = np.zeros(0, np.float32)
SEND_OGG = "send Ogg/Opus at 24 kHz mono, or connect with format=pcm16"
MARKS = (  # where its mark stands, the mark, what it is, what to do
    (0, b"OggS", "Ogg", "connect with format=opus"),
    (0, b"\x1a\x45\xdf\xa3", "WebM, as MediaRecorder makes it", SEND_OGG),
    (0, b"RIFF", "a WAV file", "connect with format=pcm16 and send its samples at 24 kHz mono"),
    (0, b"ID3", "MP3", SEND_OGG),
    *((0, bytes([0xFF, second]), "MP3", SEND_OGG) for second in (0xFB, 0xF3, 0xF2)),
    *((0, bytes([0xFF, second]), "AAC", SEND_OGG) for second in (0xF1, 0xF9)),
    (0, b"fLaC", "FLAC", SEND_OGG),
    (4, b"ftyp", "MP4, as MediaRecorder makes it", SEND_OGG),
    (0, b"OpusHead", "Opus without Ogg", f"put each packet on an Ogg page: {SEND_OGG}"),
    (0, b"OpusTags", "Opus without Ogg", f"put each packet on an Ogg page: {SEND_OGG}"),
)
LONGEST_MARK = 8


def name_format(data: bytes, shortest: int = 3) -> tuple[str, str] | None:
    """(what a file or stream that begins so is, what to do); None: it cannot be told.

    shortest: marks of fewer bytes do not count, because samples may begin so, too.
    """
    for at, mark, name, fix in MARKS:
        if len(mark) >= shortest and data[at : at + len(mark)] == mark:
            return name, fix
    return None


class PcmCodec:
    """Signed 16-bit little-endian samples, 24 kHz, mono."""

    skipped = 0

    def __init__(self) -> None:
        self._begun = False

    def decode(self, payload: bytes) -> Iterator[np.ndarray]:
        if not self._begun and payload:
            self._begun = True
            found = name_format(payload, shortest=4)
            if found and found[0] != "a WAV file":  # its head is a click, the rest is samples
                fix = f"{found[1]}, or send raw samples"
                raise BadAudioError(f"this is {found[0]}, not pcm16; {fix}", f"{found[0]} as pcm16")
        if len(payload) % 2:
            raise BadAudioError(
                f"{len(payload)} bytes of pcm16 are not whole samples; send an even length",
                "an odd length of pcm16",
            )
        for at in range(0, len(payload), PART_BYTES):  # the caller may rest between them
            part = np.frombuffer(payload[at : at + PART_BYTES], "<i2")
            yield part.astype(np.float32) / INT16_SCALE

    def encode(self, pcm: np.ndarray) -> bytes:
        return (clip_finite(pcm) * (INT16_SCALE - 1)).astype("<i2").tobytes()

    def split(self, data: bytes) -> list[bytes]:
        return [data] if data else []


class OpusCodec:
    """One Ogg/Opus stream each way, 24 kHz, mono."""

    def __init__(self) -> None:
        try:
            import sphn  # here: a pcm16 conversation does not need it
        except ModuleNotFoundError:  # it has no wheel for Linux on ARM
            raise BadParameterError(
                "format is 'opus', for which this server lacks its codec (sphn); "
                "connect with format=pcm16",
                "format: no codec here",
            ) from None

        self._reader = sphn.OpusStreamReader(SAMPLE_RATE)
        self._writer = sphn.OpusStreamWriter(SAMPLE_RATE)
        self._pages = PageReader()

    @property
    def skipped(self) -> int:
        """Bytes so far that belonged to no page, or to a damaged one."""
        return self._pages.skipped

    def decode(self, payload: bytes) -> Iterator[np.ndarray]:
        for page in self._pages.feed(payload):
            yield NOTHING  # a page may hold no packet, and the caller may rest after it
            try:
                for packet in split_page(page):
                    yield self._reader.append_bytes(packet)
            except ValueError as error:
                if has_right_checksum(page):
                    what = "Ogg/Vorbis" if b"vorbis" in page[:64] else f"not Ogg/Opus ({error})"
                    raise BadAudioError(f"this is {what}; {SEND_OGG}", "not Opus") from error
                self._pages.drop(page)

    def encode(self, pcm: np.ndarray) -> bytes:
        return self._writer.append_pcm(clip_finite(pcm))

    def split(self, data: bytes) -> list[bytes]:
        """One message a page: readers that look once a message lose the second of two."""
        pages = []
        while data:
            size = find_page_size(data)
            assert size, "the encoder makes whole pages"
            pages.append(data[:size])
            data = data[size:]
        return pages


def make_codec(fmt: str) -> PcmCodec | OpusCodec:
    """The codec of a format's name (one of `protocol.FORMATS`), for one socket.

    `decode` brings samples in parts of float32 [n], or raises BadAudioError; `encode` takes [n];
    `split` cuts what it made into messages.
    """
    return PcmCodec() if fmt == "pcm16" else OpusCodec()


def clip_finite(pcm: np.ndarray) -> np.ndarray:
    """Samples within −1 to 1, and 0 in the place of NaN."""
    clipped = np.clip(pcm, -1, 1).astype(np.float32, copy=False)
    clipped[np.isnan(clipped)] = 0
    return clipped


def split_page(page: bytes) -> Iterator[bytes]:
    """A whole Ogg page -> a page for each of its packets, and none for those that are empty.

    Their checksums are wrong; the reader does not look at them.
    """
    flags, lengths = page[5], page[PAGE_HEAD : PAGE_HEAD + page[PAGE_HEAD - 1]]
    begin, at = 0, PAGE_HEAD + len(lengths)
    for end, length in enumerate(lengths, 1):
        if length == 255 and end < len(lengths):
            continue  # the packet goes on
        ours, size = lengths[begin:end], sum(lengths[begin:end])
        kept = (flags if begin == 0 else flags & LAST) & (0xFF if end == len(lengths) else ~LAST)
        if size or kept & CONTINUED:
            head = page[:5] + bytes([kept]) + page[6 : PAGE_HEAD - 1] + bytes([len(ours)])
            yield head + ours + page[at : at + size]
        begin, at = end, at + size


# -- Ogg pages -------------------------------------------------------------------------------------


class PageReader:
    """Whole Ogg pages out of a stream in any cut. What stands between them is skipped."""

    def __init__(self) -> None:
        self.skipped = 0  # bytes
        self._held = bytearray()
        self._begun = False  # its first bytes were looked at
        self._stray = 0  # bytes since the last whole page
        self._broken = 0.0  # pages, less a tenth of the whole ones
        self._packets: list[int] | None = []  # first bytes of messages that hold no page

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises BadAudioError for what is no Ogg stream, by its name where that can be told."""
        held = self._held
        held += data
        if not self._begun:
            if len(held) < LONGEST_MARK:
                return
            self._begun = True
            found = name_format(bytes(held[:LONGEST_MARK]), shortest=2)
            if found and found[0] != "Ogg":
                raise BadAudioError(f"this is {found[0]}, not Ogg/Opus; {found[1]}", found[0])
        if self._packets is not None:
            self._packets += data[:1] if len(data) <= MOST_PACKET_BYTES else b"\0"
        while held:
            at = held.find(PAGE)
            if at < 0:  # the last bytes may be the first ones of a page
                at = len(held) - next(n for n in (4, 3, 2, 1, 0) if held.endswith(PAGE[:n]))
            self._skip(at)
            size = find_page_size(held)
            if size is None or size > len(held):
                return
            if not size:
                self._skip(len(PAGE))
                continue
            inner = held.find(PAGE, 1, size)
            if inner > 0 and not has_right_checksum(bytes(held[:size])):  # the page lost its end
                self._drop_broken(inner)
                continue
            page = bytes(held[:size])
            del held[:size]
            self._stray, self._broken = 0, max(0.0, self._broken - 0.1)
            self._packets = None
            yield page

    def drop(self, page: bytes) -> None:
        """Count a page that was handed out and is damaged."""
        self.skipped += len(page)

    def _skip(self, count: int) -> None:
        if not count:
            return
        del self._held[:count]
        self.skipped += count
        self._stray += count
        if self._stray > MOST_STRAY_BYTES:
            if are_packets(self._packets):
                fix = f"put them on Ogg pages: {SEND_OGG}"
                raise BadAudioError(f"these are raw Opus packets, not Ogg; {fix}", "raw Opus")
            raise BadAudioError(
                f"not an Ogg/Opus stream (no page in {self._stray} bytes); {SEND_OGG}", "not Ogg"
            )

    def _drop_broken(self, count: int) -> None:
        del self._held[:count]
        self.skipped += count
        self._broken += 1
        if self._broken > MOST_BROKEN_PAGES:
            raise BadAudioError(
                f"not an Ogg/Opus stream (too many broken pages); {SEND_OGG}",
                "broken pages",
            )


def find_page_size(data: bytes | bytearray) -> int | None:
    """How long the page is that begins here; 0: it is none; None: too little is there to say."""
    if len(data) > 5 and data[5] > 7:  # flags
        return 0
    if len(data) < PAGE_HEAD:
        return None
    table = data[PAGE_HEAD : PAGE_HEAD + data[26]]
    if len(table) < data[26]:
        return None
    return PAGE_HEAD + len(table) + sum(table)


REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def has_right_checksum(page: bytes) -> bool:
    """Whether a page is as its writer made it.

    Its checksum is zlib's with all bits the other way round, without zlib's complements.
    """
    blank = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(blank.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2) == int.from_bytes(page[22:26], "little")


def are_packets(first_bytes: list[int] | None) -> bool:
    """Whether messages look like Opus packets: an encoder's configurations are few."""
    if not first_bytes or min(first_bytes) < 8:
        return False
    return len({byte >> 3 for byte in first_bytes}) * SEEN_PACKETS <= len(first_bytes)
