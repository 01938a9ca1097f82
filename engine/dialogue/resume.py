"""Who holds a conversation, and who waits for its client: lines, and the ghosts of dropped ones.

A `Line` is one socket's hold on a conversation. Its secret lets the next socket take over, whether
the line has dropped or nobody knows yet that it is dead. A dropped line's conversation is a ghost:
it keeps its slot, frozen, until its client is back, its time is over or a newcomer needs the slot.
All of it belongs to one event loop.
"""

import asyncio
import contextlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import GoneError
from engine.runtime.metrics import Metrics

if TYPE_CHECKING:
    from engine.dialogue.session import Session

SECRET_BYTES = 32
GHOST_SECONDS = 5.0  # that a newcomer waits for a ghost's slot, at most
SIGN_SECONDS = 2.0  # for the answer to the ping that follows a new secret
GONE = (
    "this conversation has ended, goes on elsewhere, or was another server's; "
    "connect without resume"
)


class Line:
    """One socket's hold on a conversation. Only the newest line of a conversation counts."""

    def __init__(self, session: "Session", format: str, came_by: str = "") -> None:
        self.session = session
        self.format = format  # of its audio
        self.secret = secrets.token_urlsafe(SECRET_BYTES)  # by which the next socket takes over
        # The secret by which this one came. It is used up once the client has the new one, and not
        # before: a line may be cut twice in a second.
        self.came_by = came_by
        self.told = False  # the new secret was sent
        self.confirmed = False  # the client has it
        self.dropped_at: float | None = None
        self.settled = asyncio.Event()  # confirmed, dropped or taken
        self.taken = asyncio.Event()  # another socket has taken over
        self.ended = asyncio.Event()  # its own socket does nothing any more
        self.timer: asyncio.TimerHandle | None = None

    def confirm(self) -> None:
        """Its client has the new secret."""
        self.confirmed = True
        self.settled.set()

    def is_opened_by(self, secret: str) -> bool:
        """Whether this secret takes it over. In constant time."""
        first, second = _is_same(secret, self.secret), _is_same(secret, self.came_by)
        return first or (second and not self.confirmed)


def _is_same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), secret.encode()) and bool(secret)


class Ghosts:
    """The lines of one server's conversations, and which of them have dropped.

    `leave` is called with a session that has given its slot back. A conversation is kept for
    `keep_s` seconds; 0: not at all.
    """

    def __init__(self, keep_s: float, leave: Callable[["Session"], None], metrics: Metrics) -> None:
        self.keep_s = keep_s
        self._leave, self._metrics = leave, metrics
        self._lines: set[Line] = set()
        self._dropped: list[Line] = []  # the oldest first
        self._newcomers = 0  # who wait for a ghost's slot
        self._changed = asyncio.Event()  # a slot may be free; replaced each time
        self._closing: set[asyncio.Task] = set()

    def __len__(self) -> int:
        """Conversations that wait for their clients."""
        return len(self._dropped)

    def enter(self, session: "Session", format: str) -> Line:
        """The first line of a conversation."""
        line = Line(session, format)
        self._lines.add(line)
        return line

    async def find(self, secret: str) -> Line:
        """The line that a secret takes over. Raises GoneError.

        The newest line may have come by this same secret. Then it has 2 s to show that it lives.
        If it does not, its client was cut off before it had the next secret.
        """
        asked = None
        while True:
            fitting = [line for line in self._lines if line.is_opened_by(secret)]
            if not fitting:
                raise GoneError(GONE)
            (line,) = fitting
            if line is asked or line.dropped_at is not None or _is_same(secret, line.secret):
                return line
            asked = line
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SIGN_SECONDS):
                    await line.settled.wait()

    def take_over(self, line: Line, secret: str, format: str) -> Line:
        """The next line of its conversation, which stands still until that one goes on."""
        self._forget(line)
        self._metrics.resumed()
        line.taken.set()
        line.settled.set()
        line.session.freeze()
        successor = Line(line.session, format, came_by=secret)
        self._lines.add(successor)
        return successor

    def keep(self, line: Line) -> None:
        """Its line has dropped: freeze the conversation, and wait for its client."""
        line.session.freeze()
        line.dropped_at = time.monotonic()
        line.settled.set()
        self._dropped.append(line)
        line.timer = asyncio.get_running_loop().call_later(self.keep_s, self._give_up, line)
        line.session.lost_lines += 1
        self._metrics.line_lost()
        self._tell()

    def release(self, line: Line) -> None:
        """A conversation is over: its slot is free at once, the rest of it ends in a task."""
        self._forget(line)
        self._leave(line.session)
        line.session.leave()
        self._tell()
        closing = asyncio.get_running_loop().create_task(line.session.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def give_up_all(self) -> None:
        """The server ends: nobody is waited for."""
        for line in tuple(self._dropped):
            self._give_up(line)

    async def make_room(self, until: float) -> bool:
        """Wait until a slot may be free; False: no ghost has one for this newcomer.

        The oldest ghost gives its slot up when it has been one for 5 s, or at `until`
        (time.monotonic()) if that comes first.
        """
        if self._newcomers >= len(self._dropped):
            return False
        due = min(until, self._dropped[0].dropped_at + GHOST_SECONDS)
        self._newcomers += 1
        try:
            async with asyncio.timeout(max(0.0, due - time.monotonic())):
                await self._changed.wait()
        except TimeoutError:
            if self._dropped:
                self._give_up(self._dropped[0])
        finally:
            self._newcomers -= 1
        return True

    def _give_up(self, line: Line) -> None:
        line.session.end_reason = "dropped"
        self.release(line)

    def _forget(self, line: Line) -> None:
        self._lines.discard(line)
        if line in self._dropped:
            self._dropped.remove(line)
            self._metrics.line_found()
        if line.timer:
            line.timer.cancel()

    def _tell(self) -> None:
        """Newcomers look again."""
        self._changed.set()
        self._changed = asyncio.Event()
