"""The fixed words of smart routing, from `assets/phrases.toml`: data, checked once at start."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError

PHRASES_FILE = Path(__file__).parents[2] / "assets" / "phrases.toml"


@dataclass(frozen=True, slots=True)
class Phrases:
    """What is said and listened for."""

    announcements: tuple[str, ...]  # the agent's own: it will look
    fillers: tuple[str, ...]  # the first after 0.7 s, the second after 8 s
    no_key: str
    failed: str
    late: str
    broken_off: str
    system: str  # the prompt of the text model
    without_facts: str
    smalltalk: tuple[str, ...]  # everyday sentences that need no facts


def load_phrases(path: Path = PHRASES_FILE) -> Phrases:
    """Raises ConfigError naming what is wrong in the file."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        apologies, answerer = data["apologies"], data["answerer"]
        phrases = Phrases(
            announcements=_lines(data["announcements"]),
            fillers=_lines(data["fillers"]),
            **{name: str(apologies[name]) for name in ("no_key", "failed", "late", "broken_off")},
            system=" ".join(answerer["system"].split()),
            without_facts=str(answerer["without_facts"]),
            smalltalk=_lines(data["smalltalk"]),
        )
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path.name}: {error}; mend the file") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path.name}: {error} is missing or of a wrong kind; add it") from None
    if bad := [text for text in phrases.announcements if re.search(r"[^a-z' ]", text)]:
        raise ConfigError(f"{path.name}: announcement {bad[0]!r}; use a-z, blanks, apostrophes")
    return phrases


def _lines(value: list[str]) -> tuple[str, ...]:
    return tuple(str(line) for line in value)
