"""What a router knows of caches beyond the events: what it expects, and what it guesses."""

from __future__ import annotations

import numpy as np
import pytest

from core.cache_events import NO_HASHES, NO_PARENT, CacheChange, StoredBlocks
from core.request import AttemptKey, RequestKey
from router.placement import WorkerId
from router.prefix_index.cache_view import AskEvents
from router.prefix_index.event_watch import SILENT_AFTER_ANSWERS, SILENT_AFTER_S
from router.prefix_index.expected_blocks import LIFETIME_S
from router.prefix_index.guessed_cache import LIFETIME_S as GUESS_LIFETIME_S
from router.prefix_index.worker_caches import WorkerCaches

A, B = WorkerId("a", 1), WorkerId("b", 1)
NUM_BLOCKS = 8


def key(name: str) -> AttemptKey:
    return AttemptKey(RequestKey("default", name), 1)


def hashes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def chain(sequence: int, *blocks: int, parent: int = NO_PARENT) -> CacheChange:
    parents = hashes(*[parent, *blocks][: len(blocks)])
    return CacheChange(sequence, StoredBlocks.of(hashes(*blocks), parents), NO_HASHES)


@pytest.fixture
def caches() -> WorkerCaches:
    return two_workers()


def two_workers(max_blocks: int = 1 << 20) -> WorkerCaches:
    caches = WorkerCaches(max_blocks)
    assert [caches.attached(worker, NUM_BLOCKS) for worker in (A, B)] == [0, 1]
    return caches


def overlaps(caches: WorkerCaches, *blocks: int) -> list[int]:
    found: list[int] = caches.overlaps(hashes(*blocks), 2).blocks.tolist()
    return found


def test_a_prompt_under_way_counts_where_it_went(caches: WorkerCaches) -> None:
    caches.expect(key("one"), A, hashes(1, 2, 3), 0, now=0.0)
    assert overlaps(caches, 1, 2, 9) == [2, 0]
    caches.settled(key("one"), A)
    assert overlaps(caches, 1, 2, 9) == [0, 0]


def test_what_events_told_stays_when_the_prompt_is_settled(caches: WorkerCaches) -> None:
    caches.expect(key("one"), A, hashes(1, 2, 3), 0, now=0.0)
    caches.take(A, A.epoch, chain(1, 1, 2), 0.1)
    assert overlaps(caches, 1, 2, 3) == [3, 0]
    caches.settled(key("one"), A)
    assert overlaps(caches, 1, 2, 3) == [2, 0]


def test_a_sibling_adds_what_it_has_beyond(caches: WorkerCaches) -> None:
    caches.expect(key("one"), A, hashes(1, 2), 0, now=0.0)
    caches.expect(key("two"), A, hashes(1, 2, 3, 4), 2, now=0.1)
    caches.expect(key("two"), B, hashes(1, 2, 3, 4), 0, now=0.1)
    assert overlaps(caches, 1, 2, 3, 4) == [4, 4]
    caches.settled(key("two"), A)
    assert overlaps(caches, 1, 2, 3, 4) == [2, 4]


def test_nothing_is_expected_for_long(caches: WorkerCaches) -> None:
    caches.expect(key("one"), A, hashes(1, 2), 0, now=0.0)
    caches.expect(key("two"), B, hashes(7), 0, now=LIFETIME_S)
    assert overlaps(caches, 1, 2) == [0, 0]


def test_what_was_expected_goes_with_its_worker(caches: WorkerCaches) -> None:
    caches.expect(key("one"), A, hashes(1, 2), 0, now=0.0)
    caches.forget(A)
    again = WorkerId("a", 2)
    assert caches.attached(again, NUM_BLOCKS) == 0
    assert overlaps(caches, 1, 2) == [0, 0]
    assert not caches.answered(key("one"), A, hashes(1, 2), 1.0)


def test_entries_stay_while_a_stream_is_broken_and_go_with_the_worker(
    caches: WorkerCaches,
) -> None:
    caches.take(A, A.epoch, chain(1, 1, 2), 0.0)
    assert caches.sequence(A) == 1
    caches.attached(A, NUM_BLOCKS)
    assert caches.sequence(A) == 1
    assert overlaps(caches, 1, 2) == [2, 0]
    caches.forget(A)
    assert len(caches.index) == 0
    assert caches.take(A, A.epoch, chain(2, 3), 1.0) is None
    assert len(caches.index) == 0


def answer_prompts(caches: WorkerCaches, worker: WorkerId, count: int, first: int = 0) -> bool:
    """Prompts with a new block each, over as long as it takes to be silent."""
    silent = False
    for number in range(first, first + count):
        now = number * SILENT_AFTER_S / (SILENT_AFTER_ANSWERS - 1)
        name = key(str(number))
        block = hashes(1000 + number)
        caches.expect(name, worker, block, 0, now)
        silent = caches.answered(name, worker, block, now)
    return silent


def test_a_worker_that_answers_and_tells_nothing_is_silent(caches: WorkerCaches) -> None:
    assert not answer_prompts(caches, A, SILENT_AFTER_ANSWERS - 1)
    assert answer_prompts(caches, A, 1, first=SILENT_AFTER_ANSWERS - 1)


def test_answers_that_take_long_show_silence_all_the_same(caches: WorkerCaches) -> None:
    """By then nothing is expected of them any more: other prompts were sent meanwhile."""
    numbers = range(SILENT_AFTER_ANSWERS)
    for number in numbers:
        caches.expect(key(str(number)), A, hashes(1000 + number), 0, float(number))
    late = LIFETIME_S + SILENT_AFTER_ANSWERS
    caches.expect(key("other"), B, hashes(9), 0, now=late)
    told = [caches.answered(key(str(n)), A, hashes(1000 + n), late + n) for n in numbers]
    assert told == [False] * (SILENT_AFTER_ANSWERS - 1) + [True]


def test_what_was_sent_over_a_stream_that_broke_is_not_expected(caches: WorkerCaches) -> None:
    caches.expect(key("one"), A, hashes(1, 2), 0, now=0.0)
    assert overlaps(caches, 1, 2) == [2, 0]
    caches.lost(A)
    assert overlaps(caches, 1, 2) == [0, 0]


def test_a_word_now_and_then_is_enough(caches: WorkerCaches) -> None:
    assert not answer_prompts(caches, A, SILENT_AFTER_ANSWERS - 1)
    caches.take(A, A.epoch, chain(1, 5), 1.0)
    assert not answer_prompts(caches, A, SILENT_AFTER_ANSWERS - 1)


def test_who_has_nothing_new_to_tell_is_not_silent(caches: WorkerCaches) -> None:
    caches.take(A, A.epoch, chain(1, 1), 0.0)
    for number in range(SILENT_AFTER_ANSWERS * 2):
        caches.expect(key(str(number)), A, hashes(1), 1, float(number))
        assert not caches.answered(key(str(number)), A, hashes(1), float(number))


def test_a_silent_workers_cache_is_guessed_from_what_it_answered(caches: WorkerCaches) -> None:
    caches.guess(A)
    caches.expect(key("one"), A, hashes(1, 2, 3), 0, now=0.0)
    caches.answered(key("one"), A, hashes(1, 2, 3), 0.5)
    assert overlaps(caches, 1, 2, 3) == [3, 0]
    assert caches.is_guessed(A)
    assert not caches.is_guessed(B)


def test_an_answer_that_took_long_is_guessed_from_all_the_same(caches: WorkerCaches) -> None:
    """By then nothing is expected of it any more: other prompts were sent meanwhile."""
    caches.guess(A)
    caches.expect(key("slow"), A, hashes(1, 2), 0, now=0.0)
    late = LIFETIME_S + 1
    caches.expect(key("other"), A, hashes(9), 0, now=late)
    caches.answered(key("slow"), A, hashes(1, 2), late)
    assert overlaps(caches, 1, 2) == [2, 0]


def test_a_guess_is_no_larger_than_the_pool_and_forgets_ends_first(caches: WorkerCaches) -> None:
    caches.guess(A)
    for name, blocks in {"one": (1, 2, 3), "two": (1, 12, 13), "new": (21, 22, 23, 24)}.items():
        caches.expect(key(name), A, hashes(*blocks), 0, now=0.0)
        caches.answered(key(name), A, hashes(*blocks), 0.5)
    assert len(caches.index) == NUM_BLOCKS
    assert overlaps(caches, 1, 2, 3) == [2, 0]
    assert overlaps(caches, 1, 12, 13) == [3, 0]


def test_a_guess_does_not_live_for_ever(caches: WorkerCaches) -> None:
    caches.guess(A)
    for name, block, now in (("old", 1, 0.0), ("new", 2, GUESS_LIFETIME_S)):
        caches.expect(key(name), A, hashes(block), 0, now)
        caches.answered(key(name), A, hashes(block), now)
    assert overlaps(caches, 1) == [0, 0]
    assert overlaps(caches, 2) == [1, 0]


def test_events_end_the_guessing_and_everything_is_asked_for(caches: WorkerCaches) -> None:
    caches.guess(A)
    caches.expect(key("one"), A, hashes(1), 0, now=0.0)
    caches.answered(key("one"), A, hashes(1), 0.5)
    assert caches.take(A, A.epoch, chain(1, 7), 1.0) == AskEvents(after=0)
    assert not caches.is_guessed(A)
    assert overlaps(caches, 1) == [0, 0]
    caches.take(A, A.epoch, chain(1, 7), 1.1)
    assert overlaps(caches, 7) == [1, 0]


def test_what_finds_no_room_is_left_out_from_the_end() -> None:
    caches = two_workers(max_blocks=4)
    caches.take(A, A.epoch, chain(1, 1, 2, 3), 0.0)
    caches.take(B, B.epoch, chain(1, 1, 2, 8, 9), 0.0)
    assert overlaps(caches, 1, 2, 3) == [3, 2]
    assert overlaps(caches, 1, 2, 8, 9) == [2, 3]
    assert (len(caches.index), caches.left_out) == (4, 1)
    # What hangs below a block that was left out is left out as well.
    caches.take(A, A.epoch, CacheChange(2, removed=hashes(3)), 0.1)
    caches.take(B, B.epoch, chain(2, 10, parent=9), 0.2)
    assert caches.left_out == 2
    assert overlaps(caches, 10) == [0, 0]
