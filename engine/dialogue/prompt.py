"""The persona as the model reads it: wrapped in `<system>` tags, tokenised (model.md 6.3)."""

from engine.runtime.backend import Tokenizer

TAG = "<system>"  # ordinary text for the tokenizer; the closing tag has no slash


def wrap(text: str) -> str:
    """The role text between its tags; unchanged if it has them; empty stays empty."""
    cleaned = text.strip()
    if not cleaned or (cleaned.startswith(TAG) and cleaned.endswith(TAG)):
        return cleaned
    return f"{TAG} {cleaned} {TAG}"


def prompt_ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of a persona; none for an empty one."""
    wrapped = wrap(text)
    return tuple(tokenizer.encode(wrapped)) if wrapped else ()
