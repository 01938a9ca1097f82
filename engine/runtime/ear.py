"""The recogniser beside the frame loop: for which slots it runs, and what its results are called.

It runs in the loop's ticks (engine/model/graphs.py) and reads what the codec has encoded there
anyway. Switching it off altogether is the backend's affair; what its tokens mean, the dialogue's.
"""

from collections.abc import Iterable

import numpy as np

from engine.model.graphs import Words
from engine.model.loop import Loop
from engine.model.stt import Hearing, silence_codes
from engine.runtime.backend import HeardRow, Transcription
from engine.runtime.recogniser import LoadedRecogniser

NOT_RUN = -1  # instead of a token


class Ear:
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
