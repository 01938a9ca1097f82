"""The recogniser beside the frame loop: for which slots it runs, and its flush.

It reads what the loop's codec has encoded already. Switching it off altogether is the backend's
affair; what its tokens mean, the dialogue's.
"""

import numpy as np

from engine.model.loop import Loop
from engine.model.state import Active
from engine.model.stt import Hearing, silence_codes
from engine.runtime.backend import HeardRow, Transcription
from engine.runtime.recogniser import LoadedRecogniser

NOT_RUN = -1  # instead of a token

Tokens = tuple[np.ndarray, np.ndarray | None]  # [S] int64, [S, heads] float32


class Ear:
    """Only the scheduler's thread may call it, under inference mode."""

    def __init__(self, recogniser: LoadedRecogniser, loop: Loop) -> None:
        self.hearing = Hearing(recogniser.stt, loop.slots)
        config = recogniser.stt.config
        self.codebooks = max(config.n_q, loop.lm.config.codebooks)  # to be encoded
        self.transcription = Transcription(recogniser.tokenizer, config.delay_frames)
        self._loop = loop
        self._read = config.n_q
        self._silence = silence_codes(loop.mimi, config.n_q)
        self._open: set[int] = set()  # slots that are transcribed

    def open(self, slot: int) -> None:
        """Run for this slot from its bootstrap on."""
        self._open.add(slot)

    def clear(self, slot: int) -> None:
        self._open.discard(slot)
        self.hearing.clear(slot)

    def hear(self, active: Active) -> Tokens:
        """The step that belongs to what the loop has just encoded."""
        codes = self._loop.heard[:, : self._read]
        return self._step(codes, self._among(active.slots))

    def flush(self, slots: list[int]) -> dict[int, HeardRow]:
        """One step on digital silence for those of the slots that are transcribed."""
        active = self._among(slots)
        text, pause = self._step(self._silence.expand(self._loop.slots, -1), active)
        return {
            slot: HeardRow(int(text[slot]), None if pause is None else pause[slot])
            for slot in active.slots
        }

    def _among(self, slots: list[int] | tuple[int, ...]) -> Active:
        return self._loop.active([slot for slot in slots if slot in self._open])

    def _step(self, codes, active: Active) -> Tokens:
        text, pause = np.full(self._loop.slots, NOT_RUN, np.int64), None
        if active.slots:
            rows = list(active.slots)
            tokens, heads = self.hearing.step(codes, active)
            text[rows] = tokens.cpu().numpy()[rows]
            pause = None if heads is None else heads.cpu().numpy()
        return text, pause
