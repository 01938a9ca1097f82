"""Kept prompts: least recently used out, within a budget."""

import torch

from engine.model.loop import PromptState
from engine.runtime.personaplex import PromptCache


def ready(megabytes: float) -> PromptState:
    kv, none = torch.zeros(int(megabytes * 250_000)), torch.zeros(1)
    return PromptState([kv], 1, none, none, none, none)


def key(number: int) -> tuple[str, tuple[int, ...]]:
    return "voice", (number,)


def test_the_least_recently_used_makes_room():
    cache, states = PromptCache(3), [ready(1) for _ in range(4)]
    for number in range(3):
        cache.put(key(number), states[number])
    assert cache.get(key(0)) is states[0]  # now the newest
    cache.put(key(3), states[3])
    assert cache.get(key(1)) is None
    assert [cache.get(key(n)) is states[n] for n in (0, 2, 3)] == [True] * 3


def test_a_state_larger_than_the_budget_is_not_kept_and_drops_nobody():
    cache, small = PromptCache(2), ready(1)
    cache.put(key(0), small)
    cache.put(key(1), ready(3))
    assert (len(cache._kept), cache.get(key(0))) == (1, small)


def test_voice_and_persona_both_tell_prompts_apart():
    cache = PromptCache(3)
    cache.put(("a", (1,)), ready(1))
    assert cache.get(("b", (1,))) is None
    assert cache.get(("a", (2,))) is None


def test_no_budget_keeps_nothing():
    cache = PromptCache(0)
    cache.put(key(0), ready(1))
    assert len(cache._kept) == 0
