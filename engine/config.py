"""Numbers and settings: constants of the frame clock, and frozen dataclasses that check themselves.

Not a global settings object: what needs a setting is given it.
"""

import ipaddress
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from engine.errors import ConfigError

logger = logging.getLogger(__name__)

SAMPLE_RATE = 24_000  # Hz, mono
FRAME_RATE = 12.5  # frames per second
FRAME_SAMPLES = int(SAMPLE_RATE / FRAME_RATE)  # 1920 samples, 80 ms: the budget of one step
FRAME_SECONDS = 1 / FRAME_RATE
MAX_WAITING_FRAMES = 375  # of one user, 30 s: beyond them the oldest go unheard
LATE_SECONDS = 0.120  # from a complete user frame to its agent frame sent: more is late

PAD = 3  # text token "no new word in this frame"
EPAD = 0  # text token "a word starts in the next frame" (end of padding)

VOICE_NAMES = (  # the voices of the public checkpoint; the first is our default
    *("NATF2", "NATF0", "NATF1", "NATF3", "NATM0", "NATM1", "NATM2", "NATM3"),
    *("VARF0", "VARF1", "VARF2", "VARF3", "VARF4", "VARM0", "VARM1", "VARM2", "VARM3", "VARM4"),
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """A closed range of one setting."""

    low: float
    high: float

    def check(self, name: str, value: float) -> None:
        """Raises ConfigError naming the setting, its value and the range."""
        if not self.low <= value <= self.high:  # NaN fails too
            low, high = (f"{end:.15g}" for end in (self.low, self.high))  # every digit of 2**31
            raise ConfigError(f"{name} is {str(value)[:40]}; use {low} to {high}")


REPETITION_CONTEXT = Bounds(1, 4096)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How tokens are picked, per conversation (docs/api.md)."""

    text_temperature: float = 0.7  # 0 is greedy
    audio_temperature: float = 0.8  # 0 is greedy
    text_top_k: int = 25  # clamped to the vocabulary
    audio_top_k: int = 250  # clamped to the vocabulary
    pad_bias: float = 0.0  # added to the logit of PAD: positive speaks less
    repetition_penalty: float = 1.0  # logit > 0 divided by it, else multiplied
    repetition_context: int = 64  # last fed text tokens it looks at; PAD and EPAD exempt

    def __post_init__(self) -> None:
        Bounds(0, 2).check("text_temperature", self.text_temperature)
        Bounds(0, 2).check("audio_temperature", self.audio_temperature)
        Bounds(1, 2**31 - 1).check("text_topk", self.text_top_k)
        Bounds(1, 2**31 - 1).check("audio_topk", self.audio_top_k)
        Bounds(-4, 4).check("pad_mult", self.pad_bias)
        Bounds(0.5, 2).check("repetition_penalty", self.repetition_penalty)
        REPETITION_CONTEXT.check("repetition_penalty_context", self.repetition_context)


GREEDY = SamplingConfig(text_temperature=0, audio_temperature=0)


def setting(default: Any, env: str, help_text: str) -> Any:
    """A field of ServerConfig: its default, its environment variable, its help."""
    return field(default=default, metadata={"env": f"PERSONAPLEX_{env}", "help": help_text})


QUOTES = ('""', "''", "``", "“”", "””", "‘’", "’’")
PRECISIONS = ("auto", "bf16", "int8")
PATH = r"(/[\w~-][\w.~-]*)"  # a part of one
ROOT_PATH = re.compile(rf"(https?://[\w.\-:\[\]]+)?{PATH}*", re.ASCII)
SWITCH_WORDS = {
    **dict.fromkeys(("1", "on", "yes", "true"), True),
    **dict.fromkeys(("0", "off", "no", "false"), False),
}
SERVER_BOUNDS = {
    "port": Bounds(0, 65535),
    "slots": Bounds(0, 256),
    **dict.fromkeys(("idle_s", "silence_s", "session_s"), Bounds(1, 86_400)),
    "drain_s": Bounds(0, 20),
    "resume_s": Bounds(0, 600),
    **dict.fromkeys(("hang_s", "load_hang_s"), Bounds(0.5, 86_400)),
    "marker_threshold": Bounds(2, 3),
    "asks_per_minute": Bounds(1, 600),
    "asks_per_day": Bounds(0, 10**9),
    "renewal_frames": Bounds(0, 2900),
    "max_sockets_total": Bounds(1, 100_000),
    "max_sockets_per_address": Bounds(1, 100_000),
}


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything an operator can set: `--name`, or `PERSONAPLEX_NAME` in the environment."""

    host: str = setting("0.0.0.0", "HOST", "address to listen on")
    port: int = setting(8998, "PORT", "port of page and /api")
    tls: str = setting("", "TLS", "self: https and wss with a certificate of our own making")
    tls_cert: str = setting("", "TLS_CERT", "a certificate's file (PEM): https and wss")
    tls_key: str = setting("", "TLS_KEY", "its private key's file (PEM)")
    model: str = setting("auto", "MODEL", "auto, embedded, a directory or a HF repository")
    revision: str = setting("", "REVISION", "revision of the repository; empty: the pinned one")
    transcribe: str = setting(
        "auto",
        "TRANSCRIBE",
        "who writes down the user's words: auto, 0 (nobody), 1, a directory or a HF repository",
    )
    device: str = setting("auto", "DEVICE", "auto, cuda or cpu")
    slots: int = setting(0, "SLOTS", "conversations at once; 0: as many as fit")
    weights: str = setting("auto", "WEIGHTS", "auto (as `bench drift` has judged), bf16 or int8")
    kv: str = setting("auto", "KV", "keys and values: auto, bf16 or int8")
    eager: bool = setting(False, "EAGER", "1: no CUDA graphs")
    renewal_frames: int = setting(1000, "RENEWAL_FRAMES", "frames kept past the context; 0: off")
    token: str = setting("", "TOKEN", "shared secret of page and /api; empty: open to everybody")
    allowed_origins: tuple[str, ...] = setting(
        ("*",),
        "ALLOWED_ORIGINS",
        "origins whose pages may read /healthz and /voices and, if named, use the page's cookie",
    )
    open_metrics: bool = setting(False, "OPEN_METRICS", "1: /metrics needs no token")
    max_sockets_total: int = setting(1000, "MAX_SOCKETS_TOTAL", "open connections, of all clients")
    max_sockets_per_address: int = setting(
        200, "MAX_SOCKETS_PER_ADDRESS", "open connections of one address"
    )
    trusted_proxies: tuple[str, ...] = setting(
        ("127.0.0.0/8", "::1"), "TRUSTED_PROXIES", "networks whose X-Forwarded-For is believed"
    )
    frame_ancestors: str = setting(
        "'self'", "FRAME_ANCESTORS", "pages that may show ours in a frame, as 'self' https://HOST"
    )
    root_path: str = setting(
        "", "ROOT_PATH", "where a proxy shows the server: /talk, or the whole https://HOST/talk"
    )
    voice: str = setting(VOICE_NAMES[0], "VOICE", "default voice")
    idle_s: float = setting(60.0, "IDLE_S", "end after this long without any message")
    silence_s: float = setting(300.0, "SILENCE_S", "end after this long without anybody speaking")
    session_s: float = setting(1800.0, "SESSION_S", "longest conversation")
    resume_s: float = setting(
        30.0, "RESUME_S", "keep a conversation whose line dropped for this long; 0: it is over"
    )
    routing: bool = setting(True, "ROUTING", "look questions up unless a client says routing=0")
    marker_threshold: int = setting(3, "MARKER_THRESHOLD", "2 or 3 exclamation marks hand over")
    knowledge: str = setting("", "KNOWLEDGE", "folder of the facts (.md, .txt); empty: our own")
    asks_per_minute: int = setting(10, "ASKS_PER_MINUTE", "questions looked up per conversation")
    asks_per_day: int = setting(2000, "ASKS_PER_DAY", "questions looked up per server and day")
    drain_s: float = setting(3.0, "DRAIN_S", "what live conversations get when the server stops")
    hang_s: float = setting(30.0, "HANG_S", "end the process when a turn takes longer: it hangs")
    load_hang_s: float = setting(
        600.0, "LOAD_HANG_S", "end the process when loading makes no progress for this long"
    )

    def __post_init__(self) -> None:
        for name, bounds in SERVER_BOUNDS.items():
            bounds.check(name, getattr(self, name))
        for name in ("weights", "kv"):
            if (value := getattr(self, name)) not in PRECISIONS:
                raise ConfigError(f"{name} is {value!r}; use {', '.join(PRECISIONS)}")
        if self.tls not in ("", "self"):
            raise ConfigError(f"tls is {self.tls!r}; use self, or --tls-cert and --tls-key")
        if bool(self.tls_cert) != bool(self.tls_key) or (self.tls and self.tls_cert):
            raise ConfigError("--tls-cert and --tls-key go together, and without --tls self")
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy, strict=False)
            except ValueError:
                raise ConfigError(
                    f"trusted_proxies has {proxy!r}; use addresses or networks such as 10.0.0.0/8"
                ) from None
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}; use auto, cuda or cpu")
        if not self.frame_ancestors.isprintable() or set(self.frame_ancestors) & set(",;"):
            raise ConfigError(
                f"frame_ancestors is {self.frame_ancestors!r}; use addresses with blanks between"
            )
        root = self.root_path.rstrip("/")
        root = f"/{root}" if root and root[0] != "/" and ":" not in root else root
        if not ROOT_PATH.fullmatch(root):
            raise ConfigError(f"root_path is {self.root_path!r}; use /talk or https://HOST/talk")
        object.__setattr__(self, "root_path", root)

    @property
    def base_path(self) -> str:
        """The path of `root_path`, which a proxy may leave in what it hands on: /talk, or empty."""
        return urlsplit(self.root_path).path.rstrip("/")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], **given: Any) -> "ServerConfig":
        """Settings given by name win over the environment, that over the defaults."""
        values = dict(given)
        for entry in fields(cls):
            name = entry.metadata["env"]
            text = environ.get(name, "")
            if text and entry.name not in given:
                if entry.name == "token":
                    text = trim_token(name, text)
                values[entry.name] = parse_setting(name, text, entry.default)
        return cls(**values)


def trim(text: str) -> str:
    """A value as it was meant: files and consoles leave line ends, blanks and quotes around it."""
    trimmed = text.strip()
    if len(trimmed) > 1 and trimmed[0] + trimmed[-1] in QUOTES:
        trimmed = trimmed[1:-1].strip()
    return trimmed


def trim_token(name: str, text: str) -> str:
    """A token without what stands around it, and a warning. Raises ConfigError: nothing is left.

    Whoever set one wanted a closed server, so it must not open.
    """
    trimmed = trim(text)
    if not trimmed:
        raise ConfigError(f"{name} has nothing but blanks or quotes; set a token, or unset it")
    if trimmed != text:
        logger.warning("%s has blanks, a line end or quotes around it: they are left out", name)
    return trimmed


def is_root_path(text: str) -> bool:
    """Whether this is a path such as /voice or /a/b."""
    return bool(re.fullmatch(f"{PATH}+", text, re.ASCII))


def choose_recogniser(config: ServerConfig, environ: Mapping[str, str]) -> str:
    """The recogniser that a model is to have: a directory, a repository, 1, or "" for none.

    `auto` wants the usual one where its words have a use: with routing on, and a key.
    """
    if config.transcribe == "auto":
        has_key = bool(DeepSeekConfig.from_environment(environ).api_key)
        return "1" if config.routing and has_key else ""
    return "" if config.transcribe == "0" else config.transcribe


def parse_setting(name: str, text: str, default: Any) -> Any:
    """A setting's text as the type of its default. Raises ConfigError."""
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(default, bool):
        return parse_switch(name, text)
    try:
        return type(default)(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; use a number such as {default}") from None


def parse_switch(name: str, text: str) -> bool:
    """On or off, in the words that people use. Raises ConfigError."""
    if (word := text.strip().lower()) not in SWITCH_WORDS:
        raise ConfigError(f"{name} is {text!r}; use 1 (on, yes, true) or 0 (off, no, false)")
    return SWITCH_WORDS[word]


def is_address(text: str) -> bool:
    """Whether this is https://HOST/… or http://HOST/…, without blanks."""
    try:
        parts = urlsplit(text)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:  # a bracket or a port that is none
        return False
    is_whole = parts.scheme in ("http", "https") and bool(parts.hostname)
    return is_whole and port_is_right and text.isprintable() and " " not in text


@dataclass(frozen=True, slots=True)
class DeepSeekConfig:
    """Where answers come from. Only from the environment: a key on a command line is public."""

    api_key: str = field(default="", repr=False)  # empty: nothing is looked up
    base_url: str = "https://api.deepseek.com"
    model: str = "deepseek-flash"

    def __post_init__(self) -> None:
        if not is_address(self.base_url):
            raise ConfigError(f"DEEPSEEK_BASE_URL is {self.base_url[:80]!r}; use https://…")
        if not self.api_key.isascii() or not self.api_key.isprintable():
            raise ConfigError("DEEPSEEK_API_KEY has characters that no key has; copy it again")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "DeepSeekConfig":
        """`DEEPSEEK_API_KEY`, `DEEPSEEK_BASE_URL`, `DEEPSEEK_MODEL`; empty is unset."""
        given = {entry.name: environ.get(f"DEEPSEEK_{entry.name.upper()}") for entry in fields(cls)}
        return cls(**{name: text.strip() for name, text in given.items() if text and text.strip()})
