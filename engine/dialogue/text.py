"""Written text made speakable: the words of a text as the agent is fed them.

`prepare` is the whole way: no markup; numbers, prices, units and symbols as words; each word with
its pieces and its pauses. Word for word, so that a transcript can show what was written while the
voice says what is meant. Not a translator: English only, as the model speaks English.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.runtime.backend import Tokenizer

if TYPE_CHECKING:
    from unicode_rbnf import RbnfEngine

FASTEST_FRAMES_PER_LETTER = 0.6  # about 20 letters a second
SLOWEST_FRAMES_PER_LETTER = 1.2
SHORTEST_LIMIT_FRAMES = 8
CLAUSE_PAUSE_FRAMES, SENTENCE_PAUSE_FRAMES = 6, 10
MAX_WORD_LETTERS = 30  # a script without blanks would be one word of minutes
MAX_SENTENCE_WORDS = 40  # longer ones drift from the model's own plan of its prosody

MARKUP = re.compile(r"[*_`~#>|\\<]+|(?<=\s)[-•]+(?=\s)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
URL = re.compile(r"https?://(?:www\.)?([^\s/)]+)\S*")
BANGS = re.compile(r"[!！](?:\s*[!！])*")  # a full-width one too
NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
CURRENCIES = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "pence")}
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


@dataclass(frozen=True, slots=True)
class SpokenWord:
    shown: str  # what was written; "" where the written word goes on (`$14` is two spoken words)
    spoken: str
    ids: tuple[int, ...]  # its pieces, fed in consecutive frames
    pause: int = 0  # frames by which the next word may be later

    @property
    def need(self) -> int:
        """Frames from its start before the next word may start."""
        return max(len(self.ids) + 1, math.ceil(FASTEST_FRAMES_PER_LETTER * len(self.spoken)))

    @property
    def ring_out(self) -> int:
        """Frames from its start after which it has surely been spoken."""
        slow = math.ceil(SLOWEST_FRAMES_PER_LETTER * len(self.spoken)) + 2
        return max(SHORTEST_LIMIT_FRAMES, slow, self.need)

    @property
    def limit(self) -> int:
        """Frames from its start when the next word starts at the latest."""
        return self.ring_out + self.pause


def prepare(
    text: str, tokenizer: Tokenizer, rest: Callable[[], object] | None = None
) -> tuple[SpokenWord, ...]:
    """All words of a text, in order; nothing is dropped. Empty if there is nothing to say.

    Any thread but the scheduler's: 2000 characters take about 20 ms. rest: called between words, so
    that a thread of its own gives way to the frames.
    """
    words: list[SpokenWord] = []
    for shown, spoken in _pair_words(clean(text), rest):
        # in bounded parts: nothing can be cancelled inside a word, or played before its end
        for start in range(0, len(spoken), MAX_WORD_LETTERS):
            part = spoken[start : start + MAX_WORD_LETTERS]
            ids = tuple(tokenizer.encode(part))
            words.append(SpokenWord("" if start else shown, part, ids, _pause_after(part)))
    return tuple(_split_long_sentences(words))


def _pair_words(text: str, rest: Callable[[], object] | None) -> list[tuple[str, str]]:
    """(shown, spoken) words; what cannot be spoken (a dash) is shown with the word before it."""
    pairs: list[tuple[str, str]] = []
    opening: list[str] = []  # tokens that cannot be spoken, before the first word
    for token in text.split():
        spoken = spell_token(token)
        if rest:
            rest()
        if spoken:
            pairs.append((" ".join([*opening, token]), spoken[0]))
            pairs += [("", word) for word in spoken[1:]]
            opening = []
        elif pairs:
            pairs[-1] = (f"{pairs[-1][0]} {token}".strip(), pairs[-1][1])
        else:
            opening.append(token)
    return pairs


def _pause_after(spoken: str) -> int:
    if re.search(r"[.?!…]$", spoken):
        return SENTENCE_PAUSE_FRAMES
    return CLAUSE_PAUSE_FRAMES if re.search(r"[,;:]$", spoken) else 0


def _split_long_sentences(words: list[SpokenWord]) -> Iterator[SpokenWord]:
    """Give sentences of more than 40 words a pause: at their last comma, else where they are."""
    start = comma = 0
    breaks = set()
    for i, word in enumerate(words):
        if word.pause:
            comma = i + 1
        if word.pause == SENTENCE_PAUSE_FRAMES:
            start = i + 1
        elif i + 1 - start >= MAX_SENTENCE_WORDS:
            start = comma if comma > start else i + 1
            breaks.add(start - 1)
    for i, word in enumerate(words):
        yield replace(word, pause=SENTENCE_PAUSE_FRAMES) if i in breaks else word


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


def spell_token(token: str) -> list[str]:
    """The words to say for one written token: `$14.` -> [`fourteen`, `dollars.`]."""
    core = token.strip(PUNCTUATION)
    words = _spell_core(core) if core else []
    if words and core[0] in "0123456789$€£" and MINUS.search(token[: token.index(core)]):
        words.insert(0, "minus")
    if words:
        tail = token[token.rindex(core) + len(core) :]
        words[-1] += "".join(c for c in tail if c in ".,;:!?…")[:1]
    return words


def spell_text(text: str) -> str:
    """A whole text as it is said, for texts of our own making: `$14` becomes `fourteen dollars`."""
    return " ".join(word for token in clean(text).split() for word in spell_token(token) or [token])


def _spell_core(core: str) -> list[str]:
    """A number with its currency or unit as one; else digits spoken, symbols named."""
    for pattern, speak in FORMS:
        if match := pattern.fullmatch(core):
            return speak(match).replace("-", " ").replace(",", "").split()
    if not re.search(r"[\d&+=@%/€$£°]", core):
        return [core]
    parts = re.findall(rf"{NUMBER}|[&+=@%/€$£°]|[^\d&+=@%/€$£°]+", core)
    words: list[str] = []
    for part in parts:
        if part in SYMBOLS:
            words.append(SYMBOLS[part])
        elif part[0].isdigit():
            words += _spell_cardinal(part).replace("-", " ").replace(",", "").split()
        elif part.strip(PUNCTUATION):
            words.append(part.strip(PUNCTUATION))
    return words


def _spell_cardinal(number: str) -> str:
    """`1,200.50` -> `one thousand two hundred point five zero`; long digit runs digit by digit."""
    whole, _, decimals = number.replace(",", "").partition(".")
    if len(whole) > 12 or (len(whole) > 1 and whole[0] == "0"):
        spoken = _spell_digits(whole)
    else:
        spoken = _format_number(int(whole)).replace(" and ", " ")
    return f"{spoken} point {_spell_digits(decimals)}" if decimals else spoken


def _format_number(number: int, to: str = "cardinal") -> str:
    """A whole number as a `cardinal`, an `ordinal` or a `year`."""
    from unicode_rbnf import FormatPurpose

    return _number_speller().format_number(number, FormatPurpose[to.upper()]).text


@functools.cache
def _number_speller() -> "RbnfEngine":
    """The rules of the Unicode consortium for English, read once and only when needed."""
    from unicode_rbnf import RbnfEngine

    return RbnfEngine.for_language("en")


def _spell_digits(digits: str) -> str:
    return " ".join(_format_number(int(d)) for d in digits)


def _spell_price(match: re.Match) -> str:
    """`$1.49` -> `one dollar and forty-nine cents`."""
    major, minor = CURRENCIES[match["currency"]]
    whole, _, decimals = match["number"].replace(",", "").partition(".")
    main = f"{_spell_cardinal(whole)} {major}{'s' if int(whole) != 1 else ''}"
    if not decimals or int(decimals) == 0:
        return main
    if len(decimals) > 2:
        return f"{_spell_cardinal(match['number'])} {major}s"
    cents = int(decimals.ljust(2, "0"))
    plural = minor if minor == "pence" or cents == 1 else f"{minor}s"
    part = f"{_spell_cardinal(str(cents))} {plural}"
    return part if int(whole) == 0 else f"{main} and {part}"


def _spell_quantity(match: re.Match) -> str:
    """`20GB` -> `twenty gigabytes`, `95–98%` -> `ninety-five to ninety-eight percent`."""
    spoken = _spell_cardinal(match["number"])
    if match["upto"]:
        spoken += f" to {_spell_cardinal(match['upto'])}"
    unit = (match["unit"] or "").lower()
    name = UNITS.get(unit, "")
    if match["number"] == "1" and not match["upto"] and name.endswith("s") and unit != "°c":
        name = name.removesuffix("s")
    return f"{spoken} {name}"


def _spell_date(match: re.Match) -> str:
    """`2026-10-27` -> `October twenty-seventh twenty twenty-six`; impossible ones digit-wise."""
    year, month, day = int(match["year"]), int(match["month"]), int(match["day"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return " ".join(_spell_cardinal(str(number)) for number in (year, month, day))
    ordinal, spoken_year = _format_number(day, to="ordinal"), _format_number(year, to="year")
    return f"{MONTHS[month - 1]} {ordinal} {spoken_year}"


def _spell_version(match: re.Match) -> str:
    """`v1.2.3` -> `version one point two point three`."""
    numbers = " point ".join(_spell_cardinal(part) for part in match["numbers"].split("."))
    return f"version {numbers}" if match["v"] else numbers


def _spell_time(match: re.Match) -> str:
    """`14:05` -> `fourteen oh five`."""
    hour, minute = _spell_cardinal(str(int(match["hour"]))), int(match["minute"])
    if minute == 0:
        return f"{hour} o'clock" if int(match["hour"]) <= 12 else f"{hour} hundred"
    return f"{hour} {'oh ' if minute < 10 else ''}{_spell_cardinal(str(minute))}"


UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
FORMS = tuple(
    (re.compile(pattern, re.IGNORECASE), speak)
    for pattern, speak in (
        (rf"(?P<currency>[$€£])(?P<number>{NUMBER})", _spell_price),
        (rf"(?P<number>{NUMBER})(?P<currency>[€$£])", _spell_price),
        (r"(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})", _spell_date),
        (r"(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)", _spell_time),
        (r"(?P<v>v)(?P<numbers>\d{1,6}(?:\.\d{1,6})*)", _spell_version),
        (r"(?P<v>)(?P<numbers>\d{1,6}(?:\.\d{1,6}){2,})", _spell_version),
        (
            r"(?P<number>\d{1,9})(?:st|nd|rd|th)",
            lambda match: _format_number(int(match["number"]), to="ordinal"),
        ),
        (r"1[1-9]\d\d|20\d\d", lambda match: _format_number(int(match[0]), to="year")),
        (rf"(?P<number>{NUMBER})(?:[-–](?P<upto>{NUMBER}))?(?P<unit>{UNIT})?", _spell_quantity),
    )
)
