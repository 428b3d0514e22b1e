"""Stretches of memory as iovecs, without the sockets that move them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer import iovecs

POOL = np.arange(31 * 6, dtype=np.uint8).reshape(31, 6)
BLOCK_IDS = st.lists(st.integers(0, 30), max_size=40)
WHOLE = np.array([[0, 6]])
SCATTERED = np.array([[1, 1], [3, 2]])


@given(BLOCK_IDS)
def test_whole_blocks_are_their_bytes_in_order(ids: list[int]) -> None:
    buffers = iovecs.over_parts(POOL, np.array(ids, np.int64), WHOLE)
    assert b"".join(buffers.views()) == POOL[ids].tobytes()


@given(BLOCK_IDS)
def test_parts_of_blocks_are_their_bytes_in_order(ids: list[int]) -> None:
    buffers = iovecs.over_parts(POOL, np.array(ids, np.int64), SCATTERED)
    assert b"".join(buffers.views()) == POOL[ids][:, [1, 3, 4]].tobytes()


@given(BLOCK_IDS, st.data())
def test_what_is_left_after_some_bytes_is_the_rest(ids: list[int], data: st.DataObject) -> None:
    buffers = iovecs.over_parts(POOL, np.array(ids, np.int64), SCATTERED)
    moved = data.draw(st.integers(0, 3 * len(ids)))
    left = iovecs.Buffers(iovecs.without_first(buffers.iovecs, moved), buffers.owners)
    assert b"".join(left.views()) == b"".join(buffers.views())[moved:]


def test_stretches_can_be_taken_out() -> None:
    buffers = iovecs.over_parts(POOL, np.array([4, 2, 9]), SCATTERED)
    assert b"".join(buffers[2:4].views()) == POOL[2, [1, 3, 4]].tobytes()


def test_two_buffers_follow_each_other() -> None:
    both = iovecs.over(b"head") + iovecs.over_parts(POOL, np.array([1]), WHOLE)
    assert b"".join(both.views()) == b"head" + POOL[1].tobytes()


@pytest.mark.parametrize(
    ("ids", "runs"),
    [([31], WHOLE), ([-1], WHOLE), ([0], np.array([[0, 7]])), ([0], np.array([[-1, 2]]))],
)
def test_nothing_outside_the_pool_can_be_named(ids: list[int], runs: np.ndarray) -> None:
    with pytest.raises(ValueError, match="outside"):
        iovecs.over_parts(POOL, np.array(ids), runs)


def test_a_pool_with_gaps_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        iovecs.over_parts(POOL[:, :3], np.array([0]), np.array([[0, 3]]))
