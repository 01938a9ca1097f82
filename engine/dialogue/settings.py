"""What a conversation is asked to be, and when it ends by itself: data only."""

from dataclasses import dataclass, field

from engine.config import SamplingConfig


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What a client asked for (wire.md 2)."""

    text_prompt: str | None = None  # None: the default persona; "": none
    voice: str | None = None  # None: the default voice
    seed: int = -1  # -1: random
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    routing: bool | None = None  # None: the server's default
    transcribe: bool = True  # write down the user, where there is a recogniser


@dataclass(frozen=True, slots=True)
class Limits:
    """When a session ends by itself, in seconds."""

    unheard_s: float = 60.0  # no message at all
    silence_s: float = 300.0  # neither user speech nor anything said
    session_s: float = 1800.0
