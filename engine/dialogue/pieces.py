"""Text pieces to text: ▁ is a blank, bytes wait until they are valid UTF-8."""

import codecs
import re

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
BYTES_ONLY = re.compile(r"▁?(<0x[0-9A-F]{2}>)+")


class PieceDecoder:
    """Turns a stream of pieces into text, one call a piece."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, piece: str) -> str:
        """The text that is complete with this piece; may be empty in the middle of a character."""
        if not BYTES_ONLY.fullmatch(piece):
            return self.flush() + piece.replace("▁", " ")
        blank = self.flush() + " " if piece.startswith("▁") else ""
        data = bytes(int(byte, 16) for byte in BYTE.findall(piece))
        return blank + self._utf8.decode(data)

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD; usually nothing."""
        left = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return left
