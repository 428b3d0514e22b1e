"""Which changes of a prefix cache can be told again, and chains of blocks as arrays."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from core.cache_events import NO_HASHES, NO_PARENT, CacheLog, StoredBlocks


def hashes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def test_blocks_that_follow_each_other_are_one_chain() -> None:
    stored = StoredBlocks.of(hashes(1, 2, 7, 8, 3), hashes(NO_PARENT, 1, 5, 7, 2))
    assert list(stored.chains()) == [(NO_PARENT, [1, 2]), (5, [7, 8]), (2, [3])]


def test_nothing_stored_has_no_chains() -> None:
    assert list(StoredBlocks.of(NO_HASHES, NO_HASHES).chains()) == []


def test_changes_are_numbered_from_one_and_told_again_from_any_number() -> None:
    log = CacheLog()
    for block in range(1, 6):
        log.add(StoredBlocks.of(hashes(block), hashes(NO_PARENT)), NO_HASHES)
    assert log.sequence == 5
    told = log.since(2)
    assert told is not None
    assert [change.sequence for change in told] == [3, 4, 5]
    assert log.since(5) == []


def test_a_number_of_another_life_is_not_known() -> None:
    assert CacheLog().since(1) is None


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(0, 45))
def test_the_log_forgets_the_oldest_changes_and_never_tells_with_a_hole(
    sizes: list[int], after: int
) -> None:
    log = CacheLog(most_blocks=20, most_changes=8)
    for size in sizes:
        removed = np.arange(size, dtype=np.uint64)
        log.add(StoredBlocks.of(NO_HASHES, NO_HASHES), removed)
    told = log.since(after)
    if told is not None:
        assert [change.sequence for change in told] == list(range(after + 1, len(sizes) + 1))
    elif after <= len(sizes):
        missing = sizes[after:]
        assert len(missing) > 8 or sum(missing) > 20
