"""The frame loop: codec, language model and token rows of all slots, one 80 ms frame at a time.

A tick has two halves, and between them the director may replace the text:

    pcm -> encode_and_step: codec, step_temporal, pick_text -> text
    text -> step_depth_and_decode: step_depth, codec -> pcm

gpu/graphs.py calls the halves, as CUDA graphs where there is a GPU: so nothing in them looks at a
number on the host. State lives here, at fixed addresses, first dimension = slot; weights live in
the modules.
"""

from copy import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.model.lm import LM
from engine.model.mimi import Mimi
from engine.model.prompt import Prompt
from engine.model.sampling import Sampler
from engine.model.transformer import Active

FREE = -1  # no token is forced here
# Columns of a prompt in one piece of work: as many as fit between two ticks, of these sizes.
PIECES = (16, 64)


@dataclass(frozen=True, slots=True)
class PromptState:
    """A slot just before its bootstrap tick: what is kept of a prompt for the next caller."""

    ring: list[Tensor]  # what it has used: [L, 2, H, n, D]; int8: and scales [L, 2, H, n]
    columns: int  # that were pushed
    agent: Tensor  # [1 + Q]: text and agent rows of the last prompt column
    user_before: Tensor  # [Q]: the user's codes one frame earlier
    user_now: Tensor  # [Q]: the user's codes of the last prompt frame
    forced: Tensor  # [Q]: agent codes that are given in the bootstrap tick, or FREE

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.ring)


class Loop:
    """All conversations of one engine. Slots that are not active in a call do not change."""

    def __init__(self, lm: LM, mimi: Mimi, slots: int, kv_dtype: torch.dtype | None = None) -> None:
        self.lm, self.mimi, self.slots = lm, mimi, slots
        self.piece_columns = max(PIECES)  # of the next piece, at most
        self.device = lm.embedding.table.device
        config = lm.config
        q = self.codebooks = config.codebooks
        self.rings = lm.rings(slots, kv_dtype)
        self.encoder, self.decoder = mimi.encoder_stream(slots), mimi.decoder_stream(slots)
        self.sampler = Sampler(slots, config, self.device)
        delays = torch.tensor(config.delays, device=self.device) == 1
        self.agent_late, self.user_late = delays[1 : 1 + q], delays[1 + q :]
        silence = torch.tensor(config.silence_tokens, device=self.device)
        self.silence_now = torch.where(self.agent_late, FREE, silence)
        self.silence_next = torch.where(self.agent_late, silence, FREE)
        tokens = partial(torch.zeros, dtype=torch.int64, device=self.device)
        self.agent = tokens(slots, 1 + q)  # text and agent rows of the column to run next
        self.user_before, self.user_now, self.forced = (tokens(slots, q) for _ in range(3))
        # From one half of a tick to the other, at fixed addresses: graphs know nothing else.
        self.hidden = lm.embedding.table.new_zeros(slots, config.dim)
        self.logits = torch.zeros(slots, config.text_card, device=self.device)
        self.booting: set[int] = set()  # slots whose next tick is their bootstrap

        if lm.fused:
            self.sampler.audio_kernel = lm.fused.pick
            self.sampler.text_kernel = lm.fused.pick_text
        # By the slots of the server, not of a bucket: whoever else talks must not change a bit.
        self.whole_depth = lm.fused.find_whole_depth(lm.depformer, slots) if lm.fused else None

    def narrow(self, slots: int) -> "Loop":
        """The first slots of this loop: the same memory and conversations, smaller tensors."""
        some = copy(self)
        some.slots = slots
        for name in ("rings", "encoder", "decoder", "sampler"):
            setattr(some, name, getattr(self, name).narrow(slots))
        for name in ("agent", "user_before", "user_now", "forced", "hidden", "logits"):
            setattr(some, name, getattr(self, name)[:slots])
        return some

    def active(self, slots: list[int]) -> Active:
        return Active.of(slots, self.slots, self.device)

    # -- one slot's life ---------------------------------------------------------------------------

    def clear(self, slot: int) -> None:
        """Forget a conversation; a cleared slot is like a new one."""
        for stream in (self.rings, self.encoder, self.decoder, self.sampler):
            stream.clear(slot)
        for tokens in (self.agent, self.user_before, self.user_now, self.forced):
            tokens[slot] = 0
        self.booting.discard(slot)

    def save_prompt(self, slot: int, prompt: Prompt) -> PromptState:
        """What to keep of a slot that has run all columns of a prompt but the last."""
        q = self.codebooks
        last, after = prompt.columns[-1].to(self.device), prompt.after.to(self.device)
        return PromptState(
            ring=[used.clone() for used in self.rings.used(slot)],
            columns=self.rings.pushed[slot],
            agent=last[: 1 + q],
            user_before=last[1 + q :],
            user_now=torch.where(self.user_late, after[1 + q :], last[1 + q :]),
            forced=torch.where(self.agent_late, after[1 : 1 + q], FREE),
        )

    def start(self, slot: int, ready: PromptState) -> None:
        """Put a cleared slot just before its bootstrap tick."""
        self.rings.set_position(slot, ready.columns)
        for used, kept in zip(self.rings.used(slot), ready.ring, strict=True):
            used.copy_(kept)
        self.agent[slot], self.forced[slot] = ready.agent, ready.forced
        self.user_before[slot], self.user_now[slot] = ready.user_before, ready.user_now
        self.booting.add(slot)

    def state(self, slot: int) -> list[Tensor]:
        """Everything that a slot's future depends on, as views (tests compare it)."""
        tokens = [t[slot] for t in (self.agent, self.user_before, self.user_now, self.forced)]
        sampler = [self.sampler.fed[slot, :-1], self.sampler.count[slot]]
        ring = [*self.rings.used(slot), self.rings.position[slot]]
        return [*ring, *self.encoder.state(slot), *self.decoder.state(slot), *tokens, *sampler]

    # -- one tick ----------------------------------------------------------------------------------

    def encode_and_step(
        self, pcm: Tensor, active: Active, encoding: Active, codebooks: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """pcm [S, 1920] of the user -> text picked for the next frame [S], user codes [S, Q].

        encoding: active slots whose pcm counts. The others run the last column of their prompt.
        codebooks: encode more than Q, for a recogniser; all of them [S, codebooks] come back last.
        """
        pcm = torch.where(encoding.mask[:, None], pcm, 0.0)
        encoded = self.mimi.encode(pcm, self.encoder, encoding, codebooks or self.codebooks)
        own = encoded[:, : self.codebooks]
        codes = torch.where(encoding.mask[:, None], own, self.user_now)  # [S, Q]
        return self.step_temporal(codes, active), codes, encoded

    def step_temporal(self, codes: Tensor, active: Active) -> Tensor:
        """The user's codes [S, Q] of this frame -> text picked for the next one [S]."""
        user = torch.where(self.user_late, self.user_before, codes)
        column = torch.cat([self.agent, user], 1)  # [S, K]
        self.hidden.copy_(self.lm.step(self.lm.embed(column), self.rings, active))
        active.update(self.user_before, codes)
        return self.pick_text()

    def pick_text(self) -> Tensor:
        """The text that follows `hidden` [S]."""
        self.logits.copy_(self.lm.text_logits(self.hidden))
        return self.sampler.pick_text_in_graph(self.logits)

    def step_depth_and_decode(
        self, text: Tensor, hush: Tensor, active: Active
    ) -> tuple[Tensor, Tensor]:
        """Feed text [S], silence where hush [S]: pcm [S, 1920] and codes [S, Q] of this frame."""
        codes = self.step_depth(text, hush, active)
        return self.mimi.decode(codes, self.decoder, active), codes

    def step_depth(self, text: Tensor, hush: Tensor, active: Active) -> Tensor:
        """Feed text [S], silence where hush [S]: the agent's frame that is now complete [S, Q]."""
        hush = hush[:, None]
        given = torch.where(hush & ~self.agent_late, self.silence_now, self.forced)  # [S, Q]

        def pick(codebook: int, logits: Tensor) -> Tensor:
            return self.sampler.pick_audio(codebook, logits, given[:, codebook])

        if self.whole_depth:
            picked = self.whole_depth.run(self.hidden, text, self.sampler, given)
        else:
            picked = self.lm.depth(self.hidden, text, pick)  # [S, Q]
        complete = torch.where(self.agent_late, picked, self.agent[:, 1:])
        self.sampler.feed(text, active)
        active.update(self.agent, torch.cat([text[:, None], picked], 1))
        active.update(self.forced, torch.where(hush, self.silence_next, FREE))
        return complete
