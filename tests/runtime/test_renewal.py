"""After a renewal a conversation equals a fresh one with the same prompt and the same frames."""

import json

import numpy as np
import pytest
import torch

from engine.config import FRAME_SAMPLES, GREEDY
from engine.dialogue.prompt import prompt_ids
from engine.dialogue.voices import Voices
from engine.model.attention import Rings
from engine.model.loop import Loop
from engine.model.prompt import prompt_frames
from engine.model.state import Active
from engine.runtime.backend import Opening
from engine.runtime.loader import Checkpoint, load_checkpoint
from engine.runtime.personaplex import PersonaPlexBackend
from engine.runtime.renewal import Renewal, renewed_prompt
from tests.runtime.conftest import TINY

CONTEXT = 90  # the golden checkpoint's is shorter than its prompts
FRAMES = 6  # that a renewal keeps
TURNS = 30  # after which the ring is nearly full


@pytest.fixture(scope="module")
def roomy(tmp_path_factory) -> Checkpoint:
    """The tiny checkpoint with a longer context."""
    folder = tmp_path_factory.mktemp("roomy")
    for path in TINY.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((TINY / "config.json").read_text())
    config["lm"]["context"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config))
    return load_checkpoint(str(folder), Voices)


@pytest.fixture(params=["float", "int8"])
def backend(roomy, request) -> PersonaPlexBackend:
    kv = torch.int8 if request.param == "int8" else None
    return PersonaPlexBackend(roomy, slots=2, kv_dtype=kv, renewal_frames=FRAMES)


def tick(backend: PersonaPlexBackend, pcm: np.ndarray) -> tuple[int, list[int]]:
    """One frame of slot 1: the text fed and the agent's codes."""
    batch, active = np.zeros((2, FRAME_SAMPLES), np.float32), np.array([False, True])
    batch[1] = pcm
    heard = backend.listen(batch, active)
    spoken = backend.speak(heard.text, np.zeros(2, bool))
    return int(heard.text[1]), spoken.codes[1].tolist()


def speech(turns: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((turns, FRAME_SAMPLES)).astype(np.float32) / 9


def test_after_the_swap_the_ring_is_a_fresh_conversations(backend):
    opening = Opening("TINYF0", prompt_ids("Hi", backend.tokenizer), GREEDY)
    for _ in backend.open(1, opening):
        pass
    pcm = speech(TURNS + 10)
    for frame in pcm[:TURNS]:
        tick(backend, frame)
    work = backend.renew(1)
    spoken_meanwhile = 0
    for _ in work:  # the conversation goes on between the pieces
        if spoken_meanwhile < 3:
            tick(backend, pcm[TURNS + spoken_meanwhile])
            spoken_meanwhile += 1
    loop, history = backend.loop, backend.renewal.histories[1]
    kept = FRAMES + spoken_meanwhile
    fresh = fresh_ring(backend, opening, torch.tensor(list(history.frames)[-kept:]))
    assert loop.rings.pushed[1] == fresh.pushed[0] < loop.rings.capacity
    atol = 1e-5 if fresh.scale is None else 1.0  # a step of int8
    torch.testing.assert_close(loop.rings.used(1).float(), fresh.used(0).float(), atol=atol, rtol=0)
    check_future(backend, fresh, pcm[TURNS + spoken_meanwhile :][:5])


def fresh_ring(backend: PersonaPlexBackend, opening: Opening, frames: torch.Tensor) -> Rings:
    """A ring that was given the prompt and these frames, column by column."""
    [voice] = backend._voices.values()
    prompt = prompt_frames(backend.config, opening.text_ids)
    whole = renewed_prompt(backend.config, voice, prompt, frames)
    lm, rings = backend.loop.lm, Renewal(backend.loop, FRAMES).spare
    with torch.inference_mode():
        active = Active.of([0], 1, rings.kv.device)
        for column in torch.cat([whole.embeddings, lm.embedding(whole.columns)]):
            lm.step(column[None], rings, active)
    return rings


def check_future(backend: PersonaPlexBackend, fresh: Rings, pcm: np.ndarray) -> None:
    """The same tokens come from the renewed ring and from the fresh one put in its place."""
    loop = backend.loop
    before = [t.clone() for t in loop.state(1)[2:]]
    renewed = [tick(backend, frame) for frame in pcm]
    with torch.inference_mode():
        loop.rings.clear(1)
        loop.rings.set_position(1, fresh.pushed[0])
        loop.rings.used(1).copy_(fresh.used(0))
        if fresh.scale is not None:
            loop.rings.used_scale(1).copy_(fresh.used_scale(0))
        restore(loop, before, len(pcm))
    assert [tick(backend, frame) for frame in pcm] == renewed


def restore(loop: Loop, before: list[torch.Tensor], ticks: int) -> None:
    """Everything but the temporal ring back to what it was."""
    for stream in (loop.encoder, loop.decoder):
        stream.rings.set_position(1, stream.rings.pushed[1] - ticks * loop.mimi.config.columns)
    for now, then in zip(loop.state(1)[2:], before, strict=True):
        now.copy_(then)


def test_a_slot_is_due_shortly_before_its_ring_is_full(backend):
    opening = Opening("TINYF0", (), GREEDY)
    for _ in backend.open(1, opening):
        pass
    assert backend.renew(1) is None
    due = []
    for frame in speech(TURNS + 15):
        tick(backend, frame)
        due.append(backend.renewal.due(1))
    assert due[-1]
    assert not due[0]


def test_renewal_is_off_where_prompt_and_frames_leave_no_room(roomy):
    backend = PersonaPlexBackend(roomy, slots=1, renewal_frames=50)
    for _ in backend.open(0, Opening("TINYF0", (), GREEDY)):
        pass
    backend.loop.rings.set_position(0, CONTEXT)
    backend.renewal.histories[0].total = 60
    assert backend.renewal.due(0)
    assert backend.renew(0) is None


def test_without_renewal_nothing_is_kept(roomy):
    backend = PersonaPlexBackend(roomy, slots=1)
    assert backend.renewal is None
    assert backend.renew(0) is None
