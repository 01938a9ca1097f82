"""Who the agent is told to be: the presets of `assets/personas.toml`, and a persona as a prompt."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from engine.runtime.backend import Tokenizer

PERSONAS_FILE = Path(__file__).parents[2] / "assets" / "personas.toml"
MAX_PROMPT_CHARS = 4000
ANY_TAG = re.compile(r"<\s{0,3}/?\s{0,3}system\s{0,3}>", re.IGNORECASE)  # as people close it
TAG = "<system>"  # ordinary text for the tokenizer; the closing tag has no slash


@dataclass(frozen=True, slots=True)
class Persona:
    id: str
    title: str
    text: str
    looks_up: bool = False  # questions about the product are looked up, unless a client says no
    facts: str = ""  # the folder of `assets` that it looks them up in; empty: the server's own
    line: str = ""  # who it is, on the page
    to_try: str = ""  # what to ask it first


def find_persona(text: str, personas: Sequence[Persona]) -> Persona | None:
    """The preset that a prompt is; None for a text of the user's own."""
    words = " ".join(strip_tags(text).split())
    return next((persona for persona in personas if persona.text == words), None)


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
        looks_up, facts = entry.get("looks_up", False), entry.get("facts", "")
        if not isinstance(looks_up, bool) or not isinstance(facts, str):
            raise ConfigError(f"{path.name}: [{key}] looks_up is true or false, facts a folder")
        if facts and not (path.parent / facts).is_dir():
            raise ConfigError(f"{path.name}: [{key}] facts is {facts!r}; no such folder beside it")
        line, to_try = str(entry.get("line", "")), str(entry.get("try", ""))
        text = " ".join(text.split())
        persona = Persona(key, title, text, looks_up or bool(facts), facts, line, to_try)
        personas.append(persona)
    if not personas:
        raise ConfigError(f"{path.name}: no persona in it; add one")
    return tuple(personas)


def prompt_ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of a persona between its tags, added where it has none; none for an empty one."""
    text = wrap(text)
    return tuple(tokenizer.encode(text)) if text else ()


def wrap(text: str) -> str:
    """A persona between its tags, once, whatever tags of whatever case it came with."""
    text = text.strip()
    bare = strip_tags(text)
    if not bare:
        return ""
    inside = text.removeprefix(TAG).removesuffix(TAG)
    is_wrapped = text == f"{TAG}{inside}{TAG}" and inside == strip_tags(inside)
    return text if is_wrapped else f"{TAG} {bare} {TAG}"


def strip_tags(text: str) -> str:
    """A persona without the tags at its ends, however many there are."""
    while match := ANY_TAG.match(text.lstrip()):
        text = text.lstrip()[match.end() :].lstrip()
    while ANY_TAG.fullmatch(text.rstrip(), begin := max(0, text.rfind("<"))):
        text = text[:begin].rstrip()
    return text
