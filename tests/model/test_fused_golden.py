"""The reference's tokens through the fused kernels, language model and codec: few frames, as the
interpreter is slow; all of them on a GPU (`bench verify`)."""

import json

import numpy as np
import torch
from safetensors.numpy import load_file

from engine.bench.verify import user_frames
from engine.config import GREEDY
from engine.dialogue.prompt import prompt_ids
from engine.dialogue.voices import Voices
from engine.model import fast, fast_codec
from engine.runtime.backend import Opening
from engine.runtime.drive import conversation
from engine.runtime.loader import Checkpoint, load_checkpoint
from engine.runtime.personaplex import PersonaPlexBackend
from tests.model.conftest import TINY
from tests.model.test_fast import unpacked

FRAMES = 2


def fused() -> Checkpoint:
    """The tiny checkpoint as a GPU runs it."""
    if torch.cuda.is_available():
        return load_checkpoint(str(TINY), Voices, device="cuda", dtype=torch.float32)
    checkpoint = load_checkpoint(str(TINY), Voices)
    lm, mimi = unpacked(checkpoint.lm), unpacked(checkpoint.mimi)
    lm.fast, mimi.fast, mimi.filters = fast, fast_codec, fast_codec.filters(mimi)
    return checkpoint


def test_the_fused_kernels_say_the_references_tokens():
    folder = TINY / "expected"
    want = load_file(folder / "gen_voice_pt.safetensors")["tokens"][1 : 1 + FRAMES]
    run = json.loads((folder / "gen_voice_pt.json").read_text())
    backend = PersonaPlexBackend(fused(), slots=1)
    assert backend.loop.sampler.text_picked_by is fast.pick_text
    ids = prompt_ids(run["text_prompt"], backend.tokenizer)
    opening = Opening(run["voice"].split(".")[0], ids, GREEDY)
    frames = list(conversation(backend, opening, user_frames()[:FRAMES]))
    got = [[f.text, *f.agent_codes, *f.user_codes] for f in frames]
    assert np.array_equal(got, want)
