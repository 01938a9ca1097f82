"""Which text token is fed, frame by frame: the model's timing, our words.

A pure state machine of one conversation: no torch, no clock but the frame count. It belongs to the
scheduler's thread. The session posts commands and gets events; it never calls `step`. Of questions
the director knows two things: it holds until an answer comes, and it says texts.
Source: the state machine of Kyutai's delayed-streams text-to-speech, adapted to a model whose audio
is aligned with its text.
"""

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from engine.config import EPAD, PAD
from engine.dialogue import events as ev
from engine.dialogue.events import Hold, Say, SayState
from engine.dialogue.floor import UserFloor, is_backchannel, is_echo
from engine.dialogue.speech import Agenda, Arming, Pace
from engine.lookup.handover import OwnWords
from engine.lookup.question import HoldEnd
from engine.runtime.backend import HeardRow, Tokenizer

TAIL_FRAMES, TAIL_LIMIT_FRAMES = 4, 25
SILENT_CLIENT_FRAMES = 12  # 1 s, still made after the last word for a client without audio
QUIET_OUT = 10 ** (-45 / 20)  # peak of an agent frame that counts as silence
FILLER_FRAMES = 9  # 0.7 s without a clause: the first filler
PATIENCE_FRAMES = 100  # 8 s: the second filler, and after as long again the apology
UNCLAIMED_FRAMES = 25  # a hold of the director's own that nobody took up
HUSH_AFTER_FRAMES = 6  # loud frames of a held agent before its audio is silenced as well
DOUBT_FRAMES = 13  # 1 s after an interruption without words: it was none, the text goes on
DOUBT_LIMIT_FRAMES = 100  # that words may be on their way


class Mode(Enum):
    FREE = auto()  # the model speaks for itself
    ARMED = auto()  # a text waits for the moment to begin
    SPEAK = auto()
    TAIL = auto()  # silence after a text, so that the model adds no sentence of its own
    HOLD = auto()  # silence until an answer comes


class Patience(Enum):
    """How a held frame ends."""

    WAIT, FILL, GIVE_UP = (auto() for _ in range(3))


@dataclass(slots=True)
class Held:
    """A hold in progress: how long, and what is said meanwhile.

    It counts frames; it neither speaks nor chooses tokens.
    """

    id: int
    claimed: bool = False  # the session knows about it: a `Hold` came
    fillers: deque[Say] = field(default_factory=deque)
    apology: Say | None = None
    loud: int = 0  # agent frames that were not silent
    _due_at: int = PATIENCE_FRAMES  # held frames until something is said
    _waited: int = 0  # held frames since something was said
    _reminded: bool = False

    def claim(self, hold: Hold) -> None:
        self.id, self.claimed, self.apology = hold.id, True, hold.apology
        self.fillers = deque(hold.fillers[1:] if hold.announced else hold.fillers)
        if hold.fillers and not hold.announced:
            self._due_at = FILLER_FRAMES

    def wait(self, loud: bool) -> Patience:
        """One more held frame; `loud`: the agent could be heard in the last one."""
        self.loud += loud
        self._waited += 1
        if not self.claimed:
            return Patience.GIVE_UP if self._waited >= UNCLAIMED_FRAMES else Patience.WAIT
        if self._waited < self._due_at:
            return Patience.WAIT
        first = self._due_at == FILLER_FRAMES
        self._due_at, self._waited = PATIENCE_FRAMES, 0
        if self._reminded:
            return Patience.GIVE_UP
        self._reminded = not first
        return Patience.FILL if self.fillers else Patience.WAIT


class Director:
    """One conversation's director. `step` once a tick; `take` for each command before it.

    new_hold_id: called for each hand-over of the model's own, in the scheduler's thread.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        own: OwnWords | None = None,
        floor: UserFloor | None = None,
        new_hold_id: Callable[[], int] | None = None,
    ) -> None:
        self.floor = floor or UserFloor()
        self.mode = Mode.FREE
        self.paused = False
        self.held: Held | None = None
        self._held_back = 0  # the id of a hold that begins with the agent's next word; 0: none
        self.hush = False
        self._events: list[ev.Event] = []
        self.agenda = Agenda(self._events)
        self._own = own or OwnWords(tokenizer)
        self._new_hold_id = new_hold_id or itertools.count(1).__next__
        self._cancelling = False  # after the current word
        self._doubted = False  # it was speech without words that stopped what is in hand
        self._doubt_frames = 0  # since then, without speech
        self._ending_turn = False  # at once
        self._frames_in_mode = 0
        self._arming = Arming()
        self._run = 0  # PADs fed in a row
        self._silent_frames = SILENT_CLIENT_FRAMES  # since there was something to say

    @property
    def wants_frames(self) -> bool:
        """Whether a client that sends no audio must get frames all the same (docs/api.md)."""
        return self._has_business or self._silent_frames < SILENT_CLIENT_FRAMES

    @property
    def awaits_words(self) -> bool:
        """Whether the user's turn needs silence after it: who stops sending ends a turn as well."""
        return self.floor.in_turn

    def take(self, command: ev.Command) -> list[ev.Event]:
        """Obey a command; the events that belong to no frame (queued, refused, dropped)."""
        count = len(self._events)
        self._obey(command)
        now, self._events[count:] = self._events[count:], []
        return now

    def step(
        self, sampled: int, heard: HeardRow, peak_in: float, peak_out: float
    ) -> tuple[int, bool]:
        """The text token to feed for the next frame, and whether that frame is silenced.

        sampled is the model's own token, peak_in the user frame's, peak_out the last agent
        frame's. FREE with nothing to say returns `sampled` untouched.
        """
        self._note_user(self.floor.take_frame(peak_in, heard))
        self._own.latch.take_frame(self.floor.loud, self.floor.turn_ended)
        self._silent_frames = 0 if self._has_business else self._silent_frames + 1
        if self._ending_turn:
            self._ending_turn = False
            self._end_hold()
            if self.agenda.current:
                self._doubted = False
                self._stop(SayState.CANCELLED)
            self._enter(Mode.TAIL)
            self.hush = True
        if self.paused:
            return PAD, True
        self._frames_in_mode += 1
        self._watch_for_barge_in()
        if self.mode in (Mode.FREE, Mode.HOLD) and self.agenda.queue:
            self._arm()
        token = CHOOSE[self.mode](self, sampled, peak_out)
        self._run = self._run + 1 if token == PAD else 0
        return token, self.hush

    def events(self) -> list[ev.Event]:
        """The events of the last step, in order; they leave with the frame it chose."""
        events, self._events[:] = self._events.copy(), []
        return events

    @property
    def flushing(self) -> bool:
        """Whether the recogniser should run ahead on silence: a turn has just ended."""
        return self.floor.runs_ahead

    def flush(self, heard: HeardRow) -> list[ev.Event]:
        """Take a step of the recogniser that belongs to no frame; what to tell at once."""
        self._note_user(self.floor.take_step(heard))
        return self.events()

    def _note_user(self, texts: list[ev.UserText]) -> None:
        for text in texts:
            self._events.append(text)
            if text.final:
                self._own.latch.note_turn(text.text)
                said = self.agenda.current.spoken if self.agenda.current else ""
                if not (is_backchannel(text.text) or is_echo(text.text, said)):
                    self._believe_interruption()

    def _obey(self, command: ev.Command) -> None:
        match command:
            case ev.Say():
                self._say(command)
            case ev.More():
                self.agenda.grow(command)
            case ev.Refuse(message):
                self._events.append(ev.Refused(message))
            case ev.Cancel():
                self._cancel()
            case ev.EndTurn():
                self.agenda.drop_waiting()
                self._ending_turn = True
            case ev.Pause():
                if not self.paused and self.mode is Mode.SPEAK:
                    self.agenda.current.step_back()  # nobody would hear the rest of this word
                    self._arming = Arming()
                    self._enter(Mode.ARMED)
                self.paused = True
            case ev.Resume():
                self.paused = False
            case ev.HoldBack(id):
                self._held_back = id
            case ev.Hold():
                self._believe_interruption()
                self._held_back = 0
                if not self.held or self.held.claimed:
                    self._own.latch.fire()
                    self.held = Held(command.id)
                self.held.claim(command)
                if self.mode in (Mode.FREE, Mode.TAIL):
                    self._enter(Mode.HOLD)
            case ev.Release(id):
                if self._held_back == id:  # the agent may go on as if nothing had been
                    self._held_back = 0
                    if self.held and self.held.id == id:
                        self.held = None
                        self._enter(Mode.FREE)
                if self.held and self.held.id == id:
                    self._release()
            case ev.SetRouting(on):
                self._show(self._own.switch(on))
            case ev.UserText():
                self._note_user([command])

    def _say(self, say: ev.Say) -> None:
        if say.replace:
            self._cancel()
        if say.answer and not (self.held and self.held.id == say.answer):
            self._events.append(ev.Saying(say.id, SayState.CANCELLED, say.text))  # it is too late
        elif self.agenda.add(say) and say.answer:
            self.held = None
            if self.mode is Mode.ARMED and self.agenda.current.filler:
                self._stop(SayState.CANCELLED)  # the answer needs no filler before it
                self._enter(Mode.HOLD)
            if self.mode is Mode.HOLD:
                self._arm()

    def _cancel(self) -> None:
        self.agenda.drop_waiting()
        self._believe_interruption()
        self._cancelling = self.agenda.current is not None
        self._end_hold()

    def _choose_free(self, sampled: int, _peak_out: float) -> int:
        if self._held_back and sampled != PAD:
            self.held = Held(self._held_back, claimed=True)
            self._enter(Mode.HOLD)
            return PAD
        own = self._own.take(sampled)
        self._show(own.shown)
        if own.ignored:
            self._events.append(ev.MarkerIgnored())
        if own.source:
            self._own.latch.fire()
            self.held = Held(self._new_hold_id())
            self._events.append(ev.Triggered(self.held.id, own.source))
            self._enter(Mode.HOLD)
        return own.fed

    def _choose_armed(self, sampled: int, _peak_out: float) -> int:
        if self._cancelling:
            return self._stop(SayState.CANCELLED)
        if not self._arming.is_time(sampled != PAD, self.floor.speaking):
            return PAD
        if not self.agenda.current.words:  # a growing text whose first clause has not come yet
            return PAD if self.agenda.current.growing else self._stop(SayState.DONE)
        self._enter(Mode.SPEAK)
        self.agenda.begin()
        return EPAD

    def _choose_speak(self, sampled: int, peak_out: float) -> int:
        said = self.agenda.current
        if self._cancelling and not said.pieces:
            return self._stop(SayState.CANCELLED)
        match said.pace(sampled != PAD, peak_out < QUIET_OUT):
            case Pace.PIECE:
                return self.agenda.feed_piece()
            case Pace.END:
                return self._stop(SayState.DONE)
            case Pace.WORD:
                self.agenda.begin()
                return EPAD if sampled == EPAD or self._run else self.agenda.feed_piece()
            case _:
                return PAD

    def _choose_tail(self, _sampled: int, _peak_out: float) -> int:
        if self.agenda.current:  # stopped by speech of which no word is known yet
            self._judge_interruption()
            return PAD
        over = self.floor.speaking or self._frames_in_mode >= TAIL_LIMIT_FRAMES
        if self._frames_in_mode >= TAIL_FRAMES and self.held:
            self._enter(Mode.HOLD)
        elif self._frames_in_mode >= TAIL_FRAMES and (self.agenda.queue or over):
            self._enter(Mode.FREE)
        return PAD

    def _choose_hold(self, _sampled: int, peak_out: float) -> int:
        patience = self.held.wait(peak_out > QUIET_OUT)
        self.hush = self.held.loud >= HUSH_AFTER_FRAMES
        if patience is Patience.FILL:  # the hold goes on when it has been said
            if self.agenda.add(self.held.fillers.popleft(), filler=True):
                self._arm()
        elif patience is Patience.GIVE_UP:  # nothing came for too long: say so
            end = HoldEnd.TIMEOUT if self.held.claimed else HoldEnd.UNCLAIMED
            self._events.append(ev.HoldEnded(self.held.id, end))
            if self.held.apology:
                self._say(replace(self.held.apology, answer=self.held.id))
            else:
                self._release()
        return PAD

    @property
    def _has_business(self) -> bool:
        busy = self.agenda.current or self.agenda.queue or self.held
        return not self.paused and bool(busy)

    def _enter(self, mode: Mode) -> None:
        if self.mode is Mode.FREE:
            self._show(self._own.leave())
        self.mode, self._frames_in_mode, self.hush = mode, 0, False

    def _arm(self) -> None:
        self._arming = Arming(self.agenda.take_next().urgent)
        self._enter(Mode.ARMED)

    def _release(self) -> None:
        self.held = None
        if self.mode is Mode.HOLD:
            self._enter(Mode.TAIL)

    def _stop(self, state: SayState) -> int:
        if not (self._doubted and state is SayState.CANCELLED):
            self.agenda.finish(state)
            self._doubted = False
        self._cancelling, self._doubt_frames = False, 0
        self._enter(Mode.TAIL)
        return PAD

    def _judge_interruption(self) -> None:
        """One more frame of silence: without words for a second, what was said goes on.

        It goes on once, from the start of the clause that was cut.
        """
        waits = self.floor.speaking or self.floor.writing
        self._doubt_frames = 0 if self.floor.speaking else self._doubt_frames + 1
        if self._frames_in_mode >= DOUBT_LIMIT_FRAMES:
            self._believe_interruption()
        elif not waits and self._doubt_frames >= DOUBT_FRAMES:
            self._doubted = False
            self.agenda.resume()
            self._arming = Arming(urgent=True)
            self._enter(Mode.ARMED)

    def _believe_interruption(self) -> None:
        """It had words, or nobody wants the rest any more: what was stopped is over."""
        if self._doubted and self.mode is Mode.TAIL:
            self.agenda.finish(SayState.CANCELLED)
        self._doubted = False

    def _end_hold(self) -> None:
        if self._held_back and not self.held:
            self._events.append(ev.HoldEnded(self._held_back, HoldEnd.STALE))
        self._held_back = 0
        if self.held:
            self._events.append(ev.HoldEnded(self.held.id, HoldEnd.STALE))
            self._release()

    def _watch_for_barge_in(self) -> None:
        """A new onset of the user's speech, or a word, stops what is being said.

        A wait for an answer goes on: whether the words are a new question is not decided here.
        """
        current = self.agenda.current
        if not current:
            return
        has_word = bool(self.floor.word) and self.floor.said_word(current.spoken)
        if has_word:
            self._believe_interruption()
        onset = self.floor.interruption(has_word)
        if onset is None or self.mode is not Mode.SPEAK or onset >= self._frames_in_mode:
            return
        can_resume = self.floor.has_words and not (current.resumed or current.filler)
        self._doubted = not has_word and can_resume and not self._cancelling
        self._cancelling = True

    def _show(self, text: str) -> None:
        if text:
            self._events.append(ev.Text(text, given=False))


CHOOSE: dict[Mode, Callable] = {
    Mode.FREE: Director._choose_free,
    Mode.ARMED: Director._choose_armed,
    Mode.SPEAK: Director._choose_speak,
    Mode.TAIL: Director._choose_tail,
    Mode.HOLD: Director._choose_hold,
}
