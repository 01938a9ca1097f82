"""The product's names as they are heard: `trance gate`, `trans gate` -> `Transgate`.

Names are the words of the facts' titles. A word, or two that stand together, is a name if both
sound alike: consonants only, those of one place in the mouth folded. English spelling.
"""

import re
from collections.abc import Iterable

LEAST_LETTERS = 4
LEAST_SOUNDS = 3  # consonants: shorter ones sound like too many words
FEW_SOUNDS_OFF, MOST_LETTERS_OFF = 1, 3  # letters more or less, with three sounds and with more
COMMON = re.compile(
    r"(?:what|when|where|which|with|your|from|about|that|this|they|them|there|have|does|will|more|"
    r"files?|plans?|things?|who|how|and|the|for)"
)
SOUNDS = (  # in this order
    (r"ph", "f"), (r"^wr", "r"), (r"^kn", "n"), (r"ck|q", "k"), (r"x", "ks"), (r"c(?=[eiy])", "s"),
    (r"c", "k"), (r"z", "s"), (r"gh(?=t|$)", ""), (r"dg|j|g", "k"), (r"d$", "t"), (r"b", "p"),
    (r"v", "f"), (r"(?<!^)[aeiouyhw]", ""), (r"(.)\1+", r"\1"),
)  # fmt: skip
FOLDS = tuple((re.compile(pattern), sound) for pattern, sound in SOUNDS)
WORD = re.compile(r"[A-Za-z']+|\d+|[^\sA-Za-z\d']+")


def sound_of(word: str) -> str:
    """`transgate`, `trancegate` -> `trnskt`; the first vowel counts, which one does not."""
    sound = re.sub(r"[^a-z]", "", word.lower())
    for pattern, fold in FOLDS:
        sound = pattern.sub(fold, sound)
    return re.sub(r"^[aeiouyhw]", "a", sound)


class Names:
    """The names of one base of facts."""

    def __init__(self, titles: Iterable[str]) -> None:
        self._by_sound: dict[str, str] = {}
        for title in titles:
            for word in re.findall(r"[A-Za-z]+", title):
                lower = word.lower()
                sound = sound_of(lower)
                if len(lower) < LEAST_LETTERS or COMMON.fullmatch(lower):
                    continue
                if len(sound) >= LEAST_SOUNDS:
                    self._by_sound.setdefault(sound, word)

    @property
    def words(self) -> tuple[str, ...]:
        """The names, those of whole files first."""
        return tuple(self._by_sound.values())

    def fold(self, text: str) -> tuple[str, bool]:
        """The text with its names written as in the facts, and whether one was heard."""
        words, heard, i = WORD.findall(text), False, 0
        folded = []
        while i < len(words):
            for step in (2, 1):
                name = self._match("".join(words[i : i + step]))
                if name and i + step <= len(words):
                    folded.append(name)
                    heard, i = True, i + step
                    break
            else:
                folded.append(words[i])
                i += 1
        return " ".join(folded), heard

    def _match(self, heard: str) -> str | None:
        if not heard.isalpha() or len(heard) < LEAST_LETTERS:
            return None
        name = self._by_sound.get(sound := sound_of(heard))
        most = MOST_LETTERS_OFF if len(sound) > LEAST_SOUNDS else FEW_SOUNDS_OFF
        return name if name and abs(len(name) - len(heard)) <= most else None
