"""Ears for a machine whose model has no recogniser: who speaks, and what was said at a turn's end.

Voice activity by Silero, words by a small Whisper (both through faster-whisper, on the CPU). The
scheduler's thread only hands frames over; one thread runs the voice activity of all conversations,
another one writes turns down. Nothing here knows what the words are for.
"""

import logging
import os
import socket
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from engine.config import FRAME_SAMPLES, FRAME_SECONDS, MAX_WAITING_FRAMES, SAMPLE_RATE
from engine.errors import ModelError, describe_fault
from engine.weights.hub import fetch, repository_folder

logger = logging.getLogger(__name__)

REPOSITORY = "Systran/faster-whisper-tiny.en"  # MIT, 78 MB
REVISION = "0d3d19a32d3338f10357c0889762bd8d64bbdeba"
FILES = ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")

RATE = 16_000  # Hz, of both models
WINDOW, CONTEXT = 512, 64  # samples (32 ms), and those of the window before
SPEECH, STILL_SPEECH = 0.5, 0.35  # probability that begins speech, and that keeps it going
WINDOW_SECONDS = WINDOW / RATE
BEGIN_WINDOWS = 4  # of speech make a turn: shorter ones are clicks
WRITE_WINDOWS = 8  # of silence (0.26 s): a turn may be over, it is written down already
END_WINDOWS = 18  # of silence (0.58 s): it is over
PRE_ROLL_WINDOWS = 8  # kept from before the first window of speech
PIECE_SECONDS = 10.0  # of a turn are kept as a piece at the next pause: Whisper skips in long ones
MOST_SECONDS = 25.0  # of a piece without a pause: Whisper hears 30 s at once
STEP_BACK = 5  # in priority: frames come first, and words still come on a busy machine
FEATURE_SILENCE = 800  # columns (8 s) after a turn that Whisper needs: with three it repeats itself
MOST_TOKENS, MOST_TOKENS_A_SECOND = 24, 10  # of a turn: who speaks fast says five words a second
NO_SPEECH, UNSURE = 0.6, -1.2  # Whisper's own doubt: it invents words on noise

HUB_SECONDS = 5.0  # for a connection

ECHO_STEP = SAMPLE_RATE // 100  # envelopes are compared in steps of 10 ms
ECHO_SPAN, ECHO_DELAY = 50, 60  # steps that are compared, and the longest way through the air
ECHO = 0.8  # correlation above which the microphone may hear the agent
ECHO_FRAMES = 4  # for which it does, always as late: two who speak at once are alike by chance
ECHO_KNOWN_FRAMES = 8  # after which that is the call's way through the air
ECHO_DRIFT = 2  # steps by which the way may vary

WriteDown = Callable[[np.ndarray], str]  # samples [n] float32 at 16 kHz -> their words
# words, start, end (seconds of the user's audio), whether the turn is over or may only be
Deliver = Callable[[str, float, float, bool], None]


class Ears:
    """One process's ears. `open` gives a conversation its own."""

    def __init__(self, write_down: WriteDown | None = None) -> None:
        import faster_whisper
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        folder = Path(faster_whisper.__file__).parent / "assets"
        (model,) = folder.glob("silero_vad*.onnx")
        self.write_down = write_down  # None: who speaks is heard, not what is said
        self.silero = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self.writer = ThreadPoolExecutor(1, "words", initializer=step_back)
        self._waiting: deque[Listener] = deque()  # one entry a frame
        self._some = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ears", daemon=True)
        self._thread.start()

    def load(self, folder: Path, names: str) -> None:
        """Load a Whisper. Its threads come from the writer's, so that they step back too."""
        self.write_down = self.writer.submit(load_whisper, folder, names).result()

    def open(self, deliver: Deliver) -> "Listener":
        """A conversation's ears; `deliver` is called in a thread of theirs."""
        return Listener(self, deliver)

    def close(self) -> None:
        with self._some:
            self._closed = True
            self._some.notify()
        self._thread.join(1.0)  # inside the model at the process's end it would abort it
        self.writer.shutdown(wait=False, cancel_futures=True)

    def wake(self, listener: "Listener") -> None:
        with self._some:
            self._waiting.append(listener)
            self._some.notify()

    def _run(self) -> None:
        while True:
            with self._some:
                while not self._waiting and not self._closed:
                    self._some.wait()
                if self._closed:
                    return
                listener = self._waiting.popleft()
            try:
                listener.take_frame()
            except Exception as error:  # the thread's boundary: one frame goes unheard
                logger.error("the ears failed: %s", describe_fault(error))


def step_back() -> None:
    """Let every other thread go first: frames before words. Linux counts this by thread."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        priority = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(19, priority + STEP_BACK))


class Listener:
    """One conversation's ears: frames in, whether somebody speaks, words when a turn is over."""

    def __init__(self, ears: Ears, deliver: Deliver) -> None:
        self._ears, self._deliver = ears, deliver
        self.reset()

    def reset(self) -> None:
        """Begin anew: what was heard so far, and what is on its way, belongs to nobody."""
        self._state = ListenerState()

    @property
    def writing(self) -> bool:
        """Whether a turn is over, or may be, and its words are not there yet."""
        return self._state.written is not None

    def take_speech(self) -> tuple[bool, ...]:
        """Whether somebody speaks in each frame heard since the last call. Scheduler's thread."""
        heard = self._state.heard
        return tuple(heard.popleft() for _ in range(len(heard)))

    def push(self, user: np.ndarray, agent: np.ndarray) -> None:
        """One user frame, and the agent's frame before it: [1920] float32. Scheduler's thread."""
        state = self._state
        state.pushed += 1
        state.frames.append((state.pushed, user.copy(), agent))
        self._ears.wake(self)

    # -- the ears' thread --------------------------------------------------------------------------

    def take_frame(self) -> None:
        state = self._state
        try:
            number, user, agent = state.frames.popleft()
        except IndexError:
            return  # it went unheard, or the conversation began anew
        state.note_frame(number)
        is_echo = state.echo.take_frame(user, agent)
        windows = state.windows(user)
        speech = state.listen(self._ears.silero, windows)
        for window, probability in zip(windows, speech, strict=True):
            self._take_window(state, window, probability, is_echo)
        state.heard.append(state.speech)

    def _take_window(
        self, state: "ListenerState", window: np.ndarray, probability: float, is_echo: bool
    ) -> None:
        state.speech = probability > (STILL_SPEECH if state.speech else SPEECH) and not is_echo
        state.turn.append(window)
        state.spoken += state.speech
        state.quiet = 0 if state.speech else state.quiet + 1
        if state.spoken < BEGIN_WINDOWS:
            if state.quiet >= END_WINDOWS:
                state.spoken, state.unheard = 0, 0.0
            if not state.spoken:
                del state.turn[:-PRE_ROLL_WINDOWS]
            return
        if state.speech and state.written:  # the user goes on: what was written is not the whole
            if state.written_windows * WINDOW_SECONDS > PIECE_SECONDS:
                state.keep(state.written, state.written_windows)
            state.written = None
        elif state.written is None and state.quiet >= WRITE_WINDOWS:
            state.written, state.written_windows = self._write(state.turn), len(state.turn)
            self._tell(state, final=False)
        if state.quiet >= END_WINDOWS:
            self._finish(state)
        elif state.written is None and len(state.turn) * WINDOW_SECONDS > MOST_SECONDS:
            cut = find_quietest(state.turn)
            state.keep(self._write(state.turn[:cut]), cut)

    def _write(self, windows: "list[np.ndarray]") -> "Future[str]":
        write_down = self._ears.write_down or (lambda samples: "")
        return self._ears.writer.submit(write_down, np.concatenate(windows))

    def _finish(self, state: "ListenerState") -> None:
        """The turn is over: deliver its words as soon as they are there."""
        self._tell(state, final=True)
        state.turn = state.turn[-PRE_ROLL_WINDOWS:]
        state.spoken = state.quiet = state.earlier = 0
        state.parts, state.unheard = [], 0.0

    def _tell(self, state: "ListenerState", final: bool) -> None:
        """Deliver the words as soon as they are there; if not final, only while silence lasts."""
        parts, last = [*state.parts, state.written], state.written
        end = state.seconds - state.quiet * WINDOW_SECONDS
        heard = (state.earlier + len(state.turn) - state.quiet) * WINDOW_SECONDS
        start = end - heard - state.unheard

        def deliver(_: "Future[str]") -> None:
            try:
                void = state is not self._state or any(part.cancelled() for part in parts)
                goes_on = state.written is not last or not state.spoken  # or it is told as a whole
                if void or (goes_on and not final):
                    return
                text = " ".join(filter(None, (part.result().strip() for part in parts)))
                if text:
                    self._deliver(text, round(max(0.0, start), 3), round(end, 3), final)
            except Exception as error:  # the writer's boundary: this turn has no words
                if final:
                    logger.error("a turn could not be written down: %s", describe_fault(error))
            finally:  # not before: until then its words are on their way
                if final and state.written is last:
                    state.written = None

        last.add_done_callback(deliver)  # the writer is one thread: the others are done before


class ListenerState:
    """What the ears remember of one conversation, and its two boxes. Ears' thread."""

    def __init__(self) -> None:
        import soxr

        # (which one, user, agent), to be heard
        self.frames: deque[tuple[int, np.ndarray, np.ndarray]] = deque(maxlen=MAX_WAITING_FRAMES)
        self.pushed = self.taken = 0  # frames, counted from 1
        self.heard: deque[bool] = deque()  # whether somebody speaks, not asked for yet
        self.seconds = 0.0  # of the user's audio, also of what went unheard
        self.unheard = 0.0  # of these, within the turn
        self.speech = False
        self.spoken = self.quiet = 0  # windows of the turn with speech; without, in a row
        self.turn: list[np.ndarray] = []  # windows [512]
        self.parts: list[Future[str]] = []  # of a turn too long for one piece
        self.earlier = 0  # windows of these
        self.written: Future[str] | None = None
        self.written_windows = 0  # of the turn, that it is of
        self.echo = EchoFinder()
        self._resampler = soxr.ResampleStream(SAMPLE_RATE, RATE, 1, dtype="float32")
        self._rest = np.zeros(0, np.float32)
        self._context = np.zeros(CONTEXT, np.float32)
        self._memory = [np.zeros((1, 1, 128), np.float32)] * 2  # Silero's h and c

    def note_frame(self, number: int) -> None:
        """The next frame to be heard: those between it and the last one are lost."""
        if lost := number - self.taken - 1:
            if self.spoken:
                self.unheard += lost * FRAME_SECONDS
            else:
                self.turn.clear()  # no turn goes back to what came before the gap
        self.taken, self.seconds = number, number * FRAME_SECONDS

    def keep(self, part: "Future[str]", windows: int) -> None:
        """These first windows of the turn are a piece, whatever follows."""
        self.parts.append(part)
        self.earlier += windows
        del self.turn[:windows]

    def windows(self, frame: np.ndarray) -> np.ndarray:
        """The whole windows [n, 512] that this frame of 24 kHz completes."""
        samples = np.concatenate([self._rest, self._resampler.resample_chunk(frame)])
        count = len(samples) // WINDOW
        self._rest = samples[count * WINDOW :]
        return samples[: count * WINDOW].reshape(count, WINDOW)

    def listen(self, silero, windows: np.ndarray) -> list[float]:
        """The probability of speech in each window."""
        if not len(windows):
            return []
        samples = np.concatenate([self._context, windows.ravel()])
        starts = range(0, windows.size, WINDOW)
        rows = np.stack([samples[at : at + CONTEXT + WINDOW] for at in starts])  # [n, 576]
        h, c = self._memory
        probabilities, *self._memory = silero.run(None, {"input": rows, "h": h, "c": c})
        self._context = samples[-CONTEXT:]
        return probabilities.ravel().tolist()


def find_quietest(windows: "list[np.ndarray]") -> int:
    """Where to cut what has no pause: in the quietest tenth of a second of its second half."""
    half = len(windows) // 2
    loudness = [float(window @ window) for window in windows[half:]]
    return half + 1 + int(np.convolve(loudness, np.ones(3), "valid").argmin())


class EchoFinder:
    """Whether the microphone hears the agent: its loudness follows the agent's, some time later.

    That time stays the same. Once it is known, what follows the agent by another one is no echo.
    """

    def __init__(self) -> None:
        self._user = np.zeros(ECHO_SPAN, np.float32)  # envelopes, in steps of 10 ms
        self._agent = np.zeros(ECHO_SPAN + ECHO_DELAY, np.float32)
        self._alike = np.zeros(ECHO_DELAY + 1, int)  # frames in a row, for each way
        self._way: int | None = None  # of this call

    def take_frame(self, user: np.ndarray, agent: np.ndarray) -> bool:
        """One frame [1920] of each side, of the same time."""
        steps = FRAME_SAMPLES // ECHO_STEP
        for name, frame in (("_user", user), ("_agent", agent)):
            envelope = np.sqrt((frame.reshape(steps, ECHO_STEP) ** 2).mean(axis=1))
            setattr(self, name, np.concatenate([getattr(self, name)[steps:], envelope]))
        if not self._agent.any():
            return False
        ways = np.lib.stride_tricks.sliding_window_view(self._agent, ECHO_SPAN)  # [61, 50]
        ways = ways - ways.mean(axis=1, keepdims=True)
        user = self._user - self._user.mean()
        size = np.linalg.norm(ways, axis=1) * np.linalg.norm(user)
        alike = self._widen(ways @ user > ECHO * np.maximum(size, 1e-9), 1)
        self._alike = np.where(alike, self._alike + 1, 0)
        if self._alike.max() >= ECHO_KNOWN_FRAMES:
            self._way = int(self._alike.argmax())
        if self._way is None:
            return bool(self._alike.max() >= ECHO_FRAMES)
        return bool(self._widen(alike, ECHO_DRIFT)[self._way])

    @staticmethod
    def _widen(ways: np.ndarray, steps: int) -> np.ndarray:
        """[61] bool, with the neighbours of each."""
        return np.convolve(ways, np.ones(2 * steps + 1), "same") > 0


def find_whisper(source: str, progress: Callable[[str, float], None]) -> Path:
    """The folder of a Whisper in CTranslate2's form; `auto` and `1`: the usual one, fetched once.

    Raises ModelError.
    """
    if Path(source).is_dir():
        return Path(source)
    usual = source in ("auto", "1")
    here = repository_folder(REPOSITORY) / "snapshots" / REVISION / "model.bin"
    if usual and not here.is_file():
        find_hub()
    return fetch(REPOSITORY if usual else source, REVISION if usual else None, progress, FILES)


def find_hub() -> None:
    """Raises ModelError where the hub cannot be reached, at once: its client tries half a minute.

    A proxy is left to the client.
    """
    if urllib.request.getproxies():
        return
    from huggingface_hub.constants import ENDPOINT

    hub = urlsplit(ENDPOINT)
    try:
        port = hub.port or (443 if hub.scheme == "https" else 80)
        socket.create_connection((hub.hostname, port), HUB_SECONDS).close()
    except OSError as error:
        raise ModelError(
            f"{hub.hostname} cannot be reached ({type(error).__name__}), and {REPOSITORY} is not "
            "here yet: connect once, or give a folder that has it (--transcribe DIR)"
        ) from None


def trim_silence(features: np.ndarray) -> np.ndarray:
    """Whisper's input [80, 3000] without most of the nothing that fills it up to half a minute."""
    (sounding,) = np.nonzero(features.any(axis=0))
    count = sounding[-1] + 1 + FEATURE_SILENCE if len(sounding) else FEATURE_SILENCE
    return np.ascontiguousarray(features[:, : count + count % 2])


def load_whisper(folder: Path, hotwords: str) -> WriteDown:
    """A function from samples [n] at 16 kHz to words; int8, two threads of the CPU."""
    from faster_whisper import WhisperModel

    class BriskWhisper(WhisperModel):
        """Reads the turn and some silence after it, not half a minute: a quarter of the time."""

        def encode(self, features: np.ndarray):
            return super().encode(trim_silence(features))

    logging.getLogger("faster_whisper").setLevel(logging.WARNING)  # it tells of every turn
    model = BriskWhisper(str(folder), device="cpu", compute_type="int8", cpu_threads=2)

    def write_down(samples: np.ndarray) -> str:
        segments, _ = model.transcribe(
            samples,
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            hotwords=hotwords or None,
            max_new_tokens=MOST_TOKENS + MOST_TOKENS_A_SECOND * (len(samples) // RATE),
        )
        said = [
            segment.text.strip()
            for segment in segments
            if segment.no_speech_prob < NO_SPEECH and segment.avg_logprob > UNSURE
        ]
        return " ".join(said)

    return write_down
