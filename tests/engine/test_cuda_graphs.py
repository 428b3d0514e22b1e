"""Decode steps through static buffers, with a stand-in for the graphs of a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decode_parts import BLOCK_SIZE, arrays_of, part
from hypothesis import given
from hypothesis import strategies as st
from replaying_recorder import ReplayingRecorder

from engine.batch import Batch, to_device
from engine.cuda_graphs import DecodeGraphs
from engine.graph_buckets import DecodeBuckets, bucket_sizes
from engine.upload import Upload
from engine.vocabulary import Logits

WIDTH, BLOCKS, VOCAB = 6, 600, 3
CPU = torch.device("cpu")


def forward(batch: Batch, pool: torch.Tensor) -> Logits:
    """Writes a cell for each token as a model does, and gives numbers that tell all inputs."""
    sequences = batch.sequences
    written = batch.slots >= 0
    cells = pool.view(-1, pool.shape[-1])
    cells.index_put_(
        (torch.where(written, batch.slots, 0),),
        torch.where(written, batch.token_ids + 1, 0)[:, None].to(pool.dtype),
        accumulate=True,
    )
    width = sequences.block_tables.shape[1]
    used = torch.arange(width) * BLOCK_SIZE < sequences.lengths[:, None]
    tables = (sequences.block_tables * used * (1 + torch.arange(width))).sum(dim=1)
    rows = batch.sampled_rows
    told = torch.stack((batch.positions[rows], sequences.lengths[rows], tables[rows]), dim=1)
    return Logits(told.float())


def new_pool() -> torch.Tensor:
    return torch.zeros(BLOCKS, 1, 2, 1, BLOCK_SIZE, 2)


def new_graphs(pool: torch.Tensor, most: int, recorder: ReplayingRecorder) -> DecodeGraphs:
    return DecodeGraphs(forward, pool, VOCAB, DecodeBuckets(bucket_sizes(most), WIDTH), recorder)


steps = st.lists(
    st.lists(st.integers(0, WIDTH * BLOCK_SIZE - 1), min_size=1, max_size=11),
    min_size=1,
    max_size=4,
)


@given(steps)
def test_replays_compute_what_eager_steps_do(steps: list[list[int]]) -> None:
    pools, recorder = (new_pool(), new_pool()), ReplayingRecorder()
    graphs = new_graphs(pools[0], 11, recorder)
    places: set[int] = set()
    for starts in steps:
        arrays = arrays_of(*(part(i, start) for i, start in enumerate(starts)))
        rows = graphs.buckets.bucket_for(arrays)
        assert rows is not None
        expected = forward(to_device(arrays, Upload(CPU)), pools[1]).values
        logits = graphs.run(arrays, rows).values
        places.add(logits.data_ptr())
        assert torch.equal(logits, expected)
        assert torch.equal(*pools)
    assert recorder.replays == len(steps)
    # A real replay writes only where the capture did.
    assert len(places) == 1


def test_capturing_leaves_the_pool_as_it_is() -> None:
    pool = new_pool()
    new_graphs(pool, 8, ReplayingRecorder())
    assert not pool.any()


def test_each_bucket_is_captured_once_the_largest_first() -> None:
    seen: list[int] = []

    def watched(batch: Batch, pool: torch.Tensor) -> Logits:
        seen.append(len(batch.token_ids))
        return forward(batch, pool)

    graphs = DecodeGraphs(
        watched, new_pool(), VOCAB, DecodeBuckets(bucket_sizes(20), WIDTH), ReplayingRecorder()
    )
    # To warm up, and to capture.
    assert seen == [size for size in (20, 16, 8, 4, 2, 1) for _ in range(2)]
    seen.clear()
    graphs.run(arrays_of(part(0, 3)), 1)
    assert seen == [1]


def test_a_step_that_reads_memory_of_its_own_is_found() -> None:
    """The stand-in can fail: a forward that makes its host's arrays part of a graph is no good."""
    recorder, fresh = ReplayingRecorder(), [torch.zeros(1)]

    def careless(batch: Batch, pool: torch.Tensor) -> Logits:
        return Logits(forward(batch, pool).values + fresh[-1])

    graphs = DecodeGraphs(
        careless, new_pool(), VOCAB, DecodeBuckets(bucket_sizes(1), WIDTH), recorder
    )
    fresh.append(torch.zeros(1))
    with pytest.raises(AssertionError, match="other memory"):
        graphs.run(arrays_of(part(0, 3)), 1)


def test_tables_of_an_earlier_longer_step_are_not_seen() -> None:
    graphs = new_graphs(new_pool(), 2, ReplayingRecorder())
    graphs.run(arrays_of(part(7, WIDTH * BLOCK_SIZE - 1)), 1)
    arrays = arrays_of(part(1, 3))
    assert np.array_equal(graphs.run(arrays, 1).values.numpy(), [[3, 4, 50]])
