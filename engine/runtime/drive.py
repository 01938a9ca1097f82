"""One conversation through a backend, frame by frame and as fast as it goes: no clock, no socket.

`trace` and `offline` are made of it. Text is held for one tick, so that everything in a frame
belongs to the same 80 ms.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from engine.config import FRAME_SAMPLES, PAD
from engine.runtime.backend import Backend, Heard, HeardRow, Opening, Spoken
from engine.runtime.scheduler import heard_row

Direct = Callable[[int, HeardRow, float, float], tuple[int, bool]]
# (sampled token, recogniser's row, peak of the user's frame, peak of the agent's last frame)
# -> (token to feed, whether the frame it belongs to is silenced)


@dataclass(frozen=True, slots=True)
class DrivenFrame:
    """80 ms of a conversation."""

    user_codes: np.ndarray | None  # [8] int64
    sampled_text: int  # what the model picked for this frame
    text: int  # what it was fed
    agent_codes: np.ndarray | None  # [8] int64, delays undone
    pcm: np.ndarray  # [1920] float32
    heard: HeardRow  # the recogniser's step that read the user's part


def undirected(sampled: int, heard: HeardRow, peak_in: float, peak_out: float) -> tuple[int, bool]:
    """The model says what it likes."""
    return sampled, False


def drive_conversation(
    backend: Backend,
    opening: Opening,
    user: Iterable[np.ndarray],
    direct: Direct = undirected,
    slot: int = 0,
    flushed: list[HeardRow] | None = None,
) -> Iterator[DrivenFrame]:
    """Open a slot, run it over the user's frames [1920] float32, and close it.

    flushed: takes what the recogniser, if it runs, still writes after the last frame.
    """
    try:
        for _ in backend.open(slot, opening):
            pass
        silence = np.zeros(FRAME_SAMPLES, np.float32)
        _, _, chosen = drive_tick(backend, slot, silence, direct, peak_out=0.0)  # the bootstrap
        peak_out = 0.0
        for pcm in user:
            held = chosen
            heard, spoken, chosen = drive_tick(backend, slot, pcm, direct, peak_out)
            peak_out = float(np.abs(spoken.pcm[slot]).max())
            yield DrivenFrame(
                user_codes=None if heard.user_codes is None else heard.user_codes[slot],
                sampled_text=held[0],
                text=held[1],
                agent_codes=None if spoken.codes is None else spoken.codes[slot],
                pcm=spoken.pcm[slot].copy(),
                heard=heard_row(heard, slot),
            )
        if opening.transcribe and flushed is not None:
            for _ in range(backend.transcription.flush_steps):
                flushed += backend.flush([slot]).values()
    finally:
        backend.close(slot)


def drive_tick(
    backend: Backend, slot: int, pcm: np.ndarray, direct: Direct, peak_out: float
) -> tuple[Heard, Spoken, tuple[int, int]]:
    """One step of one slot, pcm [1920]; the last part is (sampled, fed) text of the next frame."""
    batch = np.zeros((backend.slots, FRAME_SAMPLES), np.float32)
    active, hush = np.zeros(backend.slots, bool), np.zeros(backend.slots, bool)
    batch[slot], active[slot] = pcm, True
    heard = backend.listen(batch, active)
    sampled = int(heard.text[slot])
    text = np.full(backend.slots, PAD, np.int64)
    peak_in = float(np.abs(pcm).max())
    text[slot], hush[slot] = direct(sampled, heard_row(heard, slot), peak_in, peak_out)
    return heard, backend.speak(text, hush), (sampled, int(text[slot]))


def split_frames(pcm: np.ndarray) -> np.ndarray:
    """Audio [samples] as whole frames [T, 1920], the last one filled with zeros."""
    return np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
