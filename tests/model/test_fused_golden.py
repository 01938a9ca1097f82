"""The reference's tokens through the fused kernels: few frames, as the interpreter is slow; all of
them on a GPU. With the codec, and without it where the language model's ring wraps."""

import json
from collections.abc import Iterator

import numpy as np
import torch
from safetensors.numpy import load_file

from engine.bench.verify import FRAMES as ALL_FRAMES
from engine.bench.verify import user_frames
from engine.config import GREEDY
from engine.dialogue.prompt import prompt_ids
from engine.dialogue.voices import Voices
from engine.model import fast, fast_codec
from engine.runtime.backend import Opening
from engine.runtime.drive import conversation
from engine.runtime.loader import Checkpoint, load_checkpoint
from engine.runtime.personaplex import PersonaPlexBackend
from tests.model.conftest import TINY, build_lm
from tests.model.test_fast import unpacked
from tests.model.test_loop import DROPPED, run, start

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FRAMES = ALL_FRAMES if DEVICE.type == "cuda" else 2
PAST = 2  # frames that are played after the one that fills the ring


def fused() -> Checkpoint:
    """The tiny checkpoint as a GPU runs it."""
    if DEVICE.type == "cuda":
        return load_checkpoint(str(TINY), Voices, device="cuda", dtype=torch.float32)
    checkpoint = load_checkpoint(str(TINY), Voices)
    lm, mimi = unpacked(checkpoint.lm), unpacked(checkpoint.mimi)
    lm.fast, mimi.fast, mimi.filters = fast, fast_codec, fast_codec.filters(mimi)
    return checkpoint


def test_the_fused_kernels_say_the_references_tokens():
    folder = TINY / "expected"
    want = load_file(folder / "gen_voice_pt.safetensors")["tokens"][1 : 1 + FRAMES]
    told = json.loads((folder / "gen_voice_pt.json").read_text())
    backend = PersonaPlexBackend(fused(), slots=1)
    assert backend.loop.sampler.text_picked_by is fast.pick_text
    ids = prompt_ids(told["text_prompt"], backend.tokenizer)
    opening = Opening(told["voice"].split(".")[0], ids, GREEDY)
    frames = list(conversation(backend, opening, user_frames()[:FRAMES]))
    got = [[f.text, *f.agent_codes, *f.user_codes] for f in frames]
    assert np.array_equal(got, want)


def test_the_fused_kernels_say_the_references_tokens_through_a_ring_wrap(mimi, expected):
    loop = start(unpacked(build_lm()).to(DEVICE), mimi, GREEDY)
    full = loop.rings.capacity
    user = expected("codec")["codes8_streaming"].long().T[DROPPED:].to(DEVICE)
    want = expected("gen_no_prompt")["tokens"][: full + PAST - 1]

    def hastened() -> Iterator[torch.Tensor]:
        """The user's codes; the plain modules play until the ring lacks one column."""
        for codes in user[: len(want)]:
            if loop.rings.pushed[0] == full - 1:
                loop.lm.fast = fast
                loop.sampler.picked_by, loop.sampler.text_picked_by = fast.pick, fast.pick_text
            yield codes

    got = run(loop, hastened())
    assert loop.rings.pushed[0] == full + PAST
    assert torch.equal(got.int().cpu(), want)
