"""Written text made speakable: no markup, and numbers, prices, units and symbols as words.

Word for word, so that a transcript can show what was written while the voice says what is meant.
Not a translator: English only, as the model speaks English.
"""

import functools
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unicode_rbnf import RbnfEngine
import codecs

MARKUP = re.compile(r"[*_`~#>|\\<]+|(?<=\s)[-•]+(?=\s)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
URL = re.compile(r"https?://(?:www\.)?([^\s/)]+)\S*")
BANGS = re.compile(r"[!！](?:\s*[!！])*")  # a full-width one too
NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
CURRENCIES = {
    "$": ("dollar", "cent"),
    "€": ("euro", "cent"),
    "£": ("pound", "pence"),
}
UNITS = {
    "%": "percent",
    "kb": "kilobytes",
    "mb": "megabytes",
    "gb": "gigabytes",
    "tb": "terabytes",
    "ms": "milliseconds",
    "s": "seconds",
    "h": "hours",
    "min": "minutes",
    "km": "kilometers",
    "kg": "kilograms",
    "hz": "hertz",
    "khz": "kilohertz",
    "°c": "degrees Celsius",
    "°": "degrees",
}
SYMBOLS = {
    "&": "and",
    "+": "plus",
    "=": "equals",
    "@": "at",
    "%": "percent",
    "/": "slash",
    "€": "euro",
    "$": "dollar",
    "£": "pound",
    "°": "degrees",
}
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
PUNCTUATION = ".,;:!?…\"'()[]{}“”‘’«»-–—−"
MINUS = re.compile(r"[-−]$")  # what stands before a number
EMOJI_PARTS = "\ufe0e\ufe0f\u20e3🏻🏼🏽🏾🏿"  # variants, keycaps, skin tones: nothing alone


def clean(text: str) -> str:
    """Text without markup, links, emoji or control characters; blanks single, `!` never in runs."""
    text = LINK.sub(r"\1", text)
    text = URL.sub(r"\1", text)
    text = "".join(" " if _is_unspeakable(c) else c for c in text)
    text = MARKUP.sub(" ", text)
    return BANGS.sub("!", " ".join(text.split()))


def _is_unspeakable(char: str) -> bool:
    """Emoji, pictographs and control characters."""
    kind = unicodedata.category(char)
    return char in EMOJI_PARTS or (kind in ("So", "Cc", "Cf", "Co", "Cs") and char != "°")


def spell(token: str) -> list[str]:
    """The words to say for one written token: `$14.` -> [`fourteen`, `dollars.`]."""
    core = token.strip(PUNCTUATION)
    words = (_number_words(core) or _mixed_words(core)) if core else []
    if words and core[0] in "0123456789$€£" and MINUS.search(token[: token.index(core)]):
        words.insert(0, "minus")
    if words:
        tail = token[token.rindex(core) + len(core) :]
        words[-1] += "".join(c for c in tail if c in ".,;:!?…")[:1]
    return words


def spelled(text: str) -> str:
    """A whole text as it is said, for texts of our own making: `$14` becomes `fourteen dollars`."""
    return " ".join(word for token in clean(text).split() for word in spell(token) or [token])


def _number_words(core: str) -> list[str]:
    """Words of a token that is a number with its sign, currency or unit; else nothing."""
    for pattern, speak in FORMS:
        if match := pattern.fullmatch(core):
            return speak(match).replace("-", " ").replace(",", "").split()
    return []


def _mixed_words(core: str) -> list[str]:
    """Words of anything else: digits inside it are spoken, symbols named, the rest stays."""
    if not re.search(r"[\d&+=@%/€$£°]", core):
        return [core]
    parts = re.findall(rf"{NUMBER}|[&+=@%/€$£°]|[^\d&+=@%/€$£°]+", core)
    words: list[str] = []
    for part in parts:
        if part in SYMBOLS:
            words.append(SYMBOLS[part])
        elif part[0].isdigit():
            words += _cardinal(part).replace("-", " ").replace(",", "").split()
        elif part.strip(PUNCTUATION):
            words.append(part.strip(PUNCTUATION))
    return words


def _cardinal(number: str) -> str:
    """`1,200.50` -> `one thousand two hundred point five zero`; long digit runs digit by digit."""
    whole, _, decimals = number.replace(",", "").partition(".")
    if len(whole) > 12 or (len(whole) > 1 and whole[0] == "0"):
        spoken = _digits(whole)
    else:
        spoken = _in_words(int(whole)).replace(" and ", " ")
    return f"{spoken} point {_digits(decimals)}" if decimals else spoken


def _in_words(number: int, to: str = "cardinal") -> str:
    """A whole number as a `cardinal`, an `ordinal` or a `year`."""
    from unicode_rbnf import FormatPurpose

    return _number_speller().format_number(number, FormatPurpose[to.upper()]).text


@functools.cache
def _number_speller() -> "RbnfEngine":
    """The rules of the Unicode consortium for English, read once and only when needed."""
    from unicode_rbnf import RbnfEngine

    return RbnfEngine.for_language("en")


def _digits(digits: str) -> str:
    return " ".join(_in_words(int(d)) for d in digits)


def _price(match: re.Match) -> str:
    """`$1.49` -> `one dollar and forty-nine cents`."""
    major, minor = CURRENCIES[match["currency"]]
    whole, _, decimals = match["number"].replace(",", "").partition(".")
    main = f"{_cardinal(whole)} {major}{'s' if int(whole) != 1 else ''}"
    if not decimals or int(decimals) == 0:
        return main
    if len(decimals) > 2:
        return f"{_cardinal(match['number'])} {major}s"
    cents = int(decimals.ljust(2, "0"))
    plural = minor if minor == "pence" or cents == 1 else f"{minor}s"
    part = f"{_cardinal(str(cents))} {plural}"
    return part if int(whole) == 0 else f"{main} and {part}"


def _quantity(match: re.Match) -> str:
    """`20GB` -> `twenty gigabytes`, `95–98%` -> `ninety-five to ninety-eight percent`."""
    spoken = _cardinal(match["number"])
    if match["upto"]:
        spoken += f" to {_cardinal(match['upto'])}"
    unit = (match["unit"] or "").lower()
    name = UNITS.get(unit, "")
    if match["number"] == "1" and not match["upto"] and name.endswith("s") and unit != "°c":
        name = name.removesuffix("s")
    return f"{spoken} {name}"


def _date(match: re.Match) -> str:
    """`2026-10-27` -> `October twenty-seventh twenty twenty-six`; impossible ones digit-wise."""
    year, month, day = int(match["year"]), int(match["month"]), int(match["day"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return f"{_cardinal(str(year))} {_cardinal(str(month))} {_cardinal(str(day))}"
    return f"{MONTHS[month - 1]} {_in_words(day, to='ordinal')} {_in_words(year, to='year')}"


def _version(match: re.Match) -> str:
    """`v1.2.3` -> `version one point two point three`."""
    numbers = " point ".join(_cardinal(part) for part in match["numbers"].split("."))
    return f"version {numbers}" if match["v"] else numbers


def _time(match: re.Match) -> str:
    """`14:05` -> `fourteen oh five`."""
    hour, minute = _cardinal(str(int(match["hour"]))), int(match["minute"])
    if minute == 0:
        return f"{hour} o'clock" if int(match["hour"]) <= 12 else f"{hour} hundred"
    return f"{hour} {'oh ' if minute < 10 else ''}{_cardinal(str(minute))}"


def _year(match: re.Match) -> str:
    return _in_words(int(match[0]), to="year")


def _ordinal(match: re.Match) -> str:
    return _in_words(int(match["number"]), to="ordinal")


UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
FORMS = tuple(
    (re.compile(pattern, re.IGNORECASE), speak)
    for pattern, speak in (
        (rf"(?P<currency>[$€£])(?P<number>{NUMBER})", _price),
        (rf"(?P<number>{NUMBER})(?P<currency>[€$£])", _price),
        (r"(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})", _date),
        (r"(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)", _time),
        (r"(?P<v>v)(?P<numbers>\d{1,6}(?:\.\d{1,6})*)", _version),
        (r"(?P<v>)(?P<numbers>\d{1,6}(?:\.\d{1,6}){2,})", _version),
        (r"(?P<number>\d{1,9})(?:st|nd|rd|th)", _ordinal),
        (r"1[1-9]\d\d|20\d\d", _year),
        (rf"(?P<number>{NUMBER})(?:[-–](?P<upto>{NUMBER}))?(?P<unit>{UNIT})?", _quantity),
    )
)


# -- pieces ----------------------------------------------------------------------------------------
#
# Text pieces to text: ▁ is a blank, bytes wait until they are valid UTF-8.

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
