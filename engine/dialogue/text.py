"""Written text made speakable: the words of a text as the agent is fed them.

`prepare` is the whole way: no markup; then what is written short is read over the whole text, by
the table in `readings.py`; then token by token; then each word with its pieces and its pauses. A
transcript shows what was written while the voice says what is meant. Not a translator: English
only, as the model speaks English.
"""

import functools
import html
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from engine.dialogue.readings import FRACTIONS, READINGS, say_number
from engine.runtime.backend import Tokenizer

FASTEST_FRAMES_PER_LETTER = 0.6  # about 20 letters a second
SLOWEST_FRAMES_PER_LETTER = 1.2
SHORTEST_LIMIT_FRAMES = 8
CLAUSE_PAUSE_FRAMES, SENTENCE_PAUSE_FRAMES = 6, 10
MAX_WORD_LETTERS = 30  # a script without blanks would be one word of minutes
MAX_SENTENCE_WORDS = 40  # longer ones drift from the model's own plan of its prosody

LONGEST_TOKEN = 200  # letters without a blank that are read as one

FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*$", re.MULTILINE)
LINE_MARK = re.compile(r"^[ \t]*(?:(?:#{1,6}|>+|[-*+•])[ \t]+)+", re.MULTILINE)
TABLE_RULE = re.compile(r"^[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*\|)+[ \t:-]*$", re.MULTILINE)
TABLE_ROW = re.compile(r"^[ \t]*\|(.*?)\|?[ \t]*$", re.MULTILINE)
LINK = re.compile(r"!?\[([^\]\[]{0,500})\]\([^)\s(]{0,1000}(?:\s[^)(]{0,200})?\)")
TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>|<!--[^<>]{0,500}-->")
ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{1,5});")
EMPHASIS = re.compile(
    r"(?<![^\s([{\"'“‘])(?:[*_`]+|~~)(?=\S)"  # at the beginning of a word
    r"|(?<=\S)(?:[*_`]+|~~)(?![^\s)\]}.,;:!?\"'”’…])"  # at its end
)
STRAY = re.compile(r"(?<!\S)(?:[#_`|\\]+|(?<![\d)] )(?<!\b\w )\*+)(?!\S)")  # `2 * 3` is none
BANGS = re.compile(r"[!！](?:\s*[!！])*")  # a full-width one too
PUNCTUATION = ".,;:!?…\"'()[]{}“”‘’«»-–—−"
SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
SUPERSCRIPT = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
CHARGE = re.compile(
    r"(?<=[A-Za-z₀-₉)\]])(?P<size>[¹²³⁴-⁹]?)(?P<sign>[⁺⁻])(?![⁰¹²³⁴-⁹ⁿ])"
)  # of an ion
SUBSCRIPT = re.compile(r"(?<=[A-Za-z)\]])[₀-₉]{2,}")
SYMBOLS = {
    "&": "and", "+": "plus", "=": "equals", "@": "at", "%": "percent", "/": "slash",
    "€": "euro", "$": "dollar", "£": "pound", "¥": "yen", "°": "degrees", "×": "times",
    "÷": "divided by", "±": "plus or minus", "≤": "at most", "≥": "at least", "<": "less than",
    ">": "greater than", "≠": "not equal to", "≈": "about", "^": "to the", "#": "number",
    "*": "times", "~": "about", "_": " ", "|": " ", "\\": "backslash", "§": "section",
    "¢": "cents", "₹": "rupees", "₩": "won", "₽": "rubles", "₿": "bitcoin", "™": "",
    "©": "copyright", "®": "", "•": " ", "·": " ", "∞": "infinity", "π": "pi", "′": "",
}  # fmt: skip
SYMBOL = re.compile(f"[{re.escape(''.join(SYMBOLS))}]")
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

    Any thread but the scheduler's: 2000 characters take about 30 ms. rest: called between words, so
    that a thread of its own gives way to the frames.
    """
    words: list[SpokenWord] = []
    for shown, spoken in _pair_words(clean(text), rest or _go_on):
        # in bounded parts: nothing can be cancelled inside a word, or played before its end
        for start in range(0, len(spoken), MAX_WORD_LETTERS):
            part = spoken[start : start + MAX_WORD_LETTERS]
            ids = tuple(tokenizer.encode(part))
            words.append(SpokenWord("" if start else shown, part, ids, _pause_after(part)))
    return tuple(_split_long_sentences(words))


def spell_text(text: str) -> str:
    """A whole text as it is said: `$14` becomes `fourteen dollars`."""
    return " ".join(spoken for _shown, spoken in _pair_words(clean(text), _go_on))


def _go_on() -> None:
    pass


def _pair_words(text: str, rest: Callable[[], object]) -> list[tuple[str, str]]:
    """(shown, spoken) words.

    What cannot be spoken (a dash) is shown with the word before it, or with the first word.
    What is read as one (`$1.5 million`) is shown with the first of its spoken words.
    """
    pairs: list[tuple[str, str]] = []
    latest = 0  # of the words that are shown
    opening: list[str] = []  # tokens that cannot be spoken, before the first word
    for shown, read in read_tokens(text, rest):
        spoken = [word for part in read.split() for word in spell_token(part)]
        rest()
        if spoken:
            first = " ".join([*opening, shown]).strip()
            latest = len(pairs) if first else latest
            pairs.append((first, spoken[0]))
            pairs += [("", word) for word in spoken[1:]]
            opening = []
        elif pairs:
            if shown:
                pairs[latest] = (f"{pairs[latest][0]} {shown}", pairs[latest][1])
        else:
            opening.append(shown)
    return pairs


def read_tokens(text: str, rest: Callable[[], object]) -> Iterator[tuple[str, str]]:
    """(as it is shown, as it is read), token by token; tokens that are read as one are one."""
    shown: list[str] = []
    plain: list[str] = []
    for token in text.split():
        simple = simplify(token) or "·"
        for start in range(0, len(simple), LONGEST_TOKEN):
            plain.append(simple[start : start + LONGEST_TOKEN])
            shown.append("" if start else token)
    written = " ".join(plain)
    taken = bytearray(len(written))
    found: dict[int, tuple[int, str]] = {}  # where a reading begins: its end, its words
    for pattern, say in READINGS:
        rest()
        for match in pattern.finditer(written):
            start, end = match.span()
            if start < end and not any(taken[start:end]):
                taken[start:end] = b"\1" * (end - start)
                found[start] = (end, say(match))
    at, first = 0, 0
    for i, token in enumerate(plain):
        end = at + len(token)
        if end < len(written) and taken[end]:  # the blank after it belongs to a reading
            at = end + 1
            continue
        begin = end - sum(map(len, plain[first : i + 1])) - (i - first)
        yield " ".join(filter(None, shown[first : i + 1])), _put_in(written, begin, end, found)
        at, first = end + 1, i + 1


def _put_in(text: str, at: int, end: int, found: dict[int, tuple[int, str]]) -> str:
    """A part of the text with its readings in the place of what they read."""
    parts: list[str] = []
    while at < end:
        char = text[at]
        if at in found:
            after, words = found[at]
            parts += (" " if text[at - 1 : at].isalnum() else "", words)
            parts.append(" " if text[after : after + 1].isalnum() else "")
            at = after
        else:
            beside = at + 1 in found or (parts and parts[-1] == "")  # a reading, as in `GPT-4`
            parts.append(" " if char == "-" and beside and at > 0 else char)
            at += 1
    return "".join(parts)


def _read_charge(match: re.Match) -> str:
    """`²⁺` of an ion -> ` 2 plus `."""
    size = SUPERSCRIPTS.get(match["size"], "")
    return f" {size} {'plus' if match['sign'] == '⁺' else 'minus'} "


def simplify(token: str) -> str:
    """A token with plain digits and signs: `x²` -> `x^2`, `①` -> `1`, `−` stays as it is."""
    token = CHARGE.sub(_read_charge, token)
    token = SUBSCRIPT.sub(lambda match: f" {match[0]} ", token)
    token = SUPERSCRIPT.sub(
        lambda match: "^" + "".join(SUPERSCRIPTS[char] for char in match[0]), token
    )
    return "".join(char if char.isascii() else _simplify_char(char) for char in token)


@functools.lru_cache(4096)
def _simplify_char(char: str) -> str:
    if char in FRACTIONS or char in SYMBOLS or char in "´¨…":
        return char
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    plain = unicodedata.normalize("NFKC", char) if not char.isalpha() or char > "\uf900" else char
    if plain == "μ":
        return "µ"
    if char == "№":
        return "No."
    if plain[-2:] in ("m2", "m3"):  # `㎡`
        return f"{plain[:-1]}^{plain[-1]}"
    if char.isnumeric() and plain == char and not char.isalpha():  # old and foreign digits
        return f" {unicodedata.numeric(char):g} "
    return "".join(plain.split()) or char


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
    """Text without markup, links, emoji or control characters; blanks single, `!` never in runs.

    It is what is shown: signs that mean something stay (`5 < 10`, `C#`, `snake_case`).
    """
    text = "".join(" " if _is_unspeakable(c) else c for c in text)
    for pattern, instead in (
        (FENCE, " "), (TABLE_RULE, " "), (TABLE_ROW, _read_row), (LINE_MARK, ""), (LINK, r"\1"),
        (TAG, " "), (ENTITY, lambda match: html.unescape(match[0])), (EMPHASIS, ""), (STRAY, " "),
    ):  # fmt: skip
        text = pattern.sub(instead, text)
    return BANGS.sub("!", " ".join(text.split()))


def _read_row(match: re.Match) -> str:
    """`| a | b |` -> `a, b.`"""
    row = ", ".join(cell.strip() for cell in match[1].split("|") if cell.strip())
    return row if row[-1:] in ".!?" else f"{row}."


@functools.lru_cache(4096)
def _is_unspeakable(char: str) -> bool:
    """Emoji, pictographs and control characters; not `℃`, which is letters in one sign."""
    if char.isascii():
        return not char.isprintable() and char != "\n"
    kind = unicodedata.category(char)
    if char in EMOJI_PARTS:
        return True
    if kind not in ("So", "Cc", "Cf", "Co", "Cs", "Cn") or char in SYMBOLS or char.isnumeric():
        return False
    return not any(part.isalnum() for part in unicodedata.normalize("NFKC", char))


def spell_token(token: str) -> list[str]:
    """The words to say for one token that no reading has taken: signs named, `-` between parts."""
    core = token.strip(PUNCTUATION)
    if not core:
        return []
    words = _spell_core(core)
    if words:
        tail = token[token.rindex(core) + len(core) :]
        words[-1] += "".join(c for c in tail if c in ".,;:!?…")[:1]
    return words


def _spell_core(core: str) -> list[str]:
    if SYMBOL.search(core):
        core = SYMBOL.sub(lambda match: f" {SYMBOLS[match[0]]} ", core)
    elif core.isalpha() and core.isascii():
        return [core]
    core = re.sub(r"[0-9]+", lambda match: f" {say_number(match[0])} ", core)
    words = [part.strip(PUNCTUATION) for part in core.split()]
    return [word for word in words if any(c.isalnum() for c in word)]
