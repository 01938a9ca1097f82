"""DeepSeek's chat API (or any that is compatible): a question in, the answer as it is written.

One HTTP session for the whole server, with deadlines, one retry and a breaker. `Clauses` cuts the
answer into clauses that can be spoken while the rest is still being written. Neither the key nor a
word of anybody is ever logged or put into an error.
Source: api-docs.deepseek.com, chat completions (streaming), rate limits, error codes.
"""

import asyncio
import contextlib
import json
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp

from engine.config import DeepSeekConfig

logger = logging.getLogger(__name__)

RETRY_SECONDS = (0.2, 0.6)  # jitter before the one retry
BREAKER_FAILURES = 3  # in a row
BREAKER_SECONDS = 30.0
MAX_ANSWER_TOKENS = 200
CONNECTIONS = 64
REASONS = {401: "key refused", 402: "no credit"}

FIRST_WORDS = 4  # of the first clause: speech starts with it
LONG_WORDS = 12  # a clause without any punctuation is cut here
MAX_SENTENCES = 3
MAX_WORDS = 90
LONGEST_BRACKET = 200  # characters; a bracket longer than this is none
LIST_MARK = re.compile(r"^\s*(?:[-*•+]|\d{1,2}[.)])\s+", re.MULTILINE)
LIST_MARK_BEGUN = re.compile(r"(?:^|\n)\s*(?:[-*•+]|\d{1,2}[.)]?)?\s*$")
BREAK = re.compile(r"""(?P<end>[.!?…]+["'”’)*_\]]*(?=\s)|\n)|[,;:](?=\s)""")
ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|mr|mrs|ms|dr|st|vs|approx|no|inc|ltd|etc|a\.m|p\.m)|\b[a-z])\.$",
    re.IGNORECASE,
)

Messages = list[dict[str, str]]


class AnswerError(Exception):
    """No answer, or no more of it. Its text is the `reason` of the route event: fixed words."""


class RetryableError(AnswerError):
    """Trying once more may help."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the answer may take, in seconds."""

    connect: float = 3.0
    first_token: float = 5.0
    total: float = 30.0


class Answerer:
    """The server's one way to the text model. Belongs to one event loop.

    After three failures in a row nobody is kept waiting for half a minute.
    """

    def __init__(
        self,
        config: DeepSeekConfig,
        deadlines: Deadlines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.deadlines = deadlines or Deadlines()
        self.failures = 0  # in a row
        self._clock = clock
        self._paused_until = 0.0
        self._http: aiohttp.ClientSession | None = None

    @property
    def has_key(self) -> bool:
        return bool(self.config.api_key)

    async def stream(self, messages: Messages) -> AsyncIterator[str]:
        """Pieces of the answer as they come. Close it (`aclosing`) if you stop early.

        Raises AnswerError.
        """
        if self._clock() < self._paused_until:
            raise AnswerError("paused after failures")
        over_at = asyncio.get_running_loop().time() + self.deadlines.total
        try:
            try:
                response, due = await self._post(messages, over_at)
            except RetryableError:
                await asyncio.sleep(random.uniform(*RETRY_SECONDS))
                response, due = await self._post(messages, over_at)
            with contextlib.closing(response):
                while (piece := read_event(await _read_line(response, due))) is not None:
                    if piece:
                        yield piece
                        due = over_at
        except AnswerError as error:
            self.failures += 1
            if self.failures >= BREAKER_FAILURES:
                self._paused_until = self._clock() + BREAKER_SECONDS
                logger.warning("answers fail (%s); none for %g s", error, BREAKER_SECONDS)
            raise
        except GeneratorExit:  # the listener has heard enough
            self.failures = 0
            raise
        self.failures = 0

    async def close(self) -> None:
        if self._http:
            await self._http.close()
            self._http = None

    async def _post(
        self, messages: Messages, over_at: float
    ) -> tuple[aiohttp.ClientResponse, float]:
        """The answer's beginning, and when its first word is due. Raises AnswerError."""
        due = min(over_at, asyncio.get_running_loop().time() + self.deadlines.first_token)
        url = f"{self.config.base_url.rstrip('/')}/chat/completions"
        body = {
            "model": self.config.model,
            "messages": messages,
            "stream": True,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        if self.config.model.startswith("deepseek"):  # its thinking is on by default, and slow
            body["thinking"] = {"type": "disabled"}
        if self._http is None:  # made in the event loop that uses it
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None, connect=self.deadlines.connect),
                headers={"Authorization": f"Bearer {self.config.api_key}"},
            )
        try:
            async with asyncio.timeout_at(due):
                response = await self._http.post(url, json=body, allow_redirects=False)
        except aiohttp.ClientConnectionError:
            raise RetryableError("no connection") from None
        except TimeoutError:
            raise AnswerError("no answer in time") from None
        except aiohttp.ClientError:
            raise AnswerError("invalid answer") from None
        if response.status == 200:
            return response, due
        response.close()
        if response.status == 429 or response.status >= 500:
            raise RetryableError(f"service busy ({response.status})")
        reason = REASONS.get(response.status, "request refused")
        raise AnswerError(f"{reason} ({response.status})")


async def _read_line(response: aiohttp.ClientResponse, due: float) -> bytes:
    """The next line of the stream. Raises AnswerError."""
    try:
        async with asyncio.timeout_at(due):
            line = await response.content.readline()
    except TimeoutError:
        raise AnswerError("no answer in time") from None
    except (aiohttp.ClientError, ConnectionError):
        raise AnswerError("cut off") from None
    except ValueError:  # longer than a line may be
        raise AnswerError("invalid answer") from None
    if not line:
        raise AnswerError("cut off")
    return line


def read_event(line: bytes) -> str | None:
    """The text of one line of server-sent events; None: the answer is over. Raises AnswerError."""
    kind, _, data = line.strip().partition(b":")
    if kind != b"data":
        return ""  # a blank line or a keep-alive comment
    if data.strip() == b"[DONE]":
        return None
    try:
        choices = json.loads(data)["choices"]
        text = choices[0]["delta"].get("content") if choices else ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise AnswerError("invalid answer") from None
    if not isinstance(text, str | None):
        raise AnswerError("invalid answer")
    return text or ""


class Clauses:
    """Feed pieces of text, take whole clauses; `full` when no more should be read.

    It bounds the answer: three sentences or 90 words. Of markup only list marks go here, because
    they show at line starts alone; the agent's voice removes the rest.
    """

    def __init__(self) -> None:
        self.full = False
        self._text = ""
        self._sentences = self._words = 0

    def feed(self, text: str) -> list[str]:
        """The clauses that are complete now."""
        self._text += text
        clauses = []
        while not self.full and (cut := self._find_cut()):
            clauses += self._take(*cut)
        return clauses

    def finish(self) -> list[str]:
        """The stream is over: what is left of it."""
        return [] if self.full else self._take(len(self._text), True)

    def _take(self, end: int, is_sentence: bool) -> list[str]:
        clause, self._text = LIST_MARK.sub("", self._text[:end]).strip(), self._text[end:]
        words = clause.split()
        if not words:
            return []
        kept = words[: MAX_WORDS - self._words]
        self._words += len(kept)
        self._sentences += is_sentence
        self.full = self._sentences >= MAX_SENTENCES or self._words >= MAX_WORDS
        return [" ".join(kept)]

    def _find_cut(self) -> tuple[int, bool] | None:
        """Where the first whole clause ends, and whether a sentence ends with it."""
        for match in BREAK.finditer(self._text):
            before = self._text[: match.end()]
            if _inside_bracket(before) or LIST_MARK_BEGUN.search(before.rstrip("\n") or "x"):
                continue
            words, is_sentence = len(before.split()), match["end"] is not None
            if is_sentence and ABBREVIATION.search(before):
                continue
            least = FIRST_WORDS if self._words == 0 else 2
            if words >= least or (is_sentence and words):
                return match.end(), is_sentence
        words = list(re.finditer(r"\S+\s", self._text))
        if len(words) < LONG_WORDS or _inside_bracket(self._text):
            return None
        return words[LONG_WORDS - 1].end(), False


def _inside_bracket(text: str) -> bool:
    """Whether a bracket is open, as in a link whose end has not come yet."""
    for opening, closing in ("[]", "()"):
        at = text.rfind(opening)
        if at > text.rfind(closing) and len(text) - at < LONGEST_BRACKET:
            return True
    return False
