"""One conversation of the plain model, and what another form of it says to the very same columns.

It opens as a caller's does, with a voice and a persona, and the user speaks: what the model meets
here is what it was made for. Nothing is judged here; that is drift.py's affair.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.config import EPAD, FRAME_SAMPLES, PAD, SamplingConfig
from engine.dialogue.personas import load_personas
from engine.dialogue.prompt import prompt_ids
from engine.model.lm import LM, Temporal
from engine.model.mimi import Mimi
from engine.model.prompt import Prompt
from engine.model.state import Active
from engine.model.stt import Hearing
from engine.runtime import espeak
from engine.runtime.backend import Opening
from engine.runtime.drive import conversation, frames_of
from engine.runtime.loader import Checkpoint
from engine.runtime.personaplex import PersonaPlexBackend

TURN_FRAMES = 150  # 12 s: a question, and quiet for an answer
QUESTIONS = (
    "Hello! Who are you, and what are you doing today?",
    "I would like to rent two bicycles for the weekend. What does that cost?",
    "Can you explain to me why the sky is blue, and red in the evening?",
    "I have never cooked anything. What should I begin with?",
    "My train leaves at seven. How long do I need to the station?",
    "Tell me about a journey that you remember well.",
    "I did not quite understand that. Could you say it again, more slowly?",
    "What would you do if it rained all day?",
    "Let us count to ten together. One, two, three.",
    "Thank you, that was very kind. Is there anything else I should know?",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the temporal transformer read of it, and what came of that."""

    before: Tensor  # [P, dim]: voice and persona
    columns: Tensor  # [T, K]: of the frames
    sound: Tensor  # [T, 1920]: the agent's

    @property
    def spoken(self) -> float:
        """The share of the frames whose text is not padding."""
        text = self.columns[:, 0]
        return float(((text != PAD) & (text != EPAD)).float().mean())


class Remembering(PersonaPlexBackend):
    """Keeps the prompt that it opens a slot with, and what the transformer reads of it."""

    prompt: Prompt
    read: Tensor  # [P, dim]

    def _embedded(self, prompt: Prompt) -> Tensor:
        embedded = super()._embedded(prompt)  # [P - 1, dim]
        last = self.checkpoint.lm.embed(prompt.columns[-1:].to(embedded.device))
        self.prompt, self.read = prompt, torch.cat([embedded, last])
        return embedded


def user_frames(count: int) -> np.ndarray:
    """Someone who asks and waits, again and again: frames [T, 1920]."""
    turns = [frames_of(espeak.say(text))[:TURN_FRAMES] for text in QUESTIONS]
    turns = turns[: -(-count // TURN_FRAMES)]
    asked = np.concatenate([np.pad(t, ((0, TURN_FRAMES - len(t)), (0, 0))) for t in turns])
    return np.resize(asked, (count, FRAME_SAMPLES))


@torch.inference_mode()
def talk(checkpoint: Checkpoint, frames: int, sampling: SamplingConfig) -> Conversation:
    """The default voice with the default persona, and a user who speaks."""
    backend = Remembering(checkpoint, slots=1, graphs=False)
    ids = prompt_ids(load_personas()[0].text, backend.tokenizer)
    opening = Opening(backend.voices[0], ids, sampling, seed=1)
    said = list(conversation(backend, opening, user_frames(frames)))
    rows = np.array([[frame.text, *frame.agent_codes, *frame.user_codes] for frame in said])
    sound = torch.from_numpy(np.stack([frame.pcm for frame in said]))
    columns = columns_of(backend.prompt, torch.from_numpy(rows), backend.config.delays)
    device = backend.loop.device
    return Conversation(backend.read, columns.to(device), sound.to(device))


def columns_of(prompt: Prompt, frames: Tensor, delays: tuple[int, ...]) -> Tensor:
    """What the model reads of frames [T, K] that follow a prompt: late rows of the one before."""
    late = torch.tensor(delays) == 1  # [K]
    return torch.where(late, torch.cat([prompt.after[None], frames[:-1]]), frames)


@torch.inference_mode()
def forced(
    lm: Temporal,
    columns: Tensor,
    kv: torch.dtype | None = None,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Text logits [T, V] on the host, and the likeliest agent codes of every next frame [T - 1, Q].

    Column by column, as a conversation would meet them. before [P, dim]: read first, if anything.
    """
    rings, rows, codes = lm.rings(1, kv), [], []
    columns = columns.to(rings.kv.device)
    active = Active.of([0], 1, columns.device)
    for row in () if before is None else before:
        lm.step(row[None], rings, active)
    for now, column in enumerate(columns):
        hidden = lm.step(lm.embed(column[None]), rings, active)
        rows.append(lm.text_logits(hidden)[0].cpu())
        if isinstance(lm, LM) and now + 1 < len(columns):
            codes.append(likeliest_codes(lm, hidden, columns[now + 1]))
    return torch.stack(rows), torch.stack(codes) if codes else torch.empty(0)


def likeliest_codes(lm: LM, hidden: Tensor, after: Tensor) -> Tensor:
    """What the depformer would pick [Q], each step told the codes that really came after [K]."""
    picked: list[Tensor] = []

    def pick(step: int, logits: Tensor) -> Tensor:
        picked.append(logits[0].argmax().cpu())
        return after[1 + step : 2 + step]

    lm.depth(hidden, after[:1], pick)
    return torch.stack(picked)


def heard_columns(hearing: Hearing, mimi: Mimi, sound: Tensor) -> Tensor:
    """What a recogniser reads [T, 1 + n_q] of a sound [T, 1920], its own words included."""
    stream, active, columns = mimi.encoder_stream(1), Active.of([0], 1, sound.device), []
    for pcm in sound:
        codes = mimi.encode(pcm[None], stream, active, hearing.stt.config.n_q)
        columns.append(hearing.column(codes)[0])
        hearing.step(codes, active)
    return torch.stack(columns)
