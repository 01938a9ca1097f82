"""The text model's API over real HTTP on loopback, in all its moods."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from engine.config import DeepSeekConfig
from engine.errors import ConfigError
from engine.evals.standin import Manner, Reply, StandIn
from engine.lookup import textmodel as module
from engine.lookup.textmodel import Answerer, AnswerError, Deadlines, read_event

KEY = "sk-very-secret"
QUESTION = [{"role": "user", "content": "How much is it?"}]
QUICK = Deadlines(connect=1.0, first_token=0.3, total=1.0)


@contextlib.asynccontextmanager
async def asking(
    replies: Callable[[str], Reply], deadlines: Deadlines | None = None
) -> AsyncIterator[tuple[StandIn, Answerer]]:
    async with StandIn(replies) as api:
        answerer = Answerer(DeepSeekConfig(KEY, api.url), deadlines or Deadlines(3, 5, 10))
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


async def test_three_failures_in_a_row_open_the_breaker_for_thirty_seconds():
    now = [0.0]
    async with StandIn(lambda _: Reply(status=401)) as api:
        answerer = Answerer(DeepSeekConfig(KEY, api.url), clock=lambda: now[0])
        for _ in range(3):
            with pytest.raises(AnswerError, match="key refused"):
                await whole(answerer)
        now[0] = 29.0
        with pytest.raises(AnswerError, match="paused after failures"):
            await whole(answerer)
        assert len(api.requests) == 3
        api.replies = lambda _: Reply("Yes.", pace=0)
        now[0] = 31.0
        assert await whole(answerer) == "Yes."
        await answerer.close()


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
        b"data: {}",
        b'data: {"choices": 3}',
        b'data: {"choices": [{"delta": null}]}',
        b'data: {"choices": [{"delta": {"content": 7}}]}',
        b"data: \xff",
    ],
)
def test_events_of_another_form_are_invalid(line):
    with pytest.raises(AnswerError, match="invalid answer"):
        read_event(line)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b": keep-alive", ""),
        (b"", ""),
        (b"event: ping", ""),
        (b"data: [DONE]", None),
        (b'data: {"choices": []}', ""),
        (b'data: {"choices": [{"delta": {"content": null}}]}', ""),
        (b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}', ""),
        (b'data: {"choices": [{"delta": {"content": "Yes"}}]}', "Yes"),
    ],
)
def test_events_are_read(line, text):
    assert read_event(line) == text


def test_the_environment_names_key_address_and_model():
    config = DeepSeekConfig.from_environment(
        {"DEEPSEEK_API_KEY": " k\n", "DEEPSEEK_BASE_URL": "http://x", "DEEPSEEK_MODEL": ""}
    )
    assert (config.api_key, config.base_url, config.model) == ("k", "http://x", "deepseek-flash")


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="DEEPSEEK_BASE_URL"):
        DeepSeekConfig(base_url="api.deepseek.com")
