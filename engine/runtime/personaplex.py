"""States of prompts that were run before, so that a known voice and persona connect at once."""

import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from engine.config import FRAME_SAMPLES, PAD, SamplingConfig
from engine.model.gpu.graphs import Ticks, Words
from engine.model.loop import Loop, PromptState
from engine.model.mimi import Stream
from engine.model.prompt import Prompt, Voice, build_prompt, prompt_frames
from engine.model.stt import Hearing, silence_codes
from engine.model.transformer import Active, Rings
from engine.runtime.backend import Heard, HeardRow, Opening, Spoken, Transcription
from engine.runtime.load import TickTable, time_ticks
from engine.runtime.renewal import Renewal, settle
from engine.weights.loading import Checkpoint, LoadedRecogniser, file_hash, read_saved_voice

MEGABYTE = 1_000_000
Key = tuple[str, tuple[int, ...]]  # hash of the voice's file, text ids of the persona


class PromptCache:
    """Least recently used out, within a budget in MB. Only the scheduler's thread uses it."""

    def __init__(self, budget_mb: float) -> None:
        self._budget = budget_mb * MEGABYTE
        self._kept: OrderedDict[Key, PromptState] = OrderedDict()

    def get(self, key: Key) -> PromptState | None:
        """The state of a prompt, if it is kept; it counts as used now."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Key, ready: PromptState) -> None:
        """Keep a state; those unused for longest make room. Too large a one is not kept."""
        if ready.bytes > self._budget:
            return
        self._kept[key] = ready
        self._kept.move_to_end(key)
        while sum(kept.bytes for kept in self._kept.values()) > self._budget:
            self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)


# -- ear -------------------------------------------------------------------------------------------
#
# The recogniser beside the frame loop: for which slots it runs, and what its results are called.
#
# It runs in the loop's ticks (engine/model/gpu/graphs.py) and reads what the codec has encoded
# there
# anyway. Switching it off altogether is the backend's affair; what its tokens mean, the dialogue's.

NOT_RUN = -1  # instead of a token


class Transcriber:
    """Only the scheduler's thread may call it, and make it under inference mode."""

    def __init__(self, recogniser: LoadedRecogniser, loop: Loop) -> None:
        config = recogniser.stt.config
        silence = silence_codes(loop.mimi, config.n_q)
        self.hearing = Hearing(recogniser.stt, loop.slots, silence)
        self.transcription = Transcription(recogniser.tokenizer, config.delay_frames)
        self._open: set[int] = set()  # slots that are transcribed

    def open(self, slot: int) -> None:
        """Run for this slot from its bootstrap on."""
        self._open.add(slot)

    def clear(self, slot: int) -> None:
        self._open.discard(slot)
        self.hearing.clear(slot)

    def among(self, slots: Iterable[int]) -> list[int]:
        """Those of some slots for which it runs."""
        return [slot for slot in slots if slot in self._open]


def written(words: Words, slots: list[int]) -> Words:
    """Results of a step that ran for these slots only: the other rows are NOT_RUN."""
    text, pause = words
    ran = np.isin(np.arange(len(text)), slots)
    return np.where(ran, text, NOT_RUN), pause


def rows(words: Words, slots: list[int]) -> dict[int, HeardRow]:
    """The same, slot by slot."""
    text, pause = words
    return {s: HeardRow(int(text[s]), None if pause is None else pause[s]) for s in slots}


# -- personaplex -----------------------------------------------------------------------------------
#
# The model as a backend: openings, prompts and seeds around the frame loop of engine/model.
#
# Only the scheduler's thread may call it, and only it turns numpy into tensors and back.

CACHE_MB = 500.0  # of prompt states: nine of 100 columns of the public model in bf16
CPU_SLOTS = 4  # on a CPU neither memory nor ticks are measured


class PersonaPlexBackend:
    """Keeps the contract of `runtime/backend.py`."""

    limited_by = "asked"  # what made the number of slots; whoever chose them says so

    def __init__(
        self,
        checkpoint: Checkpoint,
        slots: int = CPU_SLOTS,
        cache_mb: float = CACHE_MB,
        recogniser: LoadedRecogniser | None = None,
        *,
        graphs: bool = True,
        kv_dtype: torch.dtype | None = None,
        renewal_frames: int = 0,
        spare_columns: int = 0,
    ) -> None:
        """spare_columns: of the memory in which calls are renewed; 0: as a slot's own."""
        self.checkpoint, self.name, self.slots = checkpoint, checkpoint.name, slots
        self.tokenizer, self.voices = checkpoint.tokenizer, checkpoint.voices.names
        self.config = checkpoint.lm.config
        self.loop = Loop(checkpoint.lm, checkpoint.mimi, slots, kv_dtype)
        self.cache = PromptCache(cache_mb)
        self._voices: dict[str, Voice] = {}  # by the hash of their file
        self._active = np.zeros(slots, bool)
        self.transcribing = self.transcribes = recogniser is not None
        with torch.inference_mode():
            self.ear = Transcriber(recogniser, self.loop) if recogniser else None
            self.runner = Ticks(self.loop, graphs, hearing=self.ear and self.ear.hearing)
        self.ticks: TickTable | None = None
        self.renewal: Renewal | None = None
        if renewal_frames:
            columns = spare_columns or self.loop.rings.capacity
            self.renewal = Renewal(self.loop, renewal_frames, columns, self.runner)
        self._prompts: dict[int, tuple[Voice, Tensor]] = {}  # of slots that can be renewed

    # -- one conversation --------------------------------------------------------------------------

    def open(self, slot: int, opening: Opening) -> Iterator[None]:
        """Each `next` runs at most 64 columns (or a frame of a recorded voice) for this slot."""
        self.close(slot)
        path = self.checkpoint.voices.path(opening.voice)
        key = file_hash(path), opening.text_ids
        ready = self.cache.get(key)
        if ready is None:
            yield from self._load_voice(opening.voice, key[0])
            prompt = self._prompt(self._voices[key[0]], opening.text_ids)
            for embedded in self._embedded(prompt).split(self.loop.piece):
                self._prefill(slot, embedded)
                yield
            ready = self._ready(slot, prompt)
            self.cache.put(key, ready)
        self._start(slot, ready, opening)
        if self.renewal and self.renewal.enter(slot, ready.columns + 1):
            frames = prompt_frames(self.config, opening.text_ids)
            self._prompts[slot] = self._voices[key[0]], frames

    def renew(self, slot: int) -> Generator[None, None, int] | None:
        """Work that gives a slot whose context runs out a new one; None where none is due."""
        if slot not in self._prompts or not self.renewal.due(slot):
            return None
        return self.renewal.run(slot, *self._prompts[slot])

    def tune(self, slot: int, sampling: SamplingConfig) -> None:
        self.loop.sampler.tune(slot, sampling)

    @torch.inference_mode()
    def close(self, slot: int) -> None:
        self.loop.clear(slot)
        self._prompts.pop(slot, None)
        if self.renewal:
            self.renewal.forget(slot)
        if self.ear:
            self.ear.clear(slot)

    def context_used(self, slot: int) -> float:
        """Columns in the ring, of those it holds, 0 to 1."""
        return min(1.0, self.loop.rings.pushed[slot] / self.loop.rings.capacity)

    @torch.inference_mode()
    def measure(self) -> None:
        """Time a tick of every bucket, but on a CPU, which has one; every slot is cleared."""
        if len(self.runner.buckets) == 1 and not self.runner.cuda:
            return
        for slot in range(self.slots):
            for rings in self._all_rings():
                rings.set_position(slot, rings.capacity)  # what is in them costs no time
            self.tune(slot, SamplingConfig())
        self.ticks = time_ticks(self.runner.buckets, self._timed, self._timed_piece)
        for slot in range(self.slots):
            self.close(slot)

    def _all_rings(self) -> list[Rings]:
        """The model's, the codec's both ways, and the recogniser's."""
        parts = [self.loop, self.loop.encoder, self.loop.decoder]
        return [part.rings for part in (*parts, *([self.ear.hearing] if self.ear else []))]

    @torch.inference_mode()
    def _timed(self, slots: int) -> float:
        """Seconds of one tick of the first slots, all transcribed where that is possible."""
        start = time.perf_counter()
        active = np.arange(self.slots) < slots
        pcm = np.zeros((self.slots, FRAME_SAMPLES), np.float32)
        text, *_ = self.runner.listen(pcm, active, range(slots) if self.ear else ())
        self.runner.speak(np.where(active, text, PAD), np.zeros(self.slots, bool))
        return time.perf_counter() - start

    def _timed_piece(self) -> float:
        """Seconds of one piece of a prompt, the last that its ring has room for."""
        rings, piece, table = self.loop.rings, self.loop.piece, self.checkpoint.lm.embedding.table
        rings.set_position(0, max(0, rings.capacity - piece))
        start = time.perf_counter()
        self._prefill(0, table.new_zeros(piece, table.shape[1]))
        return time.perf_counter() - start

    # -- one tick ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def listen(self, pcm: np.ndarray, active: np.ndarray) -> Heard:
        self._active = active
        writing = self.ear.among(np.flatnonzero(active).tolist()) if self.transcribing else []
        text, codes, words = self.runner.listen(pcm, active, writing)
        self._user_codes = codes
        return Heard(text, codes, *(written(words, writing) if words else ()))

    @torch.inference_mode()
    def speak(self, text: np.ndarray, hush: np.ndarray) -> Spoken:
        fed = np.where(self._active, text, PAD)
        known = (fed >= 0) & (fed < self.config.text_card)
        assert known.all(), f"text tokens {fed[~known]} are not in the vocabulary"
        active = np.flatnonzero(self._active).tolist()
        talking = [slot for slot in active if slot not in self.loop.booting]
        pcm, codes = self.runner.speak(fed, hush)
        if self.renewal:
            self.renewal.begin([slot for slot in active if slot not in talking], fed)
            self.renewal.note(talking, fed, self._user_codes, codes)
        return Spoken(pcm=pcm, codes=codes)

    @property
    def transcription(self) -> Transcription:
        return self.ear.transcription

    @torch.inference_mode()
    def flush(self, slots: list[int]) -> dict[int, HeardRow]:
        slots = self.ear.among(slots) if self.transcribing else []
        return rows(self.runner.flush(slots), slots) if slots else {}

    # -- prompts -----------------------------------------------------------------------------------

    def prompt_frames(self, opening: Opening) -> int:
        """Frames of a prompt whose voice has been loaded by an `open` of the same voice."""
        voice = self._voices[file_hash(self.checkpoint.voices.path(opening.voice))]
        return self._prompt(voice, opening.text_ids).frames

    def _prompt(self, voice: Voice, text_ids: tuple[int, ...]) -> Prompt:
        return build_prompt(self.config, voice, prompt_frames(self.config, text_ids))

    @torch.inference_mode()
    def _embedded(self, prompt: Prompt) -> Tensor:
        """What the transformer reads of all columns but the last [P - 1, dim]."""
        return prompt.embed(self.checkpoint.lm.embedding, 0, prompt.frames - 1)

    @torch.inference_mode()
    def _prefill(self, slot: int, embedded: Tensor) -> None:
        self.runner.prefill.run(slot, embedded)
        settle(self.loop.device)

    @torch.inference_mode()
    def _ready(self, slot: int, prompt: Prompt) -> PromptState:
        return self.loop.save_prompt(slot, prompt)

    @torch.inference_mode()
    def _start(self, slot: int, ready: PromptState, opening: Opening) -> None:
        self.loop.start(slot, ready)
        self.loop.sampler.seed(slot, opening.seed)
        self.loop.sampler.tune(slot, opening.sampling)
        if self.ear and opening.transcribe:
            self.ear.open(slot)

    def _load_voice(self, name: str, digest: str) -> Iterator[None]:
        """Read a saved voice, or encode a recorded one: a frame takes as long as a piece."""
        if digest in self._voices:
            return
        path = self.checkpoint.voices.path(name)
        if path.suffix == ".pt":
            self._voices[digest] = read_saved_voice(path, self.config)
            return
        pcm = self.checkpoint.voices.audio(name)
        pcm = np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES))
        stream, codes = self.checkpoint.mimi.encoder_stream(1), []
        for frame in torch.from_numpy(pcm).view(-1, 1, FRAME_SAMPLES):
            codes.append(self._encode(frame, stream))
            yield
        self._voices[digest] = Voice(codes=torch.cat(codes))

    @torch.inference_mode()
    def _encode(self, frame: Tensor, stream: Stream) -> Tensor:
        """The next frame [1, 1920] through the streaming codec [1, Q]."""
        active = Active.of([0], 1, self.loop.device)
        return self.checkpoint.mimi.encode(frame.to(self.loop.device), stream, active).cpu()
