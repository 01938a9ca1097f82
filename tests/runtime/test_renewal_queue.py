"""Whose memory is renewed next: arithmetic over full rings of the public model."""

import pytest

from engine.runtime.renewal_queue import RenewalQueue

CAPACITY = 2999  # columns of the public model's ring
RENEWED = 1150  # columns: a prompt of 150 and the 1 000 frames that are kept
INT8, BF16 = 16, 64  # columns of a piece


def queue_of(slots: int, piece: int = INT8) -> RenewalQueue:
    queue = RenewalQueue(CAPACITY, piece)
    assert all(queue.enter(slot, RENEWED) for slot in range(slots))
    return queue


def begins_at(queue: RenewalQueue, slots: int) -> int:
    """Columns at which the first of so many slots that fill up together is renewed."""
    return next(n for n in range(CAPACITY) if queue.next(dict.fromkeys(range(slots), n)) == 0)


@pytest.mark.parametrize(("piece", "frames"), [(INT8, 78), (BF16, 20)])
def test_a_renewal_lasts_a_frame_a_piece_and_catches_up_with_what_comes_meanwhile(piece, frames):
    done = taken = 0
    while done < RENEWED + taken:
        done, taken = done + piece, taken + 1
    assert queue_of(1, piece).lasts(RENEWED) == frames == taken + 1  # and the swap


@pytest.mark.parametrize(("piece", "frames"), [(INT8, 78), (BF16, 20)])
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_slots_that_fill_up_together_begin_so_early_that_the_last_is_in_time(slots, piece, frames):
    begin = begins_at(queue_of(slots, piece), slots)
    assert begin + (slots + 1) * frames == CAPACITY  # one of them to spare


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


@pytest.mark.parametrize("piece", [INT8, BF16])
def test_a_slot_that_would_be_due_again_at_once_is_not_renewed(piece):
    queue = RenewalQueue(CAPACITY, piece)
    most = max(n for n in range(CAPACITY) if n + 2 * queue.lasts(n) < CAPACITY)
    assert queue.enter(0, most)
    assert queue.next({0: most}) is None
    assert not queue.enter(1, most + 1)
    assert list(queue.slots) == [0]
