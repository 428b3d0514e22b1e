"""The parts of a shared pool never overlap and start on pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.kv_pool_layout import PAGE_BYTES, PoolLayout


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_parts_follow_each_other_on_pages_of_their_own(num_blocks: int, block_bytes: int) -> None:
    layout = PoolLayout(num_blocks, block_bytes)
    offsets = [
        layout.blocks_offset,
        layout.generations_offset,
        layout.nonce_offset,
        layout.probe_offset,
    ]
    ends = [*offsets[1:], layout.total_bytes]
    sizes = [num_blocks * block_bytes, num_blocks * 8, 8, block_bytes]
    for offset, end, size in zip(offsets, ends, sizes, strict=True):
        assert offset % PAGE_BYTES == 0
        assert offset + size <= end < offset + size + PAGE_BYTES
