"""Which steps run as graphs, and what padding does to a batch."""

from __future__ import annotations

import numpy as np
import pytest
from decode_parts import BLOCK_SIZE, arrays_of, part
from hypothesis import given
from hypothesis import strategies as st

from core.shards import ONE_RANK, ParallelShape
from core.step import Slice
from engine.graph_buckets import (
    DecodeBuckets,
    bucket_sizes,
    decode_buckets,
    has_graphs,
    padded,
    padding,
)


def test_sizes_are_those_of_small_batches_then_every_eighth_and_the_largest() -> None:
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(4) == (1, 2, 4)
    assert bucket_sizes(8) == (1, 2, 4, 8)
    assert bucket_sizes(35) == (1, 2, 4, 8, 16, 24, 32, 35)


@given(st.integers(1, 300), st.data())
def test_the_smallest_bucket_that_holds_a_batch_is_taken(most: int, data: st.DataObject) -> None:
    buckets = DecodeBuckets(bucket_sizes(most), table_width=8)
    rows = data.draw(st.integers(1, most))
    chosen = buckets.bucket_for(arrays_of(*(part(i, 3) for i in range(rows))))
    assert chosen is not None
    assert chosen == min(size for size in buckets.sizes if size >= rows)
    assert chosen - rows < 8
    assert chosen < 2 * rows


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([part(0, 3), part(1, 0, count=5)], id="a prompt beside a decode"),
        pytest.param([part(0, 3), part(1, 8, samples=False)], id="a chunk of one token"),
        pytest.param([part(i, 3) for i in range(9)], id="more sequences than any bucket holds"),
        pytest.param([part(0, 3 * BLOCK_SIZE)], id="a context of more blocks than the tables hold"),
    ],
)
def test_other_steps_run_without_a_graph(parts: list[Slice]) -> None:
    assert DecodeBuckets(bucket_sizes(8), table_width=3).bucket_for(arrays_of(*parts)) is None


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9), st.integers(0, 8))
def test_padding_writes_and_reads_nothing_and_leaves_the_batch_as_it_is(
    starts: list[int], more: int
) -> None:
    arrays = arrays_of(*(part(i, start) for i, start in enumerate(starts)))
    rows = len(starts)
    inputs = padded(arrays, rows + more)
    assert inputs.rows == rows + more
    for name in ("token_ids", "positions", "slots", "lengths", "block_tables"):
        own, made = getattr(arrays, name), getattr(inputs, name)
        assert np.array_equal(made[:rows], own)
        assert len(made) == rows + more
        assert made.dtype == own.dtype
    assert (inputs.slots[rows:] == -1).all()
    assert (inputs.lengths[rows:] == 0).all()
    # Looked up in the embedding, so it must be a token.
    assert (inputs.token_ids[rows:] == 0).all()


def test_a_graph_is_captured_with_nothing_but_padding() -> None:
    inputs, empty = padding(5, 3), arrays_of(part(0, 8))
    made = padded(empty, 6)
    for mine, other in zip(inputs.arrays, made.arrays, strict=True):
        assert mine.dtype == other.dtype
        assert np.array_equal(mine, other[1:])


def test_tables_are_as_wide_as_the_model_and_the_pool_allow() -> None:
    assert decode_buckets(2, 33, 100, 16).table_width == 3
    assert decode_buckets(2, 33, 2, 16).table_width == 2


def test_graphs_are_for_gpus_and_single_ranks_that_decode() -> None:
    assert has_graphs("cuda", ONE_RANK, 8)
    assert has_graphs("cuda:1", ONE_RANK, 8)
    assert not has_graphs("cpu", ONE_RANK, 8)
    assert not has_graphs("cuda", ONE_RANK, 0)
    assert not has_graphs("cuda", ParallelShape(tensor=2), 8)
    assert not has_graphs("cuda", ParallelShape(pipeline=2), 8)
