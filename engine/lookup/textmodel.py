"""DeepSeek's chat API (or any that is compatible): a question in, the answer as it is written.

One HTTP session for the whole server, with deadlines, one retry and a breaker. `Thoughts` drops
what a model thinks aloud. `Clauses` cuts the answer into clauses that can be spoken while the rest
is still being written. Every answer is bounded by 64 kB and the deadlines, and is read in time that
grows with its length only. Neither the key nor a word of anybody is ever logged or put into an
error.

Our own instead of the `openai` package: that one reads lines of any length into memory, knows
neither a plain JSON answer nor `<think>`, and would still need the deadlines and the breaker; it
adds 71 MB and 0.6 s of import.
Source: api-docs.deepseek.com, chat completions (streaming), rate limits, error codes.
"""

import asyncio
import codecs
import contextlib
import email.utils
import json
import logging
import random
import re
import string
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from engine.config import DeepSeekConfig

logger = logging.getLogger(__name__)

FIRST_WORD_SECONDS = 12.0  # from the question on, retry included; both fillers come before
RETRY_SECONDS = (0.2, 0.6)  # jitter before the one retry, unless the service says how long
BREAKER_FAILURES = 3  # in a row
BREAKER_SECONDS = 30.0
MAX_ANSWER_BYTES = 64 * 1024  # of text, and of all that comes without text
LEAST_COST = 16  # bytes that one event counts, however little it brings
MAX_ANSWER_TOKENS = 400
CONNECTIONS = 64
IDLE_SECONDS = 60.0  # a connection waits this long for the next question
DRAIN_SECONDS = 0.5  # for the end of an answer that was heard, so that its connection can stay
REASONS = {401: "key refused", 402: "no credit"}
PATH = "/chat/completions"

ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
FIRST_WORDS = 4  # of the first clause: speech starts with it
LONG_WORDS = 12  # a clause without any punctuation is cut here
MAX_SENTENCES = 3  # but short ones go on to LEAST_WORDS
LEAST_WORDS, MAX_WORDS = 25, 90  # an answer ends with the sentence that passes the second
LONGEST_WORDS = 150  # of a list or a table, or of a text without any end
MORE = "And there is more."  # a list that is longer
LONGEST_CLAUSE = 300  # characters, about: what is in brackets is not cut before
LONGEST_ROW = 400  # characters of a table's row
LONGEST_WORD = 200  # letters; what has no blanks is cut there
LONG_LETTERS = 10  # without a blank take as long to say as a word
LONGEST_END = 200  # characters that may end a sentence
LIST_MARK = re.compile(r"[-*•+–]|\d{1,2}[.)]")
RULE_CELL = re.compile(r"\s*:?-+:?\s*")  # of the line below a table's head
PARTS = re.compile(rf"\n|[^\S\n]+|\S{{1,{LONGEST_WORD}}}")
SENTENCE_END = re.compile(r"""[.!?…]+["'”’)*_\]]*$""")
ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|mr|mrs|ms|dr|st|vs|approx|no|inc|ltd|etc|a\.m|p\.m)|\b[a-z])\.$",
    re.IGNORECASE,
)
LONGEST_ABBREVIATION = 8  # letters

Messages = list[dict[str, str]]


class AnswerError(Exception):
    """No answer, or no more of it. Its text is the `reason` of the route event: fixed words."""


class ServiceError(AnswerError):
    """The service's own trouble, which the next question would meet as well."""


class RetryableError(ServiceError):
    """Trying once more may help, after so many seconds."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = random.uniform(*RETRY_SECONDS) if seconds is None else seconds


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the answer may take, in seconds."""

    connect: float = 3.0
    first_token: float = FIRST_WORD_SECONDS
    total: float = 30.0


class Answerer:
    """The server's one way to the text model. Belongs to one event loop.

    After three failures of the service in a row nobody is kept waiting for half a minute. What it
    refuses or answers oddly is one caller's trouble.
    """

    def __init__(
        self,
        config: DeepSeekConfig,
        deadlines: Deadlines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.deadlines = deadlines or Deadlines()
        self.failures = 0  # of the service, in a row
        self._clock = clock
        self._paused_until = 0.0
        self._http: aiohttp.ClientSession | None = None
        self._addresses = list_addresses(config.base_url)  # the first one that is there stays
        self._draining: set[asyncio.Task] = set()
        self._thinks_first = False  # its answers begin in a thought whose opening tag is not sent

    @property
    def has_key(self) -> bool:
        return bool(self.config.api_key)

    async def stream(self, messages: Messages) -> AsyncIterator[str]:
        """Pieces of the answer as they come. Close it (`aclosing`) if you stop early.

        Raises AnswerError.
        """
        if self._clock() < self._paused_until:
            raise AnswerError("paused after failures")
        begun = asyncio.get_running_loop().time()
        over_at = begun + self.deadlines.total
        thoughts = Thoughts(self._thinks_first)
        due = min(over_at, begun + self.deadlines.first_token)
        try:
            response = await self._ask(messages, due)
            try:
                answer = read_answer(response, due, over_at, thoughts)
                async with contextlib.aclosing(answer) as pieces:
                    async for piece in pieces:
                        yield piece
                self._thinks_first = thoughts.began_inside
            except GeneratorExit:  # the listener has heard enough
                self._drain(response)
                raise
            except BaseException:  # cancelled, or broken: the connection is of no more use
                response.close()
                raise
            finally:
                self._thinks_first |= thoughts.began_inside
            self._drain(response)
        except ServiceError as error:
            self.failures += 1
            if self.failures >= BREAKER_FAILURES:
                self._paused_until = self._clock() + BREAKER_SECONDS
                logger.warning("answers fail (%s); none for %g s", error, BREAKER_SECONDS)
            raise
        except GeneratorExit:
            self.failures = 0
            raise
        self.failures = 0

    async def close(self) -> None:
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)
        if self._http:
            await self._http.close()
            self._http = None

    def _drain(self, response: aiohttp.ClientResponse) -> None:
        """Read what is left of an answer aside, so that its connection serves the next question."""
        task = asyncio.get_running_loop().create_task(_read_to_end(response))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _ask(self, messages: Messages, due: float) -> aiohttp.ClientResponse:
        """The answer's beginning, at the second try at the latest. Raises AnswerError."""
        try:
            return await self._post(messages, due)
        except RetryableError as error:
            if asyncio.get_running_loop().time() + error.seconds >= due:
                raise  # it would come too late
            await asyncio.sleep(error.seconds)
            return await self._post(messages, due)

    async def _post(self, messages: Messages, due: float) -> aiohttp.ClientResponse:
        """Raises AnswerError."""
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": messages,
            "stream": True,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        if self.config.model.startswith("deepseek"):  # its thinking is on by default, and slow
            body["thinking"] = {"type": "disabled"}
        if self._http is None:  # made in the event loop that uses it
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=IDLE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None, connect=self.deadlines.connect),
                headers={
                    "Authorization": f"Bearer {self.config.api_key}",
                    "Accept-Encoding": "identity",  # what is packed small may be large
                },
            )
        for i, url in enumerate(self._addresses):
            try:
                async with asyncio.timeout_at(due):
                    response = await self._http.post(url, json=body, allow_redirects=False)
            except aiohttp.ClientConnectionError:
                raise RetryableError("no connection") from None
            except TimeoutError:
                raise AnswerError("no answer in time") from None
            except (aiohttp.ClientError, ValueError):
                raise AnswerError("invalid answer") from None
            if response.status == 200:
                self._addresses = [url]
                return response
            self._drain(response)
            if response.status not in (404, 405) or i + 1 == len(self._addresses):
                break
        if response.status == 429 or response.status >= 500:
            seconds = read_retry_after(response.headers.get("Retry-After", ""))
            raise RetryableError(f"service busy ({response.status})", seconds)
        reason = REASONS.get(response.status, "request refused")
        raise AnswerError(f"{reason} ({response.status})")


def list_addresses(base_url: str) -> list[str]:
    """Where questions may go, likeliest first: people write a base with `/v1`, or without."""
    base, mark, query = base_url.partition("?")
    base = base.rstrip("/").removesuffix(PATH)
    other = base.removesuffix("/v1") if base.endswith("/v1") else f"{base}/v1"
    return [f"{address}{PATH}{mark}{query}" for address in (base, other)]


def read_retry_after(value: str) -> float | None:
    """The seconds of a `Retry-After`, which may be a date; None: it says nothing."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


async def _read_to_end(response: aiohttp.ClientResponse) -> None:
    """Read and forget, for half a second and 64 kB; then hang up."""
    left = MAX_ANSWER_BYTES
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0 and (data := await response.content.readany()):
                left -= len(data)
    except (TimeoutError, aiohttp.ClientError, ConnectionError):
        pass
    finally:
        response.close()  # nothing, if it has come to its end


async def read_answer(
    response: aiohttp.ClientResponse, due: float, over_at: float, thoughts: "Thoughts"
) -> AsyncIterator[str]:
    """The words of a stream of events, or of one JSON text. Raises AnswerError.

    due: when the first word must be there, by the loop's clock; over_at: the last one.
    """
    left = MAX_ANSWER_BYTES
    plain: list[bytes] = []  # the lines of one JSON text
    lines = AnswerLines(response, due)
    async for line in lines:
        if plain or line.lstrip().startswith(b"{"):
            plain.append(line)
            piece, cost = Piece(), len(line)
        else:
            piece = read_event(line)
            cost = max(len(piece.text) + len(piece.thought) or len(line), LEAST_COST)
        left -= cost
        if left < 0:
            raise AnswerError("invalid answer")
        said = thoughts.feed(piece.text) + (thoughts.finish() if piece.is_over else "")
        if said:
            yield said
            lines.due = over_at
        if piece.is_cut:
            raise AnswerError("cut off")
        if piece.is_over:
            return
    if not plain:
        raise ServiceError("cut off")
    piece = read_json(b"\n".join(plain))
    said = thoughts.feed(piece.text)
    if thoughts.began_inside:
        said = Thoughts(inside=True).feed(piece.text)
    if said := said + thoughts.finish():
        yield said


class AnswerLines:
    """The lines of an answer, of at most 64 kB each, until the other side ends.

    Raises AnswerError. due: when the next line must be there, by the loop's clock.
    """

    LINES_A_ROUND = 32  # of the event loop: what has come at once is not all read at once

    def __init__(self, response: aiohttp.ClientResponse, due: float) -> None:
        self.due = due
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        begun: list[bytes] = []
        size = 0
        while data := await self._read():
            *lines, rest = data.split(b"\n")
            for count, line in enumerate(lines, 1):
                if size + len(line) > MAX_ANSWER_BYTES:
                    raise AnswerError("invalid answer")
                yield b"".join((*begun, line))
                begun, size = [], 0
                if count % self.LINES_A_ROUND == 0:
                    await asyncio.sleep(0)
            begun.append(rest)
            size += len(rest)
            if size > MAX_ANSWER_BYTES:
                raise AnswerError("invalid answer")
        if size:
            yield b"".join(begun)

    async def _read(self) -> bytes:
        try:
            async with asyncio.timeout_at(self.due):
                data = await self._response.content.readany()
        except TimeoutError:
            raise AnswerError("no answer in time") from None
        except (aiohttp.ClientError, ConnectionError):
            raise ServiceError("cut off") from None
        if asyncio.get_running_loop().time() > self.due:  # what never stops lets no timeout happen
            raise AnswerError("no answer in time")
        return data


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event of an answer brings."""

    text: str = ""
    thought: str = ""  # the model's reasoning, which nobody hears
    is_over: bool = False
    is_cut: bool = False  # the model had no more tokens


def read_event(line: bytes) -> Piece:
    """One line of server-sent events. Raises AnswerError."""
    kind, _, data = line.removeprefix(codecs.BOM_UTF8).strip().partition(b":")
    if kind != b"data" or not data.strip():
        return Piece()  # a blank line or a keep-alive comment
    if data.strip() == b"[DONE]":
        return Piece(is_over=True)
    return read_json(data)


def read_json(data: bytes) -> Piece:
    """One event, or a whole answer that did not come as a stream. Raises AnswerError."""
    try:
        event = json.loads(data)
        if event.get("error"):
            raise AnswerError("invalid answer")
        choices = event.get("choices") or [{}]  # Azure's first event has none
        choice = choices[0]
        said = choice.get("delta") or choice.get("message") or {}
        reason = choice.get("finish_reason")
        text = said.get("content")
        if isinstance(text, list):  # parts of a text, as some write it
            text = "".join(part.get("text", "") for part in text)
        thought = said.get("reasoning_content") or said.get("reasoning")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise AnswerError("invalid answer") from None
    if not isinstance(text, str | None):
        raise AnswerError("invalid answer")
    thought = thought if isinstance(thought, str) else ""
    return Piece(text or "", thought, bool(reason), reason == "length")


class Thoughts:
    """Drops `<think>…</think>` from an answer, however it is split; the rest goes through.

    inside: the answer begins in a thought, most likely. Some services keep its opening tag to
    themselves, which only the closing one shows: then `began_inside` tells it for the next answer.
    An answer without any tag was no thought: `finish` gives all of it back.
    """

    TAGS = ("<think>", "<thinking>", "<reasoning>")
    ENDS = tuple(f"</{tag[1:]}" for tag in TAGS)
    LONGEST = len("</reasoning>")

    def __init__(self, inside: bool = False) -> None:
        self._held = ""  # what may be the beginning of a tag
        self._closing = self.ENDS if inside else ()  # the tags that end a thought
        self._opened = False  # by a tag
        self._doubted: list[str] = []  # all of an answer that is taken for a thought without a tag
        self._doubts = inside
        self.began_inside = False

    def feed(self, text: str) -> str:
        """What is surely to be said."""
        if self._doubts:
            self._doubted.append(text)
        return "".join(self._take(self._held + text))

    def finish(self) -> str:
        """The stream is over: what looked like a tag was none."""
        held, self._held = self._held, ""
        if self._doubts:
            return "".join(self._doubted)
        return "" if self._closing else held

    def _take(self, text: str) -> Iterator[str]:
        at, self._held, small = 0, "", text.translate(ASCII_LOWER)  # as long as the text
        while (begin := small.find("<", at)) >= 0:
            if not self._closing:
                yield text[at:begin]
            at = begin
            tag = small[begin : begin + self.LONGEST]
            ends = self._closing or self.ENDS
            if closed := next((end for end in ends if tag.startswith(end)), ""):
                self.began_inside = self.began_inside or not self._opened
                self._doubts = False
                self._closing, at = (), begin + len(closed)
            elif opened := next((t for t in self.TAGS if tag.startswith(t)), ""):
                at, self._opened, self._doubts = begin + len(opened), True, False
                self._closing = self._closing or (f"</{opened[1:]}",)
            elif any(known.startswith(tag) for known in (*self.TAGS, *self.ENDS)):
                self._held = text[begin:]
                return
            else:
                if not self._closing:
                    yield "<"
                at = begin + 1
        if not self._closing:
            yield text[at:]


class Clauses:
    """Feed pieces of text, take whole clauses; `full` when no more should be read.

    It bounds the answer: three sentences, more if they are short, and 90 words; lists and tables
    are read to their end, up to 150 words. Every character is looked at once. Of markup only list
    marks and tables go here, because they show at line starts alone; the agent's voice removes the
    rest.
    """

    def __init__(self) -> None:
        self.full = False
        self._word: list[str] = []  # the pieces of a word that has not ended
        self._letters = 0  # of them
        self._row: list[str] | None = None  # the words of a table's row
        self._line_begins = True
        self._in_list = False  # the line is an item or a row
        self._sentences = self._words = 0
        self._clause: list[str]
        self._chars: int  # of the clause
        self._speakable: bool  # it has a letter or a digit
        self._brackets: dict[str, int]  # where each was seen last in it
        self._begin_clause()

    def feed(self, text: str) -> list[str]:
        """The clauses that are complete now."""
        clauses: list[str] = []
        for part in PARTS.findall(text):
            if self.full:
                break
            if not part.isspace():
                self._word.append(part)
                self._letters += len(part)
                if self._letters >= LONGEST_WORD:
                    clauses += self._end_word()
                continue
            if self._word:
                clauses += self._end_word()
            if part == "\n":
                clauses += self._end_line()
        return clauses

    def finish(self) -> list[str]:
        """The stream is over: what is left of it."""
        if self.full:
            return []
        clauses = self._end_word(last=True) if self._word else []
        if self._row is not None:
            clauses += self._end_line()
        return clauses + self._take(True)

    def _end_word(self, last: bool = False) -> list[str]:
        word, self._word, self._letters = "".join(self._word), [], 0
        begins, self._line_begins = self._line_begins, False
        if begins:
            self._in_list = word.startswith("|") or bool(LIST_MARK.fullmatch(word))
            if word.startswith("|"):
                self._row = []
            elif self._in_list and not last:
                return []
        if self._row is not None:
            self._row.append(word)
            self._chars += len(word) + 1
            return self._end_line() if self._chars >= LONGEST_ROW else []
        if not self._clause and SENTENCE_END.match(word):
            return []  # a mark that stands alone belongs to the clause before
        self._clause.append(word)
        self._speakable = self._speakable or any(c.isalnum() for c in word)
        for bracket in self._brackets:
            if (at := word.rfind(bracket)) >= 0:
                self._brackets[bracket] = self._chars + at
        self._chars += len(word) + 1
        return [] if last or self._inside_bracket() else self._cut(word)

    def _cut(self, word: str) -> list[str]:
        """The clause, if it is whole with this word."""
        count = len(self._clause)
        if SENTENCE_END.search(word[-LONGEST_END:]):
            tail = word[-LONGEST_ABBREVIATION:]
            if not ABBREVIATION.search(tail) or (count == 1 and tail.lower() == "no."):
                return self._take(True)
        elif word[-1] in ",;:" and count >= (2 if self._words else FIRST_WORDS):
            return self._take(False)
        return self._take(False) if count >= LONG_WORDS or self._chars >= LONGEST_CLAUSE else []

    def _end_line(self) -> list[str]:
        self._line_begins = True
        if self._row is not None:
            cells = [cell.strip() for cell in " ".join(self._row).strip("|").split("|")]
            self._row = None
            if all(RULE_CELL.fullmatch(cell) for cell in cells):
                return []
            row = ", ".join(cell for cell in cells if cell)
            self._clause += f"{row}.".split() if row else []
            self._speakable = self._speakable or any(c.isalnum() for c in row)
        elif self._inside_bracket():
            return []
        return self._take(True)

    def _take(self, is_sentence: bool) -> list[str]:
        """The clause, unless there is nothing in it to be said: then it waits for more."""
        if not self._speakable:
            if self._chars >= LONGEST_CLAUSE:  # nothing will be said of it
                self._begin_clause()
            return []
        self._words += max(len(self._clause), self._chars // LONG_LETTERS)
        self._sentences += is_sentence
        clauses = [" ".join(self._clause)]
        self._begin_clause()
        enough = self._sentences >= MAX_SENTENCES and self._words >= LEAST_WORDS
        if self._words >= LONGEST_WORDS:
            self.full = True
            clauses += [MORE] if self._in_list else []
        elif is_sentence and not self._in_list:
            self.full = enough or self._words >= MAX_WORDS
        return clauses

    def _begin_clause(self) -> None:
        self._clause, self._chars, self._speakable = [], 0, False
        self._brackets = dict.fromkeys("[]()", -1)

    def _inside_bracket(self) -> bool:
        """Whether a bracket is open, as in a link whose end has not come yet.

        Not in a clause that is long already: brackets that never end would keep it for ever.
        """
        at, is_short = self._brackets, self._chars < LONGEST_CLAUSE
        return is_short and (at["["] > at["]"] or at["("] > at[")"])
