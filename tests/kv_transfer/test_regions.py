"""Parts of blocks: their bytes, their copies between two splits, their checksums."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from core.kv_layout import KVLayout
from core.shards import ParallelShape, Region, kv_shards, shard_layout
from core.transfer_plan import make_plan, region_runs
from kv_transfer.regions import PartCopier, checksum_part, checksum_parts, part_view

MODEL = KVLayout(num_layers=6, num_kv_heads=4, head_dim=2, block_size=3, dtype="bfloat16")
NUM_BLOCKS = 5


def split(model: np.ndarray, shape: ParallelShape) -> list[np.ndarray]:
    """The pool of each rank, [num_blocks, block_bytes], cut out of blocks of the whole model."""
    cut = model.reshape(NUM_BLOCKS, *MODEL.block_shape[:4], -1)
    pools = []
    for shard in kv_shards(MODEL, shape):
        mine = cut[:, shard.layers.start : shard.layers.stop]
        pools.append(mine[:, :, :, shard.heads.start : shard.heads.stop].reshape(NUM_BLOCKS, -1))
    return [np.ascontiguousarray(pool) for pool in pools]


SHAPES = st.builds(ParallelShape, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3, 5]))


@given(SHAPES, SHAPES, st.permutations(range(NUM_BLOCKS)))
def test_any_split_becomes_any_other_bit_for_bit(
    ours: ParallelShape, theirs: ParallelShape, order: list[int]
) -> None:
    generator = np.random.default_rng(0)
    model = generator.integers(0, 256, (NUM_BLOCKS, MODEL.block_bytes), dtype=np.uint8)
    sources, wanted = split(model, ours), split(model[order], theirs)
    landed = [np.zeros_like(pool) for pool in wanted]
    for edge in make_plan(MODEL, ours, theirs):
        copier = PartCopier(sources[edge.source], landed[edge.destination], edge)
        announced = checksum_parts(sources[edge.source], order, [edge.source_runs])
        for place, block in enumerate(order):
            copier.copy(block, place)
            assert [copier.checksum(place)] == announced[place]
    assert all((a == b).all() for a, b in zip(landed, wanted, strict=True))


@st.composite
def regions(draw: st.DrawFn) -> Region:
    def part_of(size: int) -> range:
        start = draw(st.integers(0, size - 1))
        return range(start, draw(st.integers(start + 1, size)))

    return Region(part_of(MODEL.num_layers), part_of(MODEL.num_kv_heads))


@given(regions())
def test_a_checksum_is_that_of_the_bytes_in_order(region: Region) -> None:
    generator = np.random.default_rng(1)
    block = generator.integers(0, 256, MODEL.block_bytes, dtype=np.uint8)
    runs = region_runs(MODEL, region)
    alone = b"".join(block[start : start + length].tobytes() for start, length in runs)
    assert len(alone) == shard_layout(MODEL, region).block_bytes
    assert checksum_part(block, runs) == xxhash.xxh3_64_intdigest(alone)
    assert part_view(block.reshape(1, -1), runs).tobytes() == alone


@given(regions(), st.integers(0, MODEL.block_bytes - 1))
def test_a_checksum_sees_a_flipped_bit_in_its_part_and_no_other(
    region: Region, damaged: int
) -> None:
    block = np.zeros(MODEL.block_bytes, np.uint8)
    runs = region_runs(MODEL, region)
    before = checksum_part(block, runs)
    block[damaged] ^= 16
    inside = any(start <= damaged < start + length for start, length in runs)
    assert (checksum_part(block, runs) != before) == inside


@pytest.mark.parametrize(
    ("runs", "named"),
    [
        ([[0, 9]], "leave the block"),
        ([[-1, 2]], "leave the block"),
        ([[0, 2], [4, 2], [7, 2]], "equally far"),
        ([[0, 2], [4, 3]], "equally long"),
    ],
)
def test_runs_that_are_no_part_of_a_block_are_refused(runs: list[list[int]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        part_view(np.zeros((2, 8), np.uint8), np.array(runs))


def test_a_part_of_memory_that_is_read_only_is_read_only() -> None:
    blocks = np.zeros((2, 8), np.uint8)
    blocks.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        part_view(blocks, np.array([[0, 4]]))[0] = 1
