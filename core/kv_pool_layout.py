"""Where things lie in the memory of a KV pool, so that another process that maps it finds them.

[num_blocks × block_bytes | generations uint64 [num_blocks] | nonce uint64], each part at a page.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """Offsets in bytes from the start of the mapping."""

    num_blocks: int
    block_bytes: int

    @property
    def blocks_offset(self) -> int:
        return 0

    @property
    def generations_offset(self) -> int:
        return _page_aligned(self.num_blocks * self.block_bytes)

    @property
    def nonce_offset(self) -> int:
        return self.generations_offset + _page_aligned(self.num_blocks * 8)

    @property
    def total_bytes(self) -> int:
        return self.nonce_offset + PAGE_BYTES


def _page_aligned(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES
