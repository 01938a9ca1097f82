"""Whole conversations against the reference: our frame i is its row i + 1."""

import itertools
import json
from functools import cache

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

from engine.commands.offline import drive_conversation, split_frames
from engine.config import FRAME_SAMPLES, GREEDY, ServerConfig
from engine.dialogue.persona import prompt_ids
from engine.model.prompt import Prompt
from engine.runtime.backend import Opening
from engine.runtime.personaplex import PersonaPlexBackend
from engine.runtime.starting import load_personaplex
from engine.weights.loading import file_hash
from tests.runtime.conftest import TINY

PCM_TOLERANCE = 1e-5
LIVE_ROWS = 81  # of the 82 expected; row 0 is the last prompt frame


@pytest.fixture(scope="module")
def backend(tiny) -> PersonaPlexBackend:
    return PersonaPlexBackend(tiny, slots=2)


@pytest.fixture(scope="module")
def user() -> np.ndarray:
    samples, _ = soundfile.read(TINY / "input_user.wav", dtype="int16")
    return split_frames(samples.astype(np.float32) / 32768)


def run(name: str) -> tuple[dict, dict]:
    folder = TINY / "expected"
    return load_file(folder / f"{name}.safetensors"), json.loads(
        (folder / f"{name}.json").read_text()
    )


def opening_of(parameters: dict, tokenizer) -> Opening:
    voice = parameters["voice"].split(".")[0]
    return Opening(voice, prompt_ids(parameters["text_prompt"], tokenizer), GREEDY)


def ring_after(prompt: Prompt, late: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's ring of tokens and its `given` flags, [17, 4] each, from our columns."""
    ring, given = torch.zeros(17, 4, dtype=torch.int64), torch.zeros(17, 4, dtype=torch.bool)
    for back in range(4, 0, -1):
        ring[:, (prompt.frames - back) % 4] = prompt.columns[-back]
    now = prompt.frames % 4
    ring[late, now], given[late, now] = prompt.after[late], True
    given[:, (prompt.frames - 1) % 4] = True
    return ring, given


def forcing(forced: dict[str, int]):
    """A director that puts text tokens into frames; its first step is frame 0's."""
    frames = itertools.count()

    def direct(sampled, heard, peak_in, peak_out):
        return forced.get(str(next(frames)), sampled), False

    return direct


@pytest.fixture(scope="module")
def spoken(backend, user):
    """spoken("gen_voice_pt") -> its frames; each conversation is held once."""

    @cache
    def hold(name: str) -> list:
        parameters = run(name)[1]
        opening = opening_of(parameters, backend.tokenizer)
        direct = forcing(parameters.get("forced", {}))
        return list(drive_conversation(backend, opening, user[:LIVE_ROWS], direct, slot=1))

    return hold


@pytest.mark.parametrize("name", ["gen_voice_pt", "gen_voice_wav", "gen_forced_text"])
def test_a_greedy_conversation_has_the_references_tokens(spoken, name):
    frames, rows = spoken(name), run(name)[0]["tokens"][1:]
    assert np.array_equal([f.text for f in frames], rows[:, 0])
    assert np.array_equal([f.agent_codes for f in frames], rows[:, 1:9])
    assert np.array_equal([f.user_codes for f in frames], rows[:, 9:])


@pytest.mark.parametrize("transcribe", ["", str(TINY.parent / "stt_tiny")])
def test_the_way_a_server_loads_has_the_references_tokens_too(user, transcribe):
    want, parameters = run("gen_voice_pt")
    threads = torch.get_num_threads()
    served = load_personaplex(
        ServerConfig(model=str(TINY), device="cpu", slots=3, transcribe=transcribe)
    )
    torch.set_num_threads(threads)
    opening = opening_of(parameters, served.tokenizer)
    frames = list(drive_conversation(served, opening, user[:LIVE_ROWS], forcing({}), slot=2))
    got = [[f.text, *f.agent_codes, *f.user_codes] for f in frames]
    assert np.array_equal(got, want["tokens"][1:])


def test_the_agents_audio_is_the_references(spoken):
    pcm = np.concatenate([f.pcm for f in spoken("gen_voice_pt")])
    np.testing.assert_allclose(
        pcm, run("gen_voice_pt")[0]["pcm"][FRAME_SAMPLES:], atol=PCM_TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("name", ["gen_voice_pt", "gen_voice_wav"])
def test_ids_and_token_ring_after_the_prompt_are_the_references(backend, name):
    want, parameters = run(name)
    opening = opening_of(parameters, backend.tokenizer)
    assert list(opening.text_ids) == want["prompt_ids"].tolist()
    for _ in backend.open(0, opening):
        pass
    path = backend.checkpoint.voices.path(opening.voice)
    [voice] = [v for d, v in backend._voices.items() if d == file_hash(path)]
    prompt = backend._prompt(voice, opening.text_ids)
    ring, given = ring_after(prompt, torch.tensor(backend.config.delays) == 1)
    assert torch.equal(ring.int(), torch.from_numpy(want["ring_after_prompts"]))
    assert torch.equal(given, torch.from_numpy(want["given_after_prompts"]).bool())
