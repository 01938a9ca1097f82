"""When a session ends by itself, and that no client is blamed for the server's delay."""

import asyncio

import numpy as np
import pytest

from engine.config import FRAME_SECONDS, SAMPLE_RATE
from engine.dialogue import session as module
from engine.dialogue.service import Service
from engine.dialogue.session import Limits, Mail, Session, SessionConfig
from engine.errors import IdleError, TimeLimitError, TooFastError
from engine.runtime.embedded import EmbeddedBackend
from engine.runtime.scheduler import Scheduler
from engine.runtime.seat import Ready

# -- limits ----------------------------------------------------------------------------------------


class Quiet:
    wants_frames = False


@pytest.fixture
def session():
    session = Session(Service(lambda _progress: EmbeddedBackend()), config=SessionConfig())
    session._seat, session.director = object(), Quiet()
    session._started = session._touched = session._active_at = session._handshake_at = 1000.0
    return session


LIMITS = Limits(unheard_s=60, silence_s=300, session_s=1800)


def reached(session, now, **touched):
    for name, value in touched.items():
        setattr(session, f"_{name}", value)
    return session._limit_reached(LIMITS, now)


def test_within_its_limits_a_conversation_goes_on(session):
    assert reached(session, 1060.0) is None
    assert reached(session, 1300.0, touched=1299.0) is None
    assert reached(session, 2800.0, touched=2799.0, active_at=2790.0) is None


def test_a_minute_without_any_message_is_idle(session):
    error = reached(session, 1060.1)
    assert isinstance(error, IdleError)
    assert "60 s" in str(error)
    assert "0x06" in str(error)


def test_five_minutes_without_anybody_speaking_are_idle(session):
    error = reached(session, 1300.1, touched=1300.0)
    assert isinstance(error, IdleError)
    assert "5 minutes" in str(error)


def test_what_is_still_to_be_said_keeps_it_alive_but_not_beyond_the_session(session):
    session.director.wants_frames = True
    assert reached(session, 2000.0) is None
    assert isinstance(reached(session, 2800.1), TimeLimitError)


def test_five_seconds_that_nobody_reads_are_too_fast(session):
    session._unread_frames = 63
    assert reached(session, 1001.0) is None  # a socket that drains is offered them first
    assert isinstance(reached(session, 1002.0), TooFastError)


def test_a_client_that_has_read_meanwhile_reads_fast_enough(session):
    for unread in (63, 10, 63):
        session._unread_frames = unread
        assert reached(session, 1001.0) is None


def test_what_waits_after_this_server_was_frozen_is_not_the_clients_fault(session):
    session._unread_frames = 700
    assert reached(session, 1001.0) is None
    session._forgive(55.0)  # nothing was sent and nothing was read for so long
    assert reached(session, 1057.0) is None
    session._unread_frames = 0
    assert reached(session, 1114.0) is None
    assert isinstance(reached(session, 1115.1), IdleError)


def test_before_the_handshake_nobody_is_idle(session):
    session._handshake_at = None
    assert reached(session, 1500.0) is None
    assert isinstance(reached(session, 2800.1), TimeLimitError)


# -- the client's own pace -------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Heard:
    """A seat that takes all audio."""

    left, seconds = False, 0.0

    def push_audio(self, pcm, _now) -> int:
        self.seconds += len(pcm) / SAMPLE_RATE
        return 0


@pytest.fixture
def shaken(session, monkeypatch):
    """(session, clock, waited): `waited(45)` is a handshake after so many seconds."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    session._seat, session._scheduler = Heard(), Scheduler(EmbeddedBackend(1))
    session._waiting_since, session._handshake_at = clock.now, None

    def wait(seconds: float) -> None:
        clock.now += seconds
        session._note_handshake()

    return session, clock, wait


def send(session, seconds: float) -> None:
    for _ in range(round(seconds / 0.02)):
        session.push_audio(np.zeros(SAMPLE_RATE // 50, np.float32))


def early_seconds(session) -> float:
    name = "personaplex_dropped_user_frames_total"
    registry = session._engine.metrics.registry
    return registry.get_sample_value(name, {"reason": "early"}) * FRAME_SECONDS


@pytest.mark.parametrize("waited", [6, 20, 45, 300])
def test_audio_that_a_client_kept_while_it_waited_is_dropped(shaken, waited, caplog):
    caplog.set_level("INFO")
    session, clock, wait = shaken
    wait(waited)
    send(session, waited)
    assert session._seat.seconds <= 1.0
    assert early_seconds(session) == pytest.approx(waited - session._seat.seconds)
    assert caplog.text.count("older than the handshake") == 1
    for _ in range(50):
        clock.now += 0.2
        send(session, 0.2)
    assert session._seat.seconds == pytest.approx(10 + 1, abs=0.1)


def test_audio_before_the_handshake_is_dropped_and_never_too_fast(shaken):
    session, _, wait = shaken
    send(session, 40)
    wait(1.0)
    assert session._seat.seconds == 0.0
    assert early_seconds(session) == pytest.approx(40)
    send(session, 29)  # of a client that did not wait long: a recording
    assert session._seat.seconds == pytest.approx(29)


@pytest.mark.parametrize("waited", [0.2, 20])
def test_more_than_30_s_ahead_of_real_time_is_still_too_fast(shaken, waited):
    session, clock, wait = shaken
    wait(waited)
    clock.now += 10
    send(session, 39)
    with pytest.raises(TooFastError, match="30 s ahead"):
        send(session, 2)


def test_a_client_at_real_time_is_not_too_fast_however_late_its_audio_is_taken(shaken):
    session, clock, wait = shaken
    wait(0.2)
    clock.now += 100  # this server was frozen
    send(session, 100)
    assert session._seat.seconds == pytest.approx(100)


def test_the_idle_time_counts_from_the_handshake(shaken):
    session, clock, wait = shaken
    wait(77)
    assert session._limit_reached(LIMITS, clock.now + 59) is None
    assert isinstance(session._limit_reached(LIMITS, clock.now + 61), IdleError)


def test_before_the_handshake_no_limit_counts(session):
    session._seat = None
    assert reached(session, 9999.0) is None


async def test_the_event_loop_is_woken_once_for_the_outputs_of_many_and_one_fault_is_ones_own(
    caplog,
):
    loop, woken, heard, mail = asyncio.get_running_loop(), [], [], Mail()
    called = loop.call_soon_threadsafe
    loop.call_soon_threadsafe = lambda *what: woken.append(what) or called(*what)
    mail.put(loop, lambda outputs: 1 / 0, [Ready()])
    for _ in range(3):
        mail.put(loop, heard.append, [Ready()])
    assert not heard
    mail.send()
    mail.send()
    assert len(woken) == 1
    await asyncio.sleep(0)
    assert heard == [[Ready()]] * 3
    assert "outputs were lost" in caplog.text
    gone = asyncio.new_event_loop()
    gone.close()
    mail.put(gone, heard.append, [Ready()])
    mail.send()  # a server that has ended
