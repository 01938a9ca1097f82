"""What a conversation hands to its next line: nothing twice, nothing left out, nothing late."""

import asyncio
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from engine.dialogue.resume import Ghosts, Line
from engine.dialogue.service import Service
from engine.dialogue.session import KEPT_FRAMES, Session, SessionConfig
from engine.errors import GoneError
from engine.runtime.embedded import EmbeddedBackend
from engine.runtime.metrics import Metrics
from engine.runtime.seat import Frame, Notice, Ready, Renewed

FRAMES = 12
HUM = np.full(1920, 0.1, np.float32)


@asynccontextmanager
async def talked():
    """A conversation of twelve frames that nobody has taken from its outbox yet."""
    engine = Service(lambda _progress: EmbeddedBackend(1))
    engine.start()
    await asyncio.to_thread(engine.wait, 30)
    async with Session(engine, SessionConfig()) as session:
        session.connect()
        outputs = session.outputs()
        while not isinstance(await anext(outputs), Ready):
            pass
        for _ in range(FRAMES):
            session.push_audio(HUM)
        async with asyncio.timeout(30):
            while session._unread_frames < FRAMES:  # noqa: ASYNC110 - another thread makes them
                await asyncio.sleep(0.01)
        yield session, outputs
    engine.stop()


async def take(outputs, count):
    """The next frames, as what each sounds like and where it stands."""
    frames = []
    async with asyncio.timeout(30):
        while len(frames) < count:
            output = await anext(outputs)
            if isinstance(output, Frame):
                frames.append(output)
    return frames


async def next_line(session, outputs, **heard):
    """The line drops; what the next one begins with is checked."""
    await outputs.aclose()
    session.freeze()
    outputs = session.outputs(**heard)
    assert isinstance(await anext(outputs), Ready)
    return outputs


def ids(frames):
    return [id(frame.pcm) for frame in frames]


async def test_what_was_in_hand_when_the_line_dropped_is_sent_again():
    async with talked() as (session, outputs):
        first = await take(outputs, 5)  # the fifth may not have reached the socket
        outputs = await next_line(session, outputs)
        rest = await take(outputs, FRAMES - 4)
    assert ids(rest[:1]) == ids(first[-1:])
    assert len(set(ids(first + rest))) == FRAMES
    assert session.frames_out == FRAMES


@pytest.mark.parametrize("heard", [0.0, 0.16, 0.3999999, 0.4, 0.8, 99.0])
async def test_what_the_client_has_not_heard_is_sent_again_once(heard):
    async with talked() as (session, outputs):
        first = await take(outputs, 10)
        outputs = await next_line(session, outputs, heard=heard)
        begin = min(10, int(heard / 0.08 + 1e-3))
        assert session.frames_out == begin
        rest = await take(outputs, FRAMES - begin)
    assert ids(rest[: 10 - begin]) == ids(first[begin:])
    assert len(set(ids(first[:begin] + rest))) == FRAMES


async def test_a_line_that_drops_while_things_are_sent_again_loses_none_of_them():
    async with talked() as (session, outputs):
        whole = await take(outputs, 10)
        outputs = await next_line(session, outputs, heard=0.0)
        await take(outputs, 3)
        outputs = await next_line(session, outputs, heard=0.16)
        await take(outputs, 1)
        outputs = await next_line(session, outputs, heard=0.24)
        rest = await take(outputs, FRAMES - 3)
    assert ids(rest[:7]) == ids(whole[3:])
    assert session.frames_out == FRAMES


async def test_what_comes_again_is_not_late_and_not_unread():
    async with talked() as (session, outputs):
        old = await take(outputs, 10)
        outputs = await next_line(session, outputs, heard=0.0)
        again = await take(outputs, FRAMES)
    assert min(frame.due_at for frame in again) >= max(frame.ready_at for frame in old)
    assert session._unread_frames == 0


async def test_no_more_is_kept_than_a_dead_line_can_swallow():
    async with talked() as (session, _outputs):
        frame = Frame(HUM, [], 0.0, 0.0)
        for number in range(3 * KEPT_FRAMES):
            session.frames_out = number
            for output in (frame, Notice([]), Renewed(1)):
                session._note_sent(output)
    assert len({before for before, _ in session._sent}) == KEPT_FRAMES + 1


# -- secrets ---------------------------------------------------------------------------------------


class Standing:
    """A session that only stands still."""

    id, lost_lines = "x", 0

    def freeze(self):
        self.frozen = True


def ghosts():
    return Ghosts(30.0, lambda session: None, Metrics())


async def test_a_line_that_has_not_shown_that_it_lives_gives_way_to_its_own_secret(monkeypatch):
    """Its client was cut off before it had the next one, and nobody knows yet."""
    monkeypatch.setattr("engine.dialogue.resume.SIGN_SECONDS", 0.05)
    lines = ghosts()
    first = lines.enter(Standing(), "opus")
    second = lines.take_over(first, first.secret, "opus")
    assert await lines.find(first.secret) is second
    assert await lines.find(second.secret) is second


async def test_a_lines_own_secret_waits_for_no_sign(monkeypatch):
    """The server has not noticed yet that this line is dead; its client has."""
    monkeypatch.setattr("engine.dialogue.resume.SIGN_SECONDS", 3600.0)
    lines = ghosts()
    first = lines.enter(Standing(), "opus")
    second = lines.take_over(first, first.secret, "opus")
    assert await asyncio.wait_for(lines.find(second.secret), 60) is second


async def test_a_line_that_shows_that_it_lives_while_it_is_asked_does_not_give_way():
    lines = ghosts()
    first = lines.enter(Standing(), "opus")
    second = lines.take_over(first, first.secret, "opus")
    asking = asyncio.create_task(lines.find(first.secret))
    await asyncio.sleep(0)
    second.confirm()
    with pytest.raises(GoneError, match=r"^gone: "):
        await asking
    assert await lines.find(second.secret) is second


async def test_of_two_newcomers_only_one_waits_for_one_ghost():
    lines = ghosts()
    lines.keep(lines.enter(Standing(), "opus"))
    late = time.monotonic() + 60.0
    first = asyncio.create_task(lines.make_room(late))
    await asyncio.sleep(0)
    assert not await lines.make_room(late)  # at once
    assert not first.done()
    first.cancel()


async def test_an_empty_secret_opens_nothing():
    lines = ghosts()
    lines.enter(Standing(), "opus")
    with pytest.raises(GoneError):
        await lines.find("")


def test_secrets_differ_and_are_long():
    secrets = {Line(Standing(), "opus").secret for _ in range(100)}
    assert len(secrets) == 100
    assert min(map(len, secrets)) >= 43
