"""Any split to any split: every byte of D's ranks comes from the right byte of P's, once."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidField
from core.kv_layout import KVLayout
from core.shards import ParallelShape, Region, check_kv_split, kv_shards, shard_layout
from core.transfer_plan import edges_from, edges_to, make_plan, region_runs

SIZES = range(1, 9)
SHAPES = [ParallelShape(tensor, pipeline) for tensor in SIZES for pipeline in SIZES]


def layout_of(num_kv_heads: int, num_layers: int = 8) -> KVLayout:
    return KVLayout(num_layers, num_kv_heads, head_dim=2, block_size=2, dtype="bfloat16")


def splits(layout: KVLayout, shape: ParallelShape) -> bool:
    try:
        kv_shards(layout, shape)
    except InvalidField:
        return False
    return True


def block_of(layout: KVLayout) -> np.ndarray:
    """A block in which every element differs."""
    count = layout.block_bytes // 2
    return np.arange(count, dtype=np.uint16).reshape(layout.block_shape)


def part(block: np.ndarray, region: Region) -> np.ndarray:
    return block[
        region.layers.start : region.layers.stop, :, region.heads.start : region.heads.stop
    ]


@cache
def places_of(layout: KVLayout, region: Region) -> np.ndarray:
    """Where each byte of a region lies, in the order in which a transport moves them."""
    runs = region_runs(layout, region).tolist()
    return np.concatenate([np.arange(first, first + length) for first, length in runs])


@cache
def shards_of(layout: KVLayout, shape: ParallelShape) -> list[np.ndarray]:
    """The part of the block that each rank holds, as bytes."""
    parts = [part(block_of(layout), shard) for shard in kv_shards(layout, shape)]
    return [np.ascontiguousarray(one).view(np.uint8).reshape(-1) for one in parts]


def check_every_shard_arrives(
    layout: KVLayout, source: ParallelShape, destination: ParallelShape
) -> None:
    sent, expected = shards_of(layout, source), shards_of(layout, destination)
    landed = [np.full_like(wanted, 255) for wanted in expected]
    for edge in make_plan(layout, source, destination):
        taken = sent[edge.source][places_of(edge.source_layout, edge.source_region)]
        places = places_of(edge.destination_layout, edge.destination_region)
        landed[edge.destination][places] = taken
    for arrived, wanted in zip(landed, expected, strict=True):
        assert arrived.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("num_kv_heads", [3, pytest.param(4, marks=pytest.mark.thorough)])
def test_every_shard_arrives_whole(num_kv_heads: int) -> None:
    """All pairs: heads that are split, whole, and held several times, on both sides."""
    layout = layout_of(num_kv_heads)
    shapes = [shape for shape in SHAPES if splits(layout, shape)]
    for source, destination in product(shapes, shapes):
        check_every_shard_arrives(layout, source, destination)


@given(st.sampled_from([1, 2, 6, 8]), st.data())
def test_every_shard_arrives_whole_with_other_heads(num_kv_heads: int, data: st.DataObject) -> None:
    layout = layout_of(num_kv_heads)
    shapes = st.sampled_from([shape for shape in SHAPES if splits(layout, shape)])
    check_every_shard_arrives(layout, data.draw(shapes), data.draw(shapes))


@pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 4, 8])
def test_a_shape_that_does_not_split_has_no_plan(num_kv_heads: int) -> None:
    layout = layout_of(num_kv_heads)
    for shape in SHAPES:
        if not splits(layout, shape):
            with pytest.raises(InvalidField, match="can be split into"):
                make_plan(layout, shape, ParallelShape())
            with pytest.raises(InvalidField, match="can be split into"):
                make_plan(layout, ParallelShape(), shape)


def test_an_edge_moves_the_bytes_of_its_regions() -> None:
    for edge in make_plan(layout_of(4), ParallelShape(2, 3), ParallelShape(4, 2)):
        there = region_runs(edge.source_layout, edge.source_region)
        here = region_runs(edge.destination_layout, edge.destination_region)
        assert np.array_equal(edge.source_runs, there)
        assert np.array_equal(edge.destination_runs, here)
        assert there[:, 1].sum() == here[:, 1].sum() == edge.block_bytes


@given(
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.sampled_from(SHAPES),
    st.sampled_from(SHAPES),
)
def test_nothing_is_sent_twice(
    num_kv_heads: int, source: ParallelShape, destination: ParallelShape
) -> None:
    layout = layout_of(num_kv_heads)
    if not (splits(layout, source) and splits(layout, destination)):
        return
    plan = make_plan(layout, source, destination)
    for rank, shard in enumerate(kv_shards(layout, destination)):
        needed = shard_layout(layout, shard).block_bytes
        assert sum(plan[place].block_bytes for place in edges_to(plan, rank)) == needed
    assert sorted(p for i in range(source.num_ranks) for p in edges_from(plan, i)) == list(
        range(len(plan))
    )
    assert len({(edge.source, edge.destination) for edge in plan}) == len(plan)


def test_equal_splits_copy_whole_blocks_between_equal_ranks() -> None:
    layout, shape = layout_of(4), ParallelShape(2, 3)
    plan = make_plan(layout, shape, shape)
    assert [(edge.source, edge.destination) for edge in plan] == [(i, i) for i in range(6)]
    assert all(len(edge.source_runs) == len(edge.destination_runs) == 1 for edge in plan)


def test_heads_that_p_holds_several_times_come_from_different_holders() -> None:
    plan = make_plan(layout_of(1), ParallelShape(4, 1), ParallelShape(4, 1))
    assert [edge.source for edge in plan] == [0, 1, 2, 3]


def test_a_run_is_as_long_as_possible() -> None:
    """All heads of some layers are one run; some heads are one run for each layer's K and V."""
    to_stages = make_plan(layout_of(4), ParallelShape(), ParallelShape(1, 2))
    assert [len(edge.source_runs) for edge in to_stages] == [1, 1]
    to_heads = make_plan(layout_of(4), ParallelShape(), ParallelShape(2, 1))
    assert [len(edge.source_runs) for edge in to_heads] == [16, 16]
    assert [len(edge.destination_runs) for edge in to_heads] == [1, 1]


@pytest.mark.parametrize(
    ("shape", "field", "valid"),
    [
        (ParallelShape(2, 1), "pools.decode.tensor_parallel_size", "1, 3, 9"),
        (ParallelShape(6, 1), "pools.decode.tensor_parallel_size", "1, 3, 9"),
        (ParallelShape(1, 31), "pools.decode.pipeline_parallel_size", "1 to 30"),
    ],
)
def test_a_shape_that_does_not_split_names_those_that_do(
    shape: ParallelShape, field: str, valid: str
) -> None:
    with pytest.raises(InvalidField, match=valid) as refused:
        check_kv_split(shape, num_layers=30, num_kv_heads=3, num_heads=9, where="pools.decode.")
    assert refused.value.metadata["field"] == field
