"""The recogniser inside the backend: golden tokens, other conversations, and its switches."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.commands.offline import split_frames
from engine.config import FRAME_SAMPLES, GREEDY, ServerConfig
from engine.errors import ModelError
from engine.model.gpu.graphs import Ticks
from engine.runtime.backend import Opening
from engine.runtime.choose import load_backend
from engine.runtime.personaplex import PersonaPlexBackend
from engine.runtime.scheduler import heard_row
from engine.runtime.starting import load_personaplex
from engine.weights.loading import LoadedRecogniser, load_recogniser
from engine.wire.client import read_wav
from tests.model.listening import CPU, STT_TINY, WANT
from tests.runtime.conftest import TINY

FLUSH_STEPS = 7
HEARD = Opening("TINYF0", (5, 6, 7), GREEDY, transcribe=True)
UNHEARD = Opening("TINYF0", (5, 6, 7), GREEDY)


@pytest.fixture(scope="module")
def recogniser(thin) -> LoadedRecogniser:
    return load_recogniser(str(STT_TINY), thin.mimi, device=CPU)


@pytest.fixture(scope="module")
def backend(thin, recogniser) -> PersonaPlexBackend:
    return PersonaPlexBackend(thin, slots=3, recogniser=recogniser)


@pytest.fixture(scope="module")
def user() -> np.ndarray:
    return split_frames(read_wav(str(TINY / "input_user.wav")))


def enter(backend: PersonaPlexBackend, slot: int, opening: Opening = HEARD) -> None:
    for _ in backend.open(slot, opening):
        pass


def tick(backend: PersonaPlexBackend, pcm: np.ndarray, slots: Iterable[int]):
    """One step of some slots, all hearing pcm [1920]."""
    active = np.isin(np.arange(backend.slots), list(slots))
    heard = backend.listen(np.tile(pcm, (backend.slots, 1)), active)
    backend.speak(heard.text, np.zeros(backend.slots, bool))
    return heard


def stt_tokens(backend, slot: int, user: np.ndarray, others: tuple[int, ...] = ()) -> list[int]:
    silence = np.zeros((1, FRAME_SAMPLES), np.float32)  # the bootstrap
    frames = np.concatenate([silence, user])
    return [int(tick(backend, pcm, (slot, *others)).stt_text[slot]) for pcm in frames]


def test_step_0_runs_in_the_bootstrap_and_step_i_plus_1_in_the_tick_of_frame_i(backend, user):
    enter(backend, 1)
    tokens = stt_tokens(backend, 1, user)
    assert tokens == WANT["tokens"][:83].tolist()
    flushed = [backend.flush([1])[1] for _ in range(FLUSH_STEPS)]
    assert [row.stt_text for row in flushed] == WANT["tokens"][83:].tolist()
    np.testing.assert_allclose([r.pause for r in flushed], WANT["pause"][83:], atol=1e-4, rtol=0)


def test_a_slot_used_again_with_neighbours_hears_the_same_words(backend, user):
    for slot, opening in ((0, HEARD), (1, HEARD), (2, UNHEARD)):
        enter(backend, slot, opening)
    assert stt_tokens(backend, 1, user[:40], (0, 2)) == WANT["tokens"][:41].tolist()
    idle = [tensor.clone() for tensor in backend.hearing.state(1)]
    tick(backend, user[0], (0, 2))
    backend.flush([0, 2])
    assert all(map(torch.equal, idle, backend.hearing.state(1)))


def test_a_conversation_without_recogniser_has_no_words_beside_one_with(backend, user):
    enter(backend, 0, UNHEARD)
    enter(backend, 2, HEARD)
    heard = tick(backend, user[0], (0, 2))
    assert heard_row(heard, 0).stt_text is None
    assert heard_row(heard, 0).pause is None
    assert heard_row(heard, 2).stt_text == WANT["tokens"][0]
    assert list(backend.flush([0, 2])) == [2]


def test_ticks_are_timed_with_every_ring_full_and_leave_the_slots_as_new(thin, recogniser):
    backend, filled = PersonaPlexBackend(thin, slots=3, recogniser=recogniser), []
    loop, hearing = backend.loop, backend.hearing
    backend.runner = Ticks(loop, every=True, hearing=hearing)
    rings = [loop.rings, loop.encoder.rings, loop.decoder.rings, hearing.rings]
    listen = backend.runner.listen

    def noting(*what):
        filled.extend(pushed >= ring.capacity for ring in rings for pushed in ring.pushed)
        return listen(*what)

    def states() -> list[torch.Tensor]:
        slots = range(3)
        return [tensor for one in (loop, hearing) for slot in slots for tensor in one.state(slot)]

    backend.runner.listen = noting
    new = [tensor.clone() for tensor in states()]
    backend.measure()
    assert filled
    assert all(filled)
    assert all(map(torch.equal, new, states()))


def test_personaplex_is_bit_identical_with_and_without_the_recogniser(thin, backend, user):
    plain, seen = PersonaPlexBackend(thin, slots=3), []
    for one, opening in ((plain, UNHEARD), (backend, HEARD)):
        enter(one, 1, opening)
        heard = [tick(one, pcm, (1,)) for pcm in user[:30]]
        state = [tensor.clone() for tensor in one.loop.state(1)]
        seen.append([*(torch.tensor([*h.user_codes[1], h.text[1]]) for h in heard), *state])
    assert all(map(torch.equal, *seen))
    assert not plain.transcribes
    assert backend.transcribes


def test_switched_off_it_runs_no_step_and_encodes_no_more_than_the_model_needs(
    backend, user, monkeypatch
):
    enter(backend, 0)
    quantizer, encoded = backend.loop.mimi.quantizer, []
    encode = quantizer.encode
    monkeypatch.setattr(quantizer, "encode", lambda x, n: encoded.append(n) or encode(x, n))
    tick(backend, user[0], (0,))
    before = [tensor.clone() for tensor in backend.hearing.state(0)]
    backend.transcribing = False
    heard = tick(backend, user[1], (0,))
    assert heard.stt_text is None
    assert heard_row(heard, 0).stt_text is None
    assert encoded == [32, 8]
    assert backend.flush([0]) == {}
    assert all(map(torch.equal, before, backend.hearing.state(0)))
    backend.transcribing = True
    assert heard_row(tick(backend, user[2], (0,)), 0).stt_text is not None


def test_nothing_of_a_conversation_stays_after_its_end(backend, user):
    enter(backend, 0)
    tick(backend, user[0], (0,))
    backend.close(0)
    assert not backend.hearing.rings.kv[:, :, 0].any()
    assert not backend.hearing.text[0]


def variant(folder, change) -> str:
    """A copy of the recogniser with its tensors renamed or dropped."""
    for file in ("config.json", "tokenizer_en_fr_audio_8000.model"):
        (folder / file).symlink_to(STT_TINY / file)
    save_file(change(load_file(STT_TINY / "model.safetensors")), folder / "model.safetensors")
    return str(folder)


def test_the_newer_spelling_of_tensors_is_read_too(thin, recogniser, tmp_path):
    def newer(tensors):
        names = (("in_proj_weight", "in_projs.0.weight"), ("out_proj.weight", "out_projs.0.weight"))
        for old, new in names:
            tensors = {name.replace(old, new): value for name, value in tensors.items()}
        return tensors

    stt = load_recogniser(variant(tmp_path, newer), thin.mimi, device=CPU).stt
    x = torch.randn(3, stt.config.dim)
    for own, usual in zip(stt.transformer.layers, recogniser.stt.transformer.layers, strict=True):
        assert torch.equal(own.self_attn.in_proj(x), usual.self_attn.in_proj(x))
        assert torch.equal(own.self_attn.out_proj(x), usual.self_attn.out_proj(x))


def test_without_pause_heads_it_hears_words_only_and_says_so(thin, user, tmp_path, caplog):
    def headless(tensors):
        return {name: value for name, value in tensors.items() if "extra_heads" not in name}

    loaded = load_recogniser(variant(tmp_path, headless), thin.mimi, device=CPU)
    assert "has no pause heads" in caplog.text
    backend = PersonaPlexBackend(thin, slots=1, recogniser=loaded)
    enter(backend, 0)
    assert stt_tokens(backend, 0, user[:12]) == WANT["tokens"][:13].tolist()
    assert backend.flush([0])[0].pause is None


def test_a_missing_tensor_is_named(thin, tmp_path):
    def cut(tensors):
        return {name: value for name, value in tensors.items() if name != "out_norm.alpha"}

    with pytest.raises(ModelError, match=r"has no tensor out_norm\.alpha"):
        load_recogniser(variant(tmp_path, cut), thin.mimi, device=CPU)


@pytest.mark.parametrize("source", ["/no/such/folder", "nonsense"])
def test_what_is_neither_folder_nor_repository_is_refused(thin, source):
    with pytest.raises(ModelError, match="no directory and no repository"):
        load_recogniser(source, thin.mimi, device=CPU)


def test_a_folder_of_something_else_is_refused(thin, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "moshi"}')
    with pytest.raises(ModelError, match="is not a recogniser's"):
        load_recogniser(str(tmp_path), thin.mimi, device=CPU)


def test_the_setting_loads_it_and_the_environment_sets_it():
    config = ServerConfig.from_environment(
        {"PERSONAPLEX_TRANSCRIBE": str(STT_TINY)}, model=str(TINY), slots=1, device="cpu"
    )
    backend = load_backend(config, lambda phase, percent: None)
    assert backend.transcribes
    assert backend.transcription.delay_frames == 6


def test_the_embedded_voice_has_no_recogniser_in_the_model():
    config = ServerConfig(model="embedded", transcribe=str(STT_TINY), slots=1)
    assert not load_backend(config, lambda phase, percent: None).transcribes
    assert not load_personaplex(
        ServerConfig(model=str(TINY), slots=1, device="cpu"), lambda phase, percent: None
    ).transcribes
