"""Conversations in chosen slots of one backend, for comparison to the last bit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.config import FRAME_SAMPLES, SamplingConfig
from engine.runtime.backend import Opening
from engine.runtime.personaplex import PersonaPlexBackend

FRAMES = 24  # the codec's rings hold 19 columns, 9.5 frames
PERSONA = tuple(range(10, 50))  # longer than the ring of the temporal transformer
SAMPLED = SamplingConfig(text_top_k=25, audio_top_k=40)
MINE = Opening("TINYF0", PERSONA, SAMPLED, seed=7)


VISITOR = Opening("TINYM0", (5, 6, 7), SAMPLED, seed=99)


@dataclass(frozen=True)
class Guest:
    """Somebody in another slot, from one tick of ours to another."""

    slot: int
    joins: int = 0
    leaves: int = FRAMES + 1
    opening: Opening = VISITOR
    every: int = 1  # takes part in every n-th tick


@dataclass(frozen=True)
class Outcome:
    """What a conversation said (arrays, in order) and the state it left."""

    said: list[np.ndarray]
    state: list[torch.Tensor]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Outcome)
        return all(
            np.array_equal(a, b) for a, b in zip(self.said, other.said, strict=True)
        ) and all(torch.equal(a, b) for a, b in zip(self.state, other.state, strict=True))

    @property
    def tokens(self) -> list[list[int]]:
        return [array.tolist() for array in self.said if array.dtype == np.int64]


def audio(seed: int, frames: int = FRAMES + 1) -> np.ndarray:
    """Noise that swells and fades, [T, 1920]."""
    rng = np.random.default_rng(seed)
    swell = np.sin(np.arange(frames * FRAME_SAMPLES) / 9000) * 0.3
    noise = rng.standard_normal(frames * FRAME_SAMPLES)
    return (noise * swell).astype(np.float32).reshape(frames, FRAME_SAMPLES)


def enter(backend: PersonaPlexBackend, slot: int, opening: Opening) -> None:
    for _ in backend.open(slot, opening):
        pass


def tick(backend: PersonaPlexBackend, pcm: np.ndarray, slots: Sequence[int]):
    """One step of some slots; every sampled token is fed as it is."""
    active = np.zeros(backend.slots, bool)
    active[list(slots)] = True
    heard = backend.listen(pcm, active)
    return heard, backend.speak(heard.text, np.zeros(backend.slots, bool))


def play(
    backend: PersonaPlexBackend,
    slot: int,
    opening: Opening = MINE,
    guests: Sequence[Guest] = (),
    idle: int = 0,
    frames: int = FRAMES,
) -> Outcome:
    """Talk in `slot` for some frames, with guests, and with ticks that it sits out before each."""
    mine, theirs, said = audio(1, frames + 1), audio(2, frames + 1), []
    enter(backend, slot, opening)
    for step in range(frames + 1):
        for guest in guests:
            if guest.joins == step:
                enter(backend, guest.slot, guest.opening)
            if guest.leaves == step:
                backend.close(guest.slot)
        here = [g.slot for g in guests if g.joins <= step < g.leaves and not step % g.every]
        pcm = np.repeat(theirs[step][None], backend.slots, 0)
        for _ in range(idle):
            tick(backend, pcm, here)
        pcm[slot] = mine[step]
        heard, spoken = tick(backend, pcm, [*here, slot])
        said += [heard.text[slot], heard.user_codes[slot], spoken.codes[slot], spoken.pcm[slot]]
    state = [tensor.clone() for tensor in backend.loop.state(slot)]
    for seat in {slot, *(guest.slot for guest in guests)}:
        backend.close(seat)
    return Outcome([np.array(array) for array in said], state)
