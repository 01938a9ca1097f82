"""Which text token is fed, frame by frame: the model's timing, our words (listening.md 2.2).

A pure state machine of one conversation: no torch, no clock but the frame count. It belongs to the
scheduler's thread. The session posts commands and gets events; it never calls `step`.
Source: the state machine of Kyutai's delayed-streams text-to-speech, adapted to a model whose
audio is aligned with its text.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from engine.config import EPAD, PAD
from engine.dialogue import events as ev
from engine.dialogue.events import SayState
from engine.dialogue.pieces import PieceDecoder
from engine.dialogue.transcript import Transcript
from engine.dialogue.utterance import Utterance, prepare
from engine.runtime.backend import HeardRow, Tokenizer, Transcription

QUEUE_LIMIT = 10  # texts waiting to be said
FLOOR_WAIT_FRAMES = 25  # 2 s: the longest wait for a user who is speaking
ARM_FRAMES, ARM_LIMIT_FRAMES = 2, 8  # a word starts after 2 frames on a vote, after 8 anyway
TAIL_FRAMES, TAIL_LIMIT_FRAMES = 4, 25
DRY_FRAMES = 12  # a growing text may run out of words for so long
SILENT_CLIENT_FRAMES = 12  # frames invented for a client without audio after the last word
QUIET_OUT = 10 ** (-45 / 20)  # peak of an agent frame that counts as silence
HUSH_AFTER_FRAMES = 6  # loud frames of a held agent before its audio is silenced as well


class Mode(Enum):
    FREE, ARMED, SPEAK, TAIL, HOLD = (auto() for _ in range(5))


@dataclass(slots=True)
class Held:
    """A hold: whose answer is waited for, and for how long."""

    id: int
    frames: int = 0
    loud: int = 0  # agent frames above QUIET_OUT


class Director:
    """One conversation's director. `step` once a tick; `take` for each command before it."""

    def __init__(self, tokenizer: Tokenizer, transcription: Transcription | None = None) -> None:
        self.floor = Transcript(transcription)
        self.mode = Mode.FREE
        self.paused = False
        self.queue: deque[Utterance] = deque()
        self.current: Utterance | None = None
        self.held: Held | None = None
        self.hush = False
        self._tokenizer = tokenizer
        self._decoder = PieceDecoder()
        self._events: list[ev.Event] = []
        self._cancelling = False  # after the current word
        self._ending_turn = False  # at once
        self._frames_in_mode = 0
        self._waited = 0  # frames armed
        self._floor_waited = 0
        self._run = 0  # PADs fed in a row
        self._silent_frames = SILENT_CLIENT_FRAMES  # since there was something to say

    # -- what the scheduler calls ------------------------------------------------------------------

    @property
    def wants_frames(self) -> bool:
        """Whether a client that sends no audio must get frames all the same (wire.md 5)."""
        return self._has_business or self._silent_frames < SILENT_CLIENT_FRAMES

    def take(self, command: ev.Command) -> list[ev.Event]:
        """Obey a command; the events that belong to no frame (queued, refused, dropped)."""
        before = len(self._events)
        TAKE[type(command)](self, command)
        now = self._events[before:]
        del self._events[before:]
        return now

    def step(
        self, sampled: int, heard: HeardRow, peak_in: float, peak_out: float
    ) -> tuple[int, bool]:
        """The text token to feed for the next frame, and whether that frame is silenced.

        sampled is the model's own token, peak_in the user frame's, peak_out the last agent
        frame's. FREE with nothing to say returns `sampled` untouched.
        """
        self._note(self.floor.hear(peak_in, heard))
        self._silent_frames = 0 if self._has_business else self._silent_frames + 1
        if self._ending_turn:
            self._end_turn()
        if self.paused:
            return PAD, True
        self._frames_in_mode += 1
        self._watch_for_barge_in()
        if self.mode in (Mode.FREE, Mode.HOLD) and self.queue:
            self._arm()
        token = CHOOSE[self.mode](self, sampled, peak_out)
        self._run = self._run + 1 if token == PAD else 0
        return token, self.hush

    def events(self) -> list[ev.Event]:
        """The events of the last step, in order; they leave with the frame it chose."""
        events, self._events = self._events, []
        return events

    @property
    def flushing(self) -> bool:
        """Whether the recogniser should run ahead on silence: a turn has just ended."""
        return self.floor.flushing

    def flush(self, heard: HeardRow) -> list[ev.Event]:
        """Take a step of the recogniser that belongs to no frame; what to tell at once."""
        self._note(self.floor.flush(heard))
        return self.events()

    def user_turn(self, text: str) -> None:
        """A turn of the user has ended with these words."""
        self._events.append(ev.UserTurn(text))

    def _note(self, heard: list[ev.UserText]) -> None:
        """What the user is found to have said."""
        for event in heard:
            self._events.append(event)
            if event.final:
                self.user_turn(event.text)

    # -- commands ----------------------------------------------------------------------------------

    def _take_say(self, say: ev.Say) -> None:
        if say.replace:
            self._take_cancel(ev.Cancel())
        words = prepare(say.text, self._tokenizer)
        if not words and not say.growing:
            self._events.append(ev.Refused("say: nothing in this text can be spoken; send words"))
        elif len(self.queue) >= QUEUE_LIMIT:
            self._events.append(
                ev.Refused(f"say: {QUEUE_LIMIT} texts are waiting already; wait for one, or cancel")
            )
        else:
            utterance = Utterance(say.id, say.text, deque(words), say.growing, say.answer)
            self._events.append(ev.Saying(say.id, SayState.QUEUED, say.text))
            self._enqueue(utterance)

    def _enqueue(self, utterance: Utterance) -> None:
        if not utterance.answer:
            self.queue.append(utterance)
            return
        self.queue.appendleft(utterance)  # an answer goes before what was queued meanwhile
        self.held = None
        if self.mode is Mode.HOLD:
            self._arm(waited=ARM_LIMIT_FRAMES)

    def _take_more(self, more: ev.More) -> None:
        for utterance in (self.current, *self.queue):
            if utterance and utterance.id == more.id and utterance.growing:
                utterance.words += prepare(more.text, self._tokenizer)
                utterance.text = f"{utterance.text} {more.text}".strip()
                utterance.growing = not more.last

    def _take_cancel(self, _cancel: ev.Cancel) -> None:
        self._drop_queue()
        self._cancelling = self.current is not None
        self._end_hold("stale")

    def _take_end_turn(self, _end: ev.EndTurn) -> None:
        self._drop_queue()
        self._ending_turn = True

    def _take_pause(self, _pause: ev.Pause) -> None:
        if not self.paused and self.mode is Mode.SPEAK:
            self.current.step_back()  # nobody would hear the rest of this word
            self._enter(Mode.ARMED)
        self.paused = True

    def _take_resume(self, _resume: ev.Resume) -> None:
        self.paused = False

    def _take_hold(self, hold: ev.Hold) -> None:
        self.held = Held(hold.id)
        if self.mode in (Mode.FREE, Mode.TAIL):
            self._enter(Mode.HOLD)

    def _take_release(self, release: ev.Release) -> None:
        if self.held and self.held.id == release.id:
            self.held = None
            if self.mode is Mode.HOLD:
                self._enter(Mode.TAIL)

    # -- one choice a mode -------------------------------------------------------------------------

    def _choose_free(self, sampled: int, _peak_out: float) -> int:
        self._show_own(sampled)
        return sampled

    def _choose_armed(self, sampled: int, _peak_out: float) -> int:
        if self._cancelling:
            return self._stop(SayState.CANCELLED)
        if self.floor.speaking and self._floor_waited < FLOOR_WAIT_FRAMES:
            self._floor_waited += 1
            return PAD
        self._waited += 1
        voted = sampled != PAD
        if self._waited < ARM_FRAMES or (not voted and self._waited < ARM_LIMIT_FRAMES):
            return PAD
        if not self.current.words:  # a growing text whose first clause has not come yet
            return PAD if self.current.growing else self._stop(SayState.DONE)
        self._enter(Mode.SPEAK)
        if not self.current.started:
            self.current.started = True
            self._report(SayState.SPEAKING)
        self.current.begin_word()
        return EPAD

    def _choose_speak(self, sampled: int, peak_out: float) -> int:
        said = self.current
        if self._cancelling and not said.pieces:
            return self._stop(SayState.CANCELLED)
        said.since += 1
        if said.pieces:
            return self._feed_piece()
        voted = sampled != PAD
        if said.since < said.word.need:
            return PAD
        if not said.words:
            return self._ring_out(voted and peak_out < QUIET_OUT)
        if not voted and said.since < said.word.limit:
            return PAD
        said.begin_word()
        return EPAD if sampled == EPAD or self._run else self._feed_piece()

    def _choose_tail(self, _sampled: int, _peak_out: float) -> int:
        over = self.floor.speaking or self._frames_in_mode >= TAIL_LIMIT_FRAMES
        if self._frames_in_mode >= TAIL_FRAMES and self.held:
            self._enter(Mode.HOLD)
        elif self._frames_in_mode >= TAIL_FRAMES and (self.queue or over):
            self._enter(Mode.FREE)
        return PAD

    def _choose_hold(self, _sampled: int, peak_out: float) -> int:
        self.held.frames += 1
        self.held.loud += peak_out > QUIET_OUT
        self.hush = self.held.loud >= HUSH_AFTER_FRAMES
        return PAD

    # -- verbs -------------------------------------------------------------------------------------

    @property
    def _has_business(self) -> bool:
        return not self.paused and bool(self.current or self.queue or self.held)

    def _enter(self, mode: Mode) -> None:
        self.mode, self._frames_in_mode, self.hush = mode, 0, False
        self._waited = self._floor_waited = 0

    def _arm(self, waited: int = 0) -> None:
        self.current = self.queue.popleft()
        self._enter(Mode.ARMED)
        self._waited = waited

    def _feed_piece(self) -> int:
        piece, shown = self.current.next_piece()
        if shown:
            self._events.append(ev.Text(f" {shown}", given=True))
        return piece

    def _ring_out(self, ended: bool) -> int:
        """After the last word: done when its audio has ended, or surely must have."""
        growing, word = self.current.growing, self.current.word
        limit = word.ring_out + (DRY_FRAMES if growing else 0)
        over = (ended and not growing) or self.current.since >= limit
        return self._stop(SayState.DONE) if over else PAD

    def _end_turn(self) -> None:
        self._ending_turn = False
        self._end_hold("stale")
        if self.current:
            self._finish(SayState.CANCELLED)
        self._enter(Mode.TAIL)
        self.hush = True

    def _stop(self, state: SayState) -> int:
        self._finish(state)
        self._enter(Mode.TAIL)
        return PAD

    def _finish(self, state: SayState) -> None:
        self._report(state)
        self.current, self._cancelling = None, False

    def _report(self, state: SayState) -> None:
        said = self.current
        self._events.append(ev.Saying(said.id, state, said.text, said.spoken))

    def _drop_queue(self) -> None:
        for said in self.queue:
            self._events.append(ev.Saying(said.id, SayState.CANCELLED, said.text))
        self.queue.clear()

    def _end_hold(self, state: str) -> None:
        if self.held:
            self._events.append(ev.HoldEnded(self.held.id, state))
            self.held = None
            if self.mode is Mode.HOLD:
                self._enter(Mode.TAIL)

    def _watch_for_barge_in(self) -> None:
        """A new onset of the user's speech, three frames long, stops what is being said.

        A word that the agent is not just saying itself does so at once.
        """
        if self.mode not in (Mode.SPEAK, Mode.HOLD):
            return
        onset = self.floor.interruption(self.current.spoken if self.current else "")
        if onset is not None and onset < self._frames_in_mode:
            self._cancelling = self.current is not None
            self._end_hold("stale")

    def _show_own(self, token: int) -> None:
        piece = "" if token <= PAD else self._decoder.feed(self._tokenizer.piece(token))
        if piece:
            self._events.append(ev.Text(piece, given=False))


TAKE: dict[type, Callable] = {
    ev.Say: Director._take_say,
    ev.More: Director._take_more,
    ev.Cancel: Director._take_cancel,
    ev.EndTurn: Director._take_end_turn,
    ev.Pause: Director._take_pause,
    ev.Resume: Director._take_resume,
    ev.Hold: Director._take_hold,
    ev.Release: Director._take_release,
}
CHOOSE: dict[Mode, Callable] = {
    Mode.FREE: Director._choose_free,
    Mode.ARMED: Director._choose_armed,
    Mode.SPEAK: Director._choose_speak,
    Mode.TAIL: Director._choose_tail,
    Mode.HOLD: Director._choose_hold,
}
