"""Our side of `bench peer`: turns on the clock, and the tokens that a peer must give too."""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.bench.device import loop_of, release
from engine.bench.tick import measure
from engine.config import FRAME_SAMPLES, GREEDY
from engine.model.gpu.graphs import ACTIVE, Ticks
from engine.model.loop import Loop
from engine.model.prompt import Voice, build_prompt
from engine.weights.loading import Checkpoint, load_checkpoint
from engine.weights.voices import Voices


class Steps(Ticks):
    """Ticks without the codec: the user's codes come in where the samples would.

    As in a whole tick, the picked text stops at the host between the two halves.
    """

    def _listen(self, size: int) -> Tensor:
        heard = self.up.device[:size, : self.loop.lm.config.codebooks].long()
        text = self.loops[size].step_temporal(heard, self._who(size, ACTIVE))
        return torch.cat([text[:, None], heard], 1).float()

    def _speak(self, size: int) -> Tensor:
        given = self.up_text.device[:size]
        codes = self.loops[size].step_depth(given[:, 0], given[:, 1] != 0, self._who(size, ACTIVE))
        silent = torch.zeros(size, FRAME_SAMPLES, device=codes.device)
        return torch.cat([silent, codes.float()], 1)


KINDS = {"step": Steps, "frame": Ticks}


def turn(
    checkpoint: Checkpoint, kind: str, slots: int, context: int, args: argparse.Namespace
) -> list[float]:
    """Milliseconds of each step of so many slots; the loop is made anew, its memory given back."""
    loop = loop_of(args, checkpoint.lm, checkpoint.mimi, slots, "bf16")
    ticks = KINDS[kind](loop, not args.eager)
    taken, _ = measure(ticks, slots, context, args)
    del loop, ticks
    release()
    return taken.tolist()


def user_codes(checkpoint: Checkpoint, frames: int) -> list[list[int]]:
    """What both sides hear when their tokens are compared [T, Q]."""
    config, draw = checkpoint.lm.config, torch.Generator().manual_seed(2)
    return torch.randint(0, config.card, (frames, config.codebooks), generator=draw).tolist()


def tokens(checkpoint: Checkpoint, codes: list[list[int]]) -> np.ndarray:
    """Greedy answers of one slot to user codes [T, Q]: its text and codes [T, 1 + Q].

    Without a prompt, from the initial column, as a peer begins: the first user frame is lost.
    """
    config, loop = checkpoint.lm.config, Loop(checkpoint.lm, checkpoint.mimi, 1)
    nothing = torch.zeros(1, config.n_q + 1, dtype=torch.int64)  # the frame that is lost
    loop.start(0, loop.save_prompt(0, build_prompt(config, Voice(), nothing)))
    loop.sampler.tune(0, GREEDY)
    steps, pcm, rows = Steps(loop, graphs=False), np.zeros((1, FRAME_SAMPLES)), []
    for heard in [loop.user_now[0].tolist(), *codes[1:]]:
        text_now = loop.agent[0, 0].item()
        pcm[0, : config.codebooks] = heard
        text, *_ = steps.listen(pcm, np.ones(1, bool))
        _, spoken = steps.speak(text, np.zeros(1, bool))
        rows.append([text_now, *spoken[0]])
    return np.array(rows)


def load(folder: Path, device: str, dtype: torch.dtype | None = None) -> Checkpoint:
    return load_checkpoint(str(folder), Voices, device=device, dtype=dtype)
