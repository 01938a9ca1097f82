"""Who the agent is told to be: the presets of `assets/personas.toml`, and a persona as a prompt."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from engine.runtime.backend import Tokenizer

PERSONAS_FILE = Path(__file__).parents[2] / "assets" / "personas.toml"
MAX_PROMPT_CHARS = 4000
TAG = "<system>"  # ordinary text for the tokenizer; the closing tag has no slash


@dataclass(frozen=True, slots=True)
class Persona:
    id: str
    title: str
    text: str


def load_personas(path: Path = PERSONAS_FILE) -> tuple[Persona, ...]:
    """All presets, the default one first. Raises ConfigError naming what is wrong in the file."""
    with path.open("rb") as file:
        try:
            entries = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path.name}: {error}; mend the file") from error
    personas = []
    for key, entry in entries.items():
        entry = entry if isinstance(entry, dict) else {}
        title, text = entry.get("title"), entry.get("text")
        if not isinstance(title, str) or not isinstance(text, str):
            raise ConfigError(f"{path.name}: [{key}] needs a title and a text")
        if len(text) > MAX_PROMPT_CHARS:
            raise ConfigError(f"{path.name}: [{key}] has {len(text)} characters; use up to 4000")
        personas.append(Persona(key, title, " ".join(text.split())))
    if not personas:
        raise ConfigError(f"{path.name}: no persona in it; add one")
    return tuple(personas)


def prompt_ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of a persona between its tags, added where it has none; none for an empty one."""
    text = text.strip()
    if text and not (text.startswith(TAG) and text.endswith(TAG)):
        text = f"{TAG} {text} {TAG}"
    return tuple(tokenizer.encode(text)) if text else ()
