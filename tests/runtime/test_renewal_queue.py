"""Whose memory is renewed next: arithmetic over full rings of the public model."""

import pytest

from engine.runtime.renewal import RenewalQueue

CAPACITY = 2999  # columns of the public model's ring
PROMPT, KEPT = 150, 1000  # columns of a prompt, and frames that are kept behind it
RENEWED = PROMPT + KEPT
SMALL, LARGE = 16, 64  # columns of a piece


def queue_of(slots: int, piece: int = SMALL) -> RenewalQueue:
    queue = RenewalQueue(CAPACITY, piece, slots, CAPACITY)
    assert [queue.enter(slot, PROMPT, KEPT) for slot in range(slots)] == [KEPT] * slots
    return queue


def begins_at(queue: RenewalQueue, slots: int) -> int:
    """Columns at which the first of so many slots that fill up together is renewed."""
    return next(n for n in range(CAPACITY) if queue.next(dict.fromkeys(range(slots), n)) == 0)


@pytest.mark.parametrize(("piece", "frames"), [(SMALL, 78), (LARGE, 20)])
def test_a_renewal_lasts_a_frame_a_piece_and_catches_up_with_what_comes_meanwhile(piece, frames):
    done = taken = 0
    while done < RENEWED + taken:
        done, taken = done + piece, taken + 1
    assert queue_of(1, piece).lasts(RENEWED) == frames == taken + 1  # and the swap


@pytest.mark.parametrize(("piece", "frames"), [(SMALL, 78), (LARGE, 20)])
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_slots_that_fill_up_together_begin_so_early_that_the_last_is_in_time(slots, piece, frames):
    begin = begins_at(queue_of(slots, piece), slots)
    assert begin + (slots + 1) * frames == CAPACITY  # one of them to spare


def test_where_each_piece_waits_for_two_frames_renewals_begin_so_much_earlier():
    queue = queue_of(16, LARGE)
    frames = queue.lasts(RENEWED)
    for _ in range(2):  # one slow renewal is no pace yet, of three that are known two are
        queue.set_pace(2 * frames, frames)
    assert queue.lasts(RENEWED) == 2 * frames
    assert begins_at(queue, 16) + 17 * 2 * frames == CAPACITY
    for _ in range(5):
        queue.set_pace(3, frames)  # with much slack: not later than at one piece a frame
    assert begins_at(queue, 16) + 17 * frames == CAPACITY


def test_one_slow_renewal_changes_nothing():
    queue = queue_of(16, LARGE)
    begin = begins_at(queue, 16)
    queue.set_pace(20, 20)
    queue.set_pace(2000, 20)
    assert begins_at(queue, 16) == begin


@pytest.mark.parametrize(("slots", "kept"), [(64, 1000), (80, 1000), (96, 800)])
def test_many_slots_keep_at_least_800_frames_of_pieces_of_64_columns(slots, kept):
    queue = RenewalQueue(CAPACITY, LARGE, slots, CAPACITY)
    assert min(queue.enter(slot, PROMPT, KEPT) for slot in range(slots)) >= kept


def test_pieces_of_16_columns_would_leave_eighty_slots_a_third_of_that():
    queue = RenewalQueue(CAPACITY, SMALL, 80, CAPACITY)
    assert {queue.enter(slot, PROMPT, KEPT) for slot in range(80)} == {300}


def test_a_lone_call_is_renewed_late_however_many_slots_there_are():
    queue = queue_of(16)
    assert queue.next({0: 2800, 1: 1200, 2: 160}) is None
    assert queue.next({0: 2843, 1: 1200, 2: 160}) == 0


def test_the_fullest_goes_first_and_early_where_the_next_would_wait_for_it_too_long():
    queue = queue_of(3)
    assert queue.next({0: 1200, 1: 2790, 2: 2780}) == 1
    assert queue.next({0: 1200, 1: 2790, 2: 2760}) is None


def test_who_has_left_keeps_nobody_waiting():
    queue = queue_of(2)
    queue.leave(0)
    assert list(queue.slots) == [1]
    assert queue.next({}) is None


@pytest.mark.parametrize("piece", [SMALL, LARGE])
def test_a_slot_that_would_be_due_again_at_once_is_not_renewed(piece):
    queue = RenewalQueue(CAPACITY, piece, 1, CAPACITY)
    most = max(n for n in range(CAPACITY) if n + 2 * queue.lasts(n) < CAPACITY)
    assert queue.enter(0, most - KEPT, KEPT) == KEPT
    assert queue.next({0: most}) is None
    assert not queue.enter(1, most + 1 - KEPT, KEPT)
    assert list(queue.slots) == [0]


@pytest.mark.parametrize("prompt", [400, 700, 1050])
def test_with_long_prompts_so_many_frames_are_kept_that_all_slots_find_the_spare_in_time(prompt):
    queue = RenewalQueue(CAPACITY, SMALL, 16, CAPACITY)
    [kept] = {queue.enter(slot, prompt, KEPT) for slot in range(16)}
    assert 300 < kept <= KEPT
    lasts, pushed, busy, lost = queue.lasts(prompt + kept), dict.fromkeys(range(16), 1200), None, 0
    for _ in range(20_000):  # frames, in which everybody talks on
        pushed = {slot: columns + 1 for slot, columns in pushed.items()}
        lost += sum(columns > CAPACITY for columns in pushed.values())
        if busy is None and (slot := queue.next(pushed)) is not None:
            busy, left = slot, lasts
        if busy is not None:
            left -= 1
            if not left:
                pushed[busy], busy = prompt + kept + lasts, None
    assert not lost


@pytest.mark.parametrize("spare", [799, 1103])  # of an A10G in bf16, and with int8 keys
def test_a_smaller_spare_keeps_as_many_frames_as_it_holds_with_what_comes_meanwhile(spare):
    queue = RenewalQueue(CAPACITY, LARGE, 4, spare)
    kept = queue.enter(0, PROMPT, KEPT)
    assert PROMPT + kept + 2 * queue.lasts(PROMPT + kept) <= spare
    assert PROMPT + kept + 1 + 2 * queue.lasts(PROMPT + kept + 1) > spare
    assert RenewalQueue(CAPACITY, LARGE, 4, PROMPT).enter(0, PROMPT, KEPT) == 0
