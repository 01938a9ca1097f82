"""After a renewal a conversation equals a fresh one with the same prompt and the same frames.

What was fed and made is taken down here, tick by tick, and given to a fresh conversation through
the frame loop; nothing of the renewal's own history or columns is used for it.
"""

from collections.abc import Generator

import numpy as np
import pytest
import torch

from engine.config import FRAME_SAMPLES, GREEDY, SamplingConfig
from engine.dialogue.persona import prompt_ids
from engine.model.loop import Loop
from engine.runtime.backend import Opening
from engine.runtime.personaplex import PersonaPlexBackend
from engine.weights.loading import Checkpoint, load_checkpoint
from tests.runtime.conftest import make_thin

CONTEXT = 70  # the golden checkpoint's is shorter than its prompts
FRAMES = 6  # that a renewal keeps
SLOT = 1
FUTURE = 10  # frames that are compared


@pytest.fixture(scope="module")
def roomy(tmp_path_factory) -> Checkpoint:
    torch.set_num_threads(1)
    return load_checkpoint(str(make_thin(tmp_path_factory.mktemp("roomy"), context=CONTEXT)))


@pytest.fixture(scope="module")
def roomy_int8(tmp_path_factory) -> Checkpoint:
    """With int8 weights."""
    torch.set_num_threads(1)
    folder = make_thin(tmp_path_factory.mktemp("roomy"), context=CONTEXT)
    return load_checkpoint(str(folder), int8=True)


KINDS = ("float", "int8 KV", "int8")


@pytest.fixture(params=KINDS)
def backend(roomy, roomy_int8, request) -> PersonaPlexBackend:
    kv = torch.int8 if "int8" in request.param else None
    checkpoint = roomy_int8 if request.param == "int8" else roomy
    return PersonaPlexBackend(checkpoint, slots=2, kv_dtype=kv, renewal_frames=FRAMES)


class Call:
    """One conversation of a slot, with all that was fed and made."""

    def __init__(self, backend: PersonaPlexBackend, opening: Opening, slot: int = SLOT) -> None:
        self.backend, self.slot, self.sound = backend, slot, np.random.default_rng(5)
        self.frames: list[tuple[int, list[int], list[int]]] = []  # text fed, agent's codes, user's
        for _ in backend.open(slot, opening):
            pass
        self.next_text = 0
        self.tick()  # the bootstrap
        self.frames.clear()

    def tick(self) -> tuple[int, list[int]]:
        """One frame; now and then a director feeds another text, or silences the agent."""
        pcm = np.zeros((2, FRAME_SAMPLES), np.float32)
        pcm[self.slot] = self.sound.standard_normal(FRAME_SAMPLES) / 9
        heard = self.backend.listen(pcm, np.arange(2) == self.slot)
        text = heard.text.copy()
        if len(self.frames) % 5 == 3:
            text[self.slot] = 20 + len(self.frames) % 7
        spoken = self.backend.speak(text, np.full(2, len(self.frames) % 11 == 6))
        said, user = spoken.codes[self.slot].tolist(), heard.user_codes[self.slot].tolist()
        self.frames.append((self.next_text, said, user))
        self.next_text = int(text[self.slot])
        return int(heard.text[self.slot]), said

    def until_due(self) -> Generator[None]:
        for _ in range(2 * CONTEXT):
            if work := self.backend.renew(self.slot):
                return work
            self.tick()
        raise AssertionError("never due")

    def renew(self, ticks_between: tuple[int, ...] = (1, 2)) -> int:
        """Renew, with so many ticks after each piece; how many frames the new memory knows."""
        work, before = self.until_due(), len(self.frames)
        counts = iter(ticks_between)
        for _ in work:
            for _ in range(next(counts, 0)):
                self.tick()
        return FRAMES + len(self.frames) - before


@torch.inference_mode()
def fresh(call: Call, opening: Opening, known: int) -> PersonaPlexBackend:
    """A new conversation that was given the same prompt and the last `known` frames of a call."""
    old = call.backend
    kv = old.loop.rings.kv.dtype if old.loop.rings.scale is not None else None
    backend = PersonaPlexBackend(old.checkpoint, slots=2, kv_dtype=kv)
    for _ in backend.open(SLOT, opening):
        pass
    loop, hush = backend.loop, torch.zeros(2, dtype=torch.bool)
    active, frames = loop.active([SLOT]), call.frames[-known:]
    loop.step_temporal(loop.user_now.clone(), active)  # the bootstrap: the last prompt column
    feed(loop, frames[0][0], frames[0][1], late=None, hush=hush)
    for number, (_, said, user) in enumerate(frames):
        loop.step_temporal(torch.tensor([user, user]), active)
        if number + 1 < known:
            text, soon = frames[number + 1][0], frames[number + 1][1]
        else:  # the frame that comes: only its text and its first codebook are picked already
            text, *soon = old.loop.agent[SLOT].tolist()
        feed(loop, text, soon, late=said, hush=hush)
    return backend


def feed(loop: Loop, text: int, soon: list[int], late: list[int] | None, hush: torch.Tensor):
    """Say what is given: `soon`, a frame's rows without delay, and the frame before's others."""
    given = torch.where(loop.agent_late, torch.tensor(late or soon), torch.tensor(soon))
    if late is None:  # the rows with delay are the prompt's
        given = torch.where(loop.agent_late, loop.forced[SLOT], given)
    loop.forced[SLOT] = given
    loop.booting.discard(SLOT)
    loop.step_depth(torch.tensor([text, text]), hush, loop.active([SLOT]))


@torch.inference_mode()
def hand_over(old: Loop, new: Loop) -> None:
    """What a renewal leaves as it is: the codec's past, the sampler's numbers, what is forced."""
    for name in ("encoder", "decoder"):
        source, target = getattr(old, name), getattr(new, name)
        target.rings.kv.copy_(source.rings.kv)
        target.rings.set_position(SLOT, source.rings.pushed[SLOT])
        for mine, yours in zip(target.tails.values(), source.tails.values(), strict=True):
            mine.copy_(yours)
    new.sampler.fed.copy_(old.sampler.fed)
    new.sampler.count.copy_(old.sampler.count)
    new.sampler.generators[SLOT].set_state(old.sampler.generators[SLOT].get_state())
    new.forced[SLOT] = old.forced[SLOT]


def check(call: Call, opening: Opening, known: int) -> None:
    """Token for token, for as long as `FUTURE` frames."""
    other = fresh(call, opening, known)
    mine, yours = call.backend.loop, other.loop
    assert mine.rings.pushed[SLOT] == yours.rings.pushed[SLOT] < mine.rings.capacity
    assert torch.equal(mine.agent[SLOT], yours.agent[SLOT])
    assert torch.equal(mine.user_before[SLOT], yours.user_before[SLOT])
    atol = 1e-5 if mine.rings.scale is None else 1.0  # a step of int8
    pair = (mine.rings.used(SLOT)[0].float(), yours.rings.used(SLOT)[0].float())
    torch.testing.assert_close(*pair, atol=atol, rtol=0)
    hand_over(mine, yours)
    twin = Call.__new__(Call)
    twin.__dict__ = {**call.__dict__, "backend": other, "frames": list(call.frames)}
    twin.sound = np.random.default_rng(9)
    call.sound = np.random.default_rng(9)
    assert [twin.tick() for _ in range(FUTURE)] == [call.tick() for _ in range(FUTURE)]


SAMPLED = SamplingConfig()


@pytest.mark.parametrize(
    ("backend", "sampling"),
    [("float", GREEDY), *((kind, SAMPLED) for kind in KINDS)],
    indirect=["backend"],
    ids=["greedy", *KINDS],
)
def test_after_the_swap_it_is_a_fresh_conversation_token_for_token(backend, sampling):
    opening = Opening("TINYF0", prompt_ids("Hi", backend.tokenizer), sampling, seed=3)
    call = Call(backend, opening)
    known = call.renew()
    assert known > FRAMES  # it went on between the pieces
    check(call, opening, known)


@pytest.mark.parametrize("backend", ["float", "int8"], indirect=True)
def test_a_long_call_is_renewed_again_and_again(backend):
    opening = Opening("TINYF0", prompt_ids("Hi", backend.tokenizer), SAMPLED, seed=4)
    call = Call(backend, opening)
    for _ in range(3):
        known = call.renew()
        assert backend.loop.rings.pushed[SLOT] < backend.loop.rings.capacity
    check(call, opening, known)


def test_so_long_between_two_pieces_that_history_is_lost_it_begins_again(roomy):
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES)
    opening = Opening("TINYF0", prompt_ids("Hi", backend.tokenizer), SAMPLED, seed=5)
    call = Call(backend, opening)
    work = call.until_due()
    next(work)
    for _ in range(CONTEXT // 2):  # with the prompt more than a spare holds
        call.tick()
    assert list(work)  # more pieces, from the beginning
    check(call, opening, FRAMES // 2)


def test_a_renewal_that_is_broken_off_leaves_nothing_to_the_next_one(roomy):
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES)
    opening = Opening("TINYF0", prompt_ids("Hi", backend.tokenizer), SAMPLED, seed=12)
    work = Call(backend, opening).until_due()
    next(work)
    work.close()  # the first caller hangs up
    assert not backend.renewal.spare.kv.any()
    call = Call(backend, opening)
    check(call, opening, call.renew())


def beside_the_ring(loop: Loop) -> list[torch.Tensor]:
    """What a slot's future depends on but for what the temporal transformer reads."""
    sampler = loop.sampler.generators[SLOT].get_state(), loop.sampler.fed, loop.sampler.count
    rows = loop.agent[SLOT], loop.forced[SLOT], loop.user_before[SLOT]
    state = [*loop.encoder.state(SLOT), *loop.decoder.state(SLOT), *rows, *sampler]
    return [tensor.clone() for tensor in state]


@pytest.mark.parametrize("backend", ["float", "int8"], indirect=True)
def test_what_the_codec_and_the_sampler_remember_is_untouched_by_the_swap(backend):
    opening = Opening("TINYF0", prompt_ids("Hi", backend.tokenizer), SAMPLED, seed=7)
    call = Call(backend, opening)
    work, loop = call.until_due(), backend.loop
    with torch.inference_mode():
        while True:
            before, pushed = beside_the_ring(loop), loop.rings.pushed[SLOT]
            if next(work, "over") == "over":
                break
    assert loop.rings.pushed[SLOT] < pushed  # this was the swap
    assert all(map(torch.equal, before, beside_the_ring(loop)))
    assert not backend.renewal.spare.kv.any()  # nothing of the call stays behind


def test_the_text_of_the_first_frame_is_known_where_a_renewal_keeps_it(roomy):
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=20)
    opening = Opening("TINYF0", (), SAMPLED, seed=9)
    call = Call(backend, opening)
    while len(call.frames) < 20:
        call.tick()
    work = backend.renewal.run(SLOT, *backend._prompts[SLOT])
    for _ in work:
        pass
    check(call, opening, 20)


SPARE = 52  # columns: the prompt's 39, six frames, and some that come meanwhile


def test_in_a_smaller_spare_it_is_a_fresh_conversation_all_the_same(roomy):
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES, spare_columns=SPARE)
    opening = Opening("TINYF0", (), SAMPLED, seed=10)
    call = Call(backend, opening)
    for _ in range(2):
        known = call.renew()
        assert FRAMES <= known <= SPARE
    check(call, opening, known)


def test_where_more_is_said_than_a_smaller_spare_holds_it_begins_again(roomy):
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES, spare_columns=SPARE)
    opening = Opening("TINYF0", (), SAMPLED, seed=11)
    call = Call(backend, opening)
    while len(call.frames) < 20:
        call.tick()
    work = backend.renewal.run(SLOT, *backend._prompts[SLOT])
    next(work)
    for _ in range(SPARE // 2):  # with the prompt more than the spare holds
        call.tick()
    assert list(work) == [None]  # prompt and three frames are one piece, then comes the swap
    check(call, opening, FRAMES // 2)


def test_with_little_slack_a_smaller_spare_is_done_all_the_same(roomy):
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES, spare_columns=SPARE)
    backend.limit_piece(16)
    opening = Opening("TINYF0", (), SAMPLED, seed=12)
    call = Call(backend, opening)
    # Nine frames from one piece to the next, until it has begun again with a single one.
    known = call.renew((9,) * 8)
    check(call, opening, call.backend.loop.rings.pushed[SLOT] - backend.prompt_frames(opening))
    assert known >= FRAMES


def test_the_proof_can_fail(roomy):
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES)
    opening = Opening("TINYF0", prompt_ids("Hi", backend.tokenizer), GREEDY)
    call = Call(backend, opening)
    known = call.renew()
    text, said, user = call.frames[-3]
    call.frames[-3] = ((text + 1) % 100, said, user)
    with pytest.raises(AssertionError):
        check(call, opening, known)


# -- one spare for all slots, and its end ----------------------------------------------------------


def almost_full(backend: PersonaPlexBackend, slot: int) -> Call:
    """A call whose memory is full after the next frame."""
    opening = Opening("TINYF0", prompt_ids("Hi", backend.tokenizer), SAMPLED, seed=6)
    call = Call(backend, opening, slot)
    while backend.loop.rings.pushed[slot] + 1 < backend.loop.rings.capacity:
        call.tick()
    return call


def test_while_one_is_renewed_the_other_waits_and_then_has_its_turn(roomy):
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES)
    calls = [almost_full(backend, slot) for slot in range(2)]
    calls[0].tick()
    work = backend.renew(0)
    next(work)
    assert backend.renew(1) is None
    for _ in work:
        pass
    calls[0].tick()
    assert not backend.renewal.due(0)
    for _ in backend.renew(1):
        pass
    calls[1].tick()
    assert not backend.renewal.due(1)


def test_who_leaves_in_the_midst_of_its_renewal_leaves_nothing_to_the_next(roomy):
    opening = Opening("TINYF0", prompt_ids("Hi", roomy.tokenizer), SAMPLED, seed=8)
    alone = Call(PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES), opening)
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES)
    almost_full(backend, SLOT)
    work = backend.renew(SLOT)
    next(work)
    assert backend.renewal.busy
    work.close()
    assert not backend.renewal.busy  # at once: the spare is free for the others
    backend.close(SLOT)
    after = Call(backend, opening)
    for _ in range(CONTEXT - backend.prompt_frames(opening) + 2):  # past the ring's wrap
        assert after.tick() == alone.tick()


def test_the_next_caller_of_a_slot_has_no_history_and_no_place_in_the_queue(roomy):
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES)
    almost_full(backend, SLOT).tick()
    assert backend.renewal.due(SLOT)
    backend.close(SLOT)
    history = backend.renewal.histories[SLOT]
    assert (len(history.last(CONTEXT)), history.total) == (0, 0)
    assert not list(backend.renewal.queue.slots)
    assert not backend.renewal.due(SLOT)


def test_a_renewal_that_fails_is_not_tried_again_in_this_call(roomy, monkeypatch):
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=FRAMES)
    almost_full(backend, SLOT).tick()
    work = backend.renew(SLOT)
    monkeypatch.setattr(backend.renewal.prefill, "run", lambda *what: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(work)
    assert not backend.renewal.busy
    assert not list(backend.renewal.queue.slots)


# -- when it is off --------------------------------------------------------------------------------


def test_a_slot_is_due_shortly_before_its_ring_is_full(backend):
    call = Call(backend, Opening("TINYF0", prompt_ids("Hi", backend.tokenizer), GREEDY))
    assert backend.renew(SLOT) is None
    call.until_due()
    rings = backend.loop.rings
    assert rings.capacity - 10 <= rings.pushed[SLOT] < rings.capacity


@pytest.mark.parametrize("more", [0, 1])
def test_renewal_is_off_where_prompt_and_frames_leave_no_room_and_says_so(roomy, more, caplog):
    opening = Opening("TINYF0", (), GREEDY)
    alone = PersonaPlexBackend(roomy, slots=2, renewal_frames=1)
    Call(alone, opening)
    columns, queue = alone.prompt_frames(opening), alone.renewal.queue
    fit = [n for n in range(columns, CONTEXT) if n + 2 * queue.lasts(n) < CONTEXT - 1]
    most = max(fit) - columns
    backend = PersonaPlexBackend(roomy, slots=2, renewal_frames=most + more)
    call = Call(backend, opening)
    for _ in range(CONTEXT - columns):  # until the ring is full
        call.tick()
    assert (backend.renew(SLOT) is None) == bool(more)
    assert ("leaves no room to renew" in caplog.text) == bool(more)


def test_without_renewal_nothing_is_kept(roomy):
    backend = PersonaPlexBackend(roomy, slots=1)
    assert backend.renewal is None
    assert backend.renew(0) is None
