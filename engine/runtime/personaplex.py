"""The model as a backend: openings, prompts and seeds around the frame loop of engine/model.

The recogniser runs in the loop's ticks and reads what the codec has encoded there anyway. States of
prompts that were run before are kept, so that a known voice and persona connect at once. Only the
scheduler's thread may call all this, but for `prepare`; only here numpy is turned into tensors and
back.
"""

import time
from collections import OrderedDict
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch import Tensor

from engine.config import FRAME_SAMPLES, PAD, SamplingConfig
from engine.model.gpu.graphs import Ticks
from engine.model.loop import PIECES, Loop, PromptState
from engine.model.prompt import Prompt, Voice, build_prompt, prompt_frames
from engine.model.stt import Hearing, silence_codes
from engine.model.transformer import Active
from engine.runtime.backend import Heard, HeardRow, Opening, Spoken, Transcription
from engine.runtime.load import TickTable, time_ticks
from engine.runtime.renewal import Renewal, wait_for
from engine.weights.loading import Checkpoint, LoadedRecogniser, file_hash, read_saved_voice

MEGABYTE = 1_000_000
CACHE_MB = 500.0  # of prompt states: nine of 100 columns of the public model in bf16
CPU_SLOTS = 4  # on a CPU neither memory nor ticks are measured
NOT_RUN = -1  # instead of a recogniser's token
PromptKey = tuple[str, tuple[int, ...]]  # hash of the voice's file, text ids of the persona


class PersonaPlexBackend:
    """Keeps the contract of `runtime/backend.py`."""

    limited_by = "asked"  # what made the number of slots; `fit_backend` sets it

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
        self._digests: dict[str, str] = {}  # of the files of voices that were read, by name
        self._voices: dict[str, Voice] = {}  # by the hash of their file
        self._recordings: dict[str, np.ndarray] = {}  # whole frames to be encoded, likewise
        self._active = np.zeros(slots, bool)
        self.transcribing = self.transcribes = recogniser is not None
        self.hearing: Hearing | None = None
        self._transcribed: set[int] = set()  # slots that the recogniser runs for
        with torch.inference_mode():
            if recogniser:
                config = recogniser.stt.config
                silence = silence_codes(checkpoint.mimi, config.n_q)
                self.hearing = Hearing(recogniser.stt, slots, silence)
                self.transcription = Transcription(recogniser.tokenizer, config.delay_frames)
            self.runner = Ticks(self.loop, graphs, hearing=self.hearing)
        self.ticks: TickTable | None = None
        self.renewal: Renewal | None = None
        if renewal_frames:
            columns = spare_columns or self.loop.rings.capacity
            self.renewal = Renewal(self.loop, renewal_frames, columns, self.runner)
        self._prompts: dict[int, tuple[Voice, Tensor]] = {}  # of slots that can be renewed

    # -- one conversation --------------------------------------------------------------------------

    def prepare(self, opening: Opening) -> None:
        """Read the voice's file; a file that is as it was costs only its hash. Any thread."""
        path = self.checkpoint.voices.path(opening.voice)
        digest = file_hash(path)
        if digest not in self._voices and digest not in self._recordings:
            if path.suffix == ".pt":
                self._voices[digest] = read_saved_voice(path, self.config)
            else:
                pcm = self.checkpoint.voices.audio(opening.voice)
                self._recordings[digest] = np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES))
        self._digests[opening.voice] = digest

    def open(self, slot: int, opening: Opening) -> Iterator[None]:
        """Each `next` runs one piece of the prompt, or encodes a frame of a recorded voice."""
        self.close(slot)
        if opening.voice not in self._digests:
            self.prepare(opening)
        key = self._digests[opening.voice], opening.text_ids
        ready = self.cache.get(key)
        if ready is None:
            yield from self._encode_voice(key[0])
            prompt = self._prompt(self._voices[key[0]], opening.text_ids)
            embedded, done = self._embedded(prompt), 0
            while done < len(embedded):
                end = done + self.loop.piece_columns
                self._prefill(slot, embedded[done:end])
                done = end
                yield
            with torch.inference_mode():
                ready = self.loop.save_prompt(slot, prompt)
            self.cache.put(key, ready)
        with torch.inference_mode():
            self.loop.start(slot, ready)
            self.loop.sampler.seed(slot, opening.seed)
            self.tune(slot, opening.sampling)
        if self.hearing and opening.transcribe:
            self._transcribed.add(slot)
        if self.renewal and self.renewal.enter(slot, ready.columns + 1):
            frames = prompt_frames(self.config, opening.text_ids)
            self._prompts[slot] = self._voices[key[0]], frames

    def renew(self, slot: int) -> Generator[None, None, int] | None:
        """Work that gives a slot whose context runs out a new one; None where none is due."""
        if slot not in self._prompts or not self.renewal.due(slot):
            return None
        return self.renewal.run(slot, *self._prompts[slot])

    def limit_piece(self, columns: int) -> None:
        self.loop.piece_columns = columns

    def tune(self, slot: int, sampling: SamplingConfig) -> None:
        self.loop.sampler.tune(slot, sampling)

    @torch.inference_mode()
    def close(self, slot: int) -> None:
        self.loop.clear(slot)
        self._prompts.pop(slot, None)
        if self.renewal:
            self.renewal.forget(slot)
        self._transcribed.discard(slot)
        if self.hearing:
            self.hearing.clear(slot)

    def context_used(self, slot: int) -> float:
        """Columns in the ring, of those it holds, 0 to 1."""
        return min(1.0, self.loop.rings.pushed[slot] / self.loop.rings.capacity)

    @torch.inference_mode()
    def measure(self) -> None:
        """Time a tick of every bucket; every slot is cleared. A CPU has one: nothing to do."""
        if len(self.runner.buckets) == 1 and not self.runner.cuda:
            return
        parts = [self.loop, self.loop.encoder, self.loop.decoder]
        parts += [self.hearing] if self.hearing else []
        for slot in range(self.slots):
            for part in parts:  # what is in their rings costs no time
                part.rings.set_position(slot, part.rings.capacity)
            self.tune(slot, SamplingConfig())
        self.set_ticks(time_ticks(self.runner.buckets, self._time_tick, PIECES, self._time_piece))
        for slot in range(self.slots):
            self.close(slot)

    def set_ticks(self, ticks: TickTable) -> None:
        """What was measured of this backend, or of one with more slots."""
        self.ticks = ticks
        if self.renewal:
            self.renewal.queue.piece = ticks.piece_when_full()

    @torch.inference_mode()
    def _time_tick(self, slots: int) -> float:
        """Seconds of one tick of the first slots, all transcribed where that is possible."""
        start = time.perf_counter()
        active = np.arange(self.slots) < slots
        pcm = np.zeros((self.slots, FRAME_SAMPLES), np.float32)
        text, *_ = self.runner.listen(pcm, active, range(slots) if self.hearing else ())
        self.runner.speak(np.where(active, text, PAD), np.zeros(self.slots, bool))
        return time.perf_counter() - start

    def _time_piece(self, columns: int) -> float:
        """Seconds of one piece of a prompt, the last that its ring has room for."""
        rings = self.loop.rings
        table = self.checkpoint.lm.embedding.table
        rings.set_position(0, max(0, rings.capacity - columns))
        start = time.perf_counter()
        self._prefill(0, table.new_zeros(columns, table.shape[1]))
        return time.perf_counter() - start

    # -- one tick ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def listen(self, pcm: np.ndarray, active: np.ndarray) -> Heard:
        self._active = active
        slots = np.flatnonzero(active).tolist()
        writing = self._select_transcribed(slots)
        text, codes, words = self.runner.listen(pcm, active, writing)
        self._user_codes = codes
        if words is None:
            return Heard(text, codes)
        ran = np.isin(np.arange(self.slots), writing)  # the other rows mean nothing
        return Heard(text, codes, np.where(ran, words[0], NOT_RUN), words[1])

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

    @torch.inference_mode()
    def flush(self, slots: list[int]) -> dict[int, HeardRow]:
        slots = self._select_transcribed(slots)
        if not slots:
            return {}
        text, pause = self.runner.flush(slots)
        return {s: HeardRow(int(text[s]), None if pause is None else pause[s]) for s in slots}

    def _select_transcribed(self, slots: list[int]) -> list[int]:
        return [s for s in slots if s in self._transcribed] if self.transcribing else []

    # -- prompts -----------------------------------------------------------------------------------

    def prompt_frames(self, opening: Opening) -> int:
        """Frames of a prompt whose voice has been loaded by an `open` of the same voice."""
        voice = self._voices[self._digests[opening.voice]]
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
        wait_for(self.loop.device)

    def _encode_voice(self, digest: str) -> Iterator[None]:
        """Encode a recorded voice: a frame takes as long as a piece of a prompt."""
        if digest in self._voices:
            return
        stream, codes = self.checkpoint.mimi.encoder_stream(1), []
        for frame in torch.from_numpy(self._recordings[digest]).view(-1, 1, FRAME_SAMPLES):
            with torch.inference_mode():
                active = Active.of([0], 1, self.loop.device)
                frame = frame.to(self.loop.device)
                codes.append(self.checkpoint.mimi.encode(frame, stream, active).cpu())
            yield
        self._voices[digest] = Voice(codes=torch.cat(codes))
        self._recordings.pop(digest, None)  # another opening may have been faster


class PromptCache:
    """States of prompts within a budget in MB; the least recently used makes room."""

    def __init__(self, budget_mb: float) -> None:
        self._budget = budget_mb * MEGABYTE
        self._kept: OrderedDict[PromptKey, PromptState] = OrderedDict()

    def get(self, key: PromptKey) -> PromptState | None:
        """The state of a prompt, if it is kept; it counts as used now."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: PromptKey, ready: PromptState) -> None:
        """Keep a state; those unused for longest make room. Too large a one is not kept."""
        if ready.bytes > self._budget:
            return
        self._kept[key] = ready
        self._kept.move_to_end(key)
        while sum(kept.bytes for kept in self._kept.values()) > self._budget:
            self._kept.popitem(last=False)
