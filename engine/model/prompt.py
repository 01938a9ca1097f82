"""The columns of tokens that a conversation starts from: voice, silence, persona, silence.

A column is what the temporal transformer reads at one time: its delayed rows hold the codes of the
frame before. Everything here is given, nothing is picked, so a prompt is one causal pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.config import FRAME_RATE, PAD
from engine.model.config import LMConfig

SILENCE_FRAMES = int(0.5 * FRAME_RATE)  # 6, before and after the persona
RING = 4  # columns in the token ring of a saved voice


@dataclass(frozen=True, slots=True)
class Voice:
    """Either the codes of its audio [T, Q], or what replaying that audio left: embeddings [N, dim]
    of the columns it ran, and the ring of tokens [K, 4] after it."""

    codes: Tensor | None = None
    embeddings: Tensor | None = None
    ring: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """P columns: the first N as embeddings, the others as tokens [P - N, K]."""

    embeddings: Tensor | None  # [N, dim]
    columns: Tensor  # [P - N, K]; the last is column P - 1, which the bootstrap tick runs
    after: Tensor  # [K]: the delayed rows of column P, which the last frame has filled already

    @property
    def given(self) -> int:
        """N."""
        return 0 if self.embeddings is None else len(self.embeddings)

    @property
    def frames(self) -> int:
        """P."""
        return self.given + len(self.columns)

    def embed(self, embedding: nn.Module, start: int, end: int) -> Tensor:
        """What the transformer reads of the columns from `start` to before `end` [T, dim]."""
        device = next(embedding.parameters()).device
        first, last = (max(0, at - self.given) for at in (start, end))
        tokens = embedding(self.columns[first:last].to(device))
        if start >= self.given:
            return tokens
        given = self.embeddings[start:end].to(device, tokens.dtype)
        return torch.cat([given, tokens])


def prompt_frames(config: LMConfig, text_ids: tuple[int, ...]) -> Tensor:
    """Silence, persona, silence as whole frames [T, K], nothing delayed yet."""
    text = [PAD] * SILENCE_FRAMES + list(text_ids) + [PAD] * SILENCE_FRAMES
    given = [*config.silence_tokens, *config.sine_tokens]
    return torch.tensor([[token, *given] for token in text])


def voice_frames(config: LMConfig, codes: Tensor) -> Tensor:
    """A voice's codes [T, Q] as whole frames [T, K]."""
    pad = torch.full((len(codes), 1), PAD)
    sine = torch.tensor(config.sine_tokens).expand(len(codes), -1)
    return torch.cat([pad, codes, sine], 1)


def build_prompt(config: LMConfig, voice: Voice, frames: Tensor) -> Prompt:
    """Columns of a voice followed by frames [T, K].

    The first frame after a reset never reaches the model (the initial column stands in its place),
    nor do its delayed rows: so it is with the public reference.
    """
    if voice.embeddings is not None:
        now = len(voice.embeddings)
        first, second = voice.ring[:, now % RING], voice.ring[:, (now + 1) % RING]
    else:
        first = second = torch.tensor([config.text_card, *[config.card] * config.n_q])
        if voice.codes is not None:
            frames = torch.cat([voice_frames(config, voice.codes), frames])
        frames = frames[1:]
    late = torch.tensor(config.delays) == 1  # [K]
    whole = torch.cat([first[None], frames])  # [P - N, K]: rows without delay
    delayed = torch.cat([first[None], second[None], frames])  # [P - N + 1, K]
    columns = torch.where(late, delayed[: len(whole)], whole)
    return Prompt(voice.embeddings, columns, delayed[len(whole)])
