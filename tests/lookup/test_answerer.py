"""The text model's API over real HTTP on loopback, in all its moods."""

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from engine.config import FRAME_RATE, DeepSeekConfig
from engine.dialogue.director import FILLER_FRAMES, PATIENCE_FRAMES
from engine.dialogue.text import prepare
from engine.errors import ConfigError
from engine.evals.standin import Manner, Reply, StandIn
from engine.lookup import textmodel as module
from engine.lookup.handover import load_phrases
from engine.lookup.textmodel import (
    Answerer,
    AnswerError,
    Deadlines,
    Piece,
    Thoughts,
    read_event,
    read_retry_after,
)
from engine.runtime.embedded import ByteTokenizer

KEY = "sk-very-secret"
QUESTION = [{"role": "user", "content": "How much is it?"}]
QUICK = Deadlines(connect=1.0, first_token=0.3, total=1.0)
PATIENT = Deadlines(60, 60, 60)  # no test waits for them; a busy machine may take long


@contextlib.asynccontextmanager
async def asking(
    replies: Callable[[str], Reply], deadlines: Deadlines | None = None
) -> AsyncIterator[tuple[StandIn, Answerer]]:
    async with StandIn(replies) as api:
        answerer = Answerer(DeepSeekConfig(KEY, api.url), deadlines or PATIENT)
        yield api, answerer
        await answerer.close()


async def whole(answerer: Answerer) -> str:
    return "".join([piece async for piece in answerer.stream(QUESTION)]).strip()


async def outcome(answerer: Answerer) -> tuple[list[str], str]:
    """The words that came, and why there were no more."""
    heard = []
    try:
        async for piece in answerer.stream(QUESTION):
            heard.append(piece)
    except AnswerError as error:
        return heard, str(error)
    return heard, ""


REFUSALS = [(401, "key refused"), (402, "no credit"), (400, "request refused")]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.0, 0.01))


async def test_an_answer_comes_word_by_word():
    async with asking(lambda _: Reply("It is $14 a month.", pace=0)) as (api, answerer):
        pieces = [piece async for piece in answerer.stream(QUESTION)]
    assert pieces == ["It ", "is ", "$14 ", "a ", "month. "]
    body = api.requests[0]
    assert (body["model"], body["stream"]) == ("deepseek-flash", True)
    assert body["thinking"] == {"type": "disabled"}
    assert api.keys == [f"Bearer {KEY}"]


async def test_an_api_of_another_make_is_not_told_about_thinking():
    async with StandIn(lambda _: Reply("Yes.", pace=0)) as api:
        answerer = Answerer(DeepSeekConfig(KEY, f"{api.url}/", "other-model"))
        assert await whole(answerer) == "Yes."
        await answerer.close()
    assert "thinking" not in api.requests[0]


async def test_a_slow_api_is_waited_for():
    async with asking(lambda _: Reply("Yes.", delay=0.2, pace=0)) as (_, answerer):
        assert await whole(answerer) == "Yes."


async def test_a_silent_api_is_given_up_at_the_first_words_deadline():
    async with asking(lambda _: Reply(manner=Manner.SILENT), QUICK) as (api, answerer):
        with pytest.raises(AnswerError, match="no answer in time"):
            await whole(answerer)
    assert len(api.requests) == 1  # asking again would only double the wait


async def test_keep_alive_comments_do_not_count_as_a_first_word():
    async with asking(lambda _: Reply("Yes.", delay=5), QUICK) as (_, answerer):
        with pytest.raises(AnswerError, match="no answer in time"):
            await whole(answerer)


async def test_an_answer_that_stalls_ends_at_the_total_deadline():
    async with asking(lambda _: Reply("One two", manner=Manner.STALL), QUICK) as (_, answerer):
        assert await outcome(answerer) == (["One ", "two "], "no answer in time")


@pytest.mark.parametrize(("status", "reason"), REFUSALS)
async def test_a_refusal_is_not_tried_again(status, reason):
    async with asking(lambda _: Reply(status=status)) as (api, answerer):
        with pytest.raises(AnswerError, match=rf"{reason} \({status}\)"):
            await whole(answerer)
    assert len(api.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_service_is_asked_once_more(status):
    states = iter([status, 200])
    async with asking(lambda _: Reply("Yes.", status=next(states), pace=0)) as (api, answerer):
        assert await whole(answerer) == "Yes."
        assert answerer.failures == 0
    assert len(api.requests) == 2


async def test_a_service_that_stays_busy_is_given_up():
    async with asking(lambda _: Reply(status=429)) as (api, answerer):
        with pytest.raises(AnswerError, match=r"service busy \(429\)"):
            await whole(answerer)
    assert len(api.requests) == 2


async def test_nobody_listening_is_no_connection():
    async with StandIn() as api:
        url = api.url
    answerer = Answerer(DeepSeekConfig(KEY, url))
    with pytest.raises(AnswerError, match="no connection"):
        await whole(answerer)
    await answerer.close()


async def test_an_answer_cut_mid_stream_is_reported_after_its_words():
    async with asking(lambda _: Reply("One two three", manner=Manner.CUT)) as (api, answerer):
        assert await outcome(answerer) == (["One ", "two ", "three "], "cut off")
    assert len(api.requests) == 1  # what was said cannot be taken back


async def test_invalid_json_is_an_invalid_answer():
    async with asking(lambda _: Reply(manner=Manner.GARBAGE)) as (_, answerer):
        with pytest.raises(AnswerError, match="invalid answer"):
            await whole(answerer)


async def test_an_endless_answer_can_be_left():
    reply = Reply("and on and on", manner=Manner.ENDLESS, pace=0.001)
    async with asking(lambda _: reply) as (api, answerer):
        async with contextlib.aclosing(answerer.stream(QUESTION)) as pieces:
            async for _ in pieces:
                break
        await api.hung_up.wait()
        assert answerer.failures == 0


async def test_an_answer_that_was_left_early_is_no_failure_in_a_row():
    async with asking(lambda _: Reply(status=401)) as (api, answerer):
        for _ in range(2):
            assert await outcome(answerer) == ([], "key refused (401)")
        api.replies = lambda _: Reply("and on and on", manner=Manner.ENDLESS, pace=0.001)
        async with contextlib.aclosing(answerer.stream(QUESTION)) as pieces:
            async for _ in pieces:
                break
        api.replies = lambda _: Reply(status=401)
        for _ in range(2):  # the breaker opens at three in a row
            assert await outcome(answerer) == ([], "key refused (401)")


async def test_a_redirect_is_not_followed_so_that_the_key_goes_nowhere_else():
    async with StandIn() as elsewhere:

        async def redirect(_request: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect(f"{elsewhere.url}/chat/completions")

        app = web.Application()
        app.router.add_post("/chat/completions", redirect)
        async with TestServer(app) as server:
            answerer = Answerer(DeepSeekConfig(KEY, str(server.make_url(""))))
            with pytest.raises(AnswerError, match=r"request refused \(307\)"):
                await whole(answerer)
            await answerer.close()
        assert elsewhere.keys == []


@pytest.mark.parametrize("status", [429, 500])
async def test_three_failures_in_a_row_open_the_breaker_for_thirty_seconds(status):
    now = [0.0]
    async with StandIn(lambda _: Reply(status=status)) as api:
        answerer = Answerer(DeepSeekConfig(KEY, api.url), clock=lambda: now[0])
        for _ in range(3):
            with pytest.raises(AnswerError, match="service busy"):
                await whole(answerer)
        now[0] = 29.0
        with pytest.raises(AnswerError, match="paused after failures"):
            await whole(answerer)
        assert len(api.requests) == 6
        api.replies = lambda _: Reply("Yes.", pace=0)
        now[0] = 31.0
        assert await whole(answerer) == "Yes."
        await answerer.close()


ONE_CALLERS = [
    Reply(status=400),
    Reply(status=401),
    Reply(status=422),
    Reply(manner=Manner.GARBAGE),
    Reply(manner=Manner.LONG_LINE),
    Reply(manner=Manner.OUT_OF_TOKENS, pace=0),
]


@pytest.mark.parametrize("reply", ONE_CALLERS, ids=lambda r: f"{r.status} {r.manner.name}")
async def test_what_one_caller_brings_about_silences_nobody_else(reply):
    async with asking(lambda _: reply) as (api, answerer):
        for _ in range(5):
            await outcome(answerer)
        api.replies = lambda _: Reply("Yes.", pace=0)
        assert await whole(answerer) == "Yes."


@pytest.mark.parametrize("seconds", ["0", "0.05", "Thu, 01 Jan 2026 00:00:00 GMT"])
async def test_the_service_says_when_to_ask_again(seconds, monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", (100.0, 100.0))
    states = iter([429, 200])

    def reply(_):
        return Reply("Yes.", status=next(states), pace=0, headers={"Retry-After": seconds})

    async with asking(reply) as (api, answerer):
        assert await whole(answerer) == "Yes."
    assert len(api.requests) == 2


async def test_a_service_that_wants_a_longer_wait_than_a_caller_has_is_given_up_at_once():
    busy = Reply(status=503, headers={"Retry-After": "120"})
    async with asking(lambda _: busy) as (api, answerer):
        with pytest.raises(AnswerError, match=r"service busy \(503\)"):
            await whole(answerer)
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("", None), ("soon", None), ("Thu, 99 Foo", None)),
        *(("-1", 0.0), ("nan", 0.0), ("inf", math.inf), ("1e999", math.inf)),
    ],
)
def test_an_odd_retry_after_is_no_trouble(value, seconds):
    assert read_retry_after(value) == seconds


OTHER_MAKES = ["NO_DONE", "PLAIN", "AZURE", "THINKING", "REASONING"]


@pytest.mark.parametrize("manner", OTHER_MAKES)
async def test_apis_of_other_makes_are_understood(manner):
    reply = Reply("It is $14 a month.", manner=Manner[manner], pace=0)
    async with asking(lambda _: reply) as (_, answerer):
        assert await whole(answerer) == "It is $14 a month."
        assert answerer.failures == 0


async def test_an_answer_that_ran_out_of_tokens_is_cut_off():
    reply = Reply("One two", manner=Manner.OUT_OF_TOKENS, pace=0)
    async with asking(lambda _: reply) as (_, answerer):
        assert await outcome(answerer) == (["One ", "two "], "cut off")


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("written", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
async def test_a_base_address_is_right_with_and_without_its_version(prefix, written):
    async with StandIn(lambda _: Reply("Yes.", pace=0), prefix=prefix) as api:
        answerer = Answerer(DeepSeekConfig(KEY, f"{api.url}{written}"))
        assert [await whole(answerer) for _ in range(2)] == ["Yes.", "Yes."]
        await answerer.close()


@pytest.mark.parametrize("heard", ["whole", "left early", "refused"])
async def test_the_next_question_finds_the_connection_still_open(heard):
    replies = {"refused": Reply(status=400)}
    async with asking(lambda _: replies.get(heard, Reply("It is so. Yes.", pace=0))) as (api, a):
        for _ in range(3):
            if heard == "left early":
                async with contextlib.aclosing(a.stream(QUESTION)) as pieces:
                    await anext(pieces)
            else:
                await outcome(a)
            await asyncio.gather(*a._draining)
    assert len(api.requests) == 3
    assert len(api.peers) == 1


def test_both_fillers_come_before_the_first_word_is_given_up():
    fillers = load_phrases().fillers
    spoken = sum(word.need for word in prepare(fillers[0], ByteTokenizer()))  # frames, at least
    second = (FILLER_FRAMES + spoken + PATIENCE_FRAMES) / FRAME_RATE
    assert len(fillers) == 2
    assert second < module.FIRST_WORD_SECONDS == Deadlines().first_token < Deadlines().total


# -- odd answers: bounded in size and in time ------------------------------------------------------


async def test_a_line_that_is_too_long_is_an_invalid_answer():
    async with asking(lambda _: Reply(manner=Manner.LONG_LINE)) as (_, answerer):
        assert await outcome(answerer) == ([], "invalid answer")


async def test_empty_pieces_without_end_are_an_invalid_answer():
    async with asking(lambda _: Reply("x " * 50, manner=Manner.HOLLOW, pace=0)) as (_, answerer):
        assert await outcome(answerer) == ([], "invalid answer")


async def test_an_answer_without_end_is_left_at_64_kb():
    reply = Reply("x" * 2000, manner=Manner.ENDLESS, pace=0)
    async with asking(lambda _: reply) as (_, answerer):
        heard, reason = await outcome(answerer)
    assert reason == "invalid answer"
    assert len("".join(heard)) <= module.MAX_ANSWER_BYTES


async def test_pieces_that_never_stop_end_at_the_deadline():
    late = Deadlines(connect=1, first_token=1, total=1)
    reply = Reply("a b c", manner=Manner.ENDLESS, pace=0.001)
    async with asking(lambda _: reply, late) as (_, answerer):
        assert (await outcome(answerer))[1] == "no answer in time"


async def test_an_answer_of_one_json_text_is_bounded_too():
    async with asking(lambda _: Reply("x" * 100_000, manner=Manner.PLAIN)) as (_, answerer):
        assert await outcome(answerer) == ([], "invalid answer")


def split(text, rng):
    while text:
        size = rng.randrange(1, 8)
        yield text[:size]
        text = text[size:]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>hm</think>Yes.", "Yes."),
        ("<THINK>a < b <think></THINK>Yes", "Yes"),
        ("Well <thinking>hm</thinking>yes", "Well yes"),
        ("<think>never ends", ""),
        ("5 < 10 <b>so</b> <thin", "5 < 10 <b>so</b> <thin"),
        ("<<<think>x</think>>", "<<>"),
        ("no tags", "no tags"),
    ],
)
def test_thoughts_are_dropped_however_they_are_split(text, said):
    rng = random.Random(text)
    for _ in range(30):
        thoughts = Thoughts()
        heard = "".join(thoughts.feed(piece) for piece in split(text, rng))
        assert heard + thoughts.finish() == said


@pytest.mark.parametrize(
    ("text", "said", "again"),
    [
        ("hm, so</think>Yes.", "Yes.", True),
        ("hm <b> so</thinking>Yes. </b>", "Yes. </b>", True),
        ("<think>hm</think>Yes.", "Yes.", False),  # it sends its tags by now
        ("no tags", "no tags", False),  # no thought: what one answer showed binds no other
        ("no <b>tags</b>, and <thin", "no <b>tags</b>, and <thin", False),
    ],
)
def test_an_answer_that_begins_inside_a_thought_begins_with_its_end(text, said, again):
    rng = random.Random(text)
    for _ in range(30):
        thoughts = Thoughts(inside=True)
        heard = "".join(thoughts.feed(piece) for piece in split(text, rng))
        assert (heard + thoughts.finish(), thoughts.began_inside) == (said, again)


async def test_a_service_that_hides_its_opening_tag_is_understood_from_its_second_answer_on():
    thought = "Cost is asked.</think> It is $14."
    async with asking(lambda _: Reply(thought, pace=0)) as (_, answerer):
        assert await whole(answerer) == "Cost is asked. It is $14."  # nothing showed it before
        async with contextlib.aclosing(answerer.stream(QUESTION)) as pieces:
            await anext(pieces)  # one that is left early teaches nothing
        assert await whole(answerer) == "It is $14."
    async with asking(lambda _: Reply(thought, manner=Manner.PLAIN)) as (_, answerer):
        assert [await whole(answerer) for _ in range(2)] == ["It is $14."] * 2


async def test_a_cancelled_question_hangs_up_and_is_no_failure():
    async with asking(lambda _: Reply("One two", manner=Manner.STALL)) as (api, answerer):
        asked = asyncio.create_task(whole(answerer))
        await api.asked.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await api.hung_up.wait()
        assert answerer.failures == 0


async def test_all_questions_share_one_pool_of_connections():
    async with asking(lambda _: Reply("Yes.", pace=0)) as (_, answerer):
        assert await asyncio.gather(*(whole(answerer) for _ in range(5))) == ["Yes."] * 5
        first = answerer._http
        await whole(answerer)
        assert answerer._http is first


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_neither_key_nor_words_reach_a_log_or_an_error(status, caplog):
    caplog.set_level(logging.DEBUG)
    async with asking(lambda _: Reply(status=status)) as (_, answerer):
        for _ in range(4):
            with pytest.raises(AnswerError) as raised:
                await whole(answerer)
            assert KEY not in str(raised.value)
            assert "How much" not in str(raised.value)
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert KEY not in logged
    assert "How much" not in logged
    assert KEY not in repr(answerer.config)


@pytest.mark.parametrize(
    "line",
    [
        b"data: []",
        b'data: {"error": {"message": "no"}}',
        b'data: {"choices": [7]}',
        b'data: {"choices": 3}',
        b'data: {"choices": [{"delta": {"content": [7]}}]}',
        b'data: {"choices": [{"delta": {"content": 7}}]}',
        b"data: \xff",
    ],
)
def test_events_of_another_form_are_invalid(line):
    with pytest.raises(AnswerError, match="invalid answer"):
        read_event(line)


@pytest.mark.parametrize(
    ("line", "piece"),
    [
        (b'\xef\xbb\xbfdata: {"choices":[{"delta":{"content":"Hi"}}]}', Piece("Hi")),
        (b": keep-alive", Piece()),
        (b"", Piece()),
        (b"data:", Piece()),
        (b"event: ping", Piece()),
        (b"data: [DONE]", Piece(is_over=True)),
        (b"data: {}", Piece()),
        (b'data: {"choices": []}', Piece()),
        (b'data: {"choices": [{"delta": null}]}', Piece()),
        (b'data: {"choices": [{"delta": {"content": null}}]}', Piece()),
        (b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}', Piece(thought="hm")),
        (b'data:{"choices": [{"delta": {"content": "Yes"}}]}\r', Piece("Yes")),
        (
            b'data: {"choices": [{"delta": {"content": [{"type": "text", "text": "a"}]}}]}',
            Piece("a"),
        ),
        (
            b'data: {"choices": [{"delta": {"content": "!"}, "finish_reason": "stop"}]}',
            Piece("!", is_over=True),
        ),
    ],
)
def test_events_are_read(line, piece):
    assert read_event(line) == piece


def test_the_environment_names_key_address_and_model():
    config = DeepSeekConfig.from_environment(
        {"DEEPSEEK_API_KEY": " k\n", "DEEPSEEK_BASE_URL": "http://x", "DEEPSEEK_MODEL": ""}
    )
    assert (config.api_key, config.base_url, config.model) == ("k", "http://x", "deepseek-flash")


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="DEEPSEEK_BASE_URL"):
        DeepSeekConfig(base_url="api.deepseek.com")
