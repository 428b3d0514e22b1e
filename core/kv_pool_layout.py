"""Where the parts of a shared KV pool lie in its memory, so that another process finds them.

[blocks | generations uint64 [num_blocks] | nonce uint64 | probe, one block], each part on a page
of its own. The probe never changes: whoever maps the memory can copy it as he will copy blocks, and
knows from the nonce what must have come.
Does not cover: what lies inside a block (``core.kv_layout``), making or mapping the memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

PAGE_BYTES = 4096
_WORD_BYTES = 8


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """Offsets and sizes in bytes from the start of the memory."""

    num_blocks: int
    block_bytes: int

    @property
    def blocks_offset(self) -> int:
        return 0

    @property
    def generations_offset(self) -> int:
        return _round_up(self.blocks_offset + self.num_blocks * self.block_bytes)

    @property
    def nonce_offset(self) -> int:
        return _round_up(self.generations_offset + self.num_blocks * _WORD_BYTES)

    @property
    def probe_offset(self) -> int:
        return _round_up(self.nonce_offset + _WORD_BYTES)

    @property
    def total_bytes(self) -> int:
        return _round_up(self.probe_offset + self.block_bytes)

    def probe(self, nonce: int) -> bytes:
        """What a pool with this nonce holds at ``probe_offset``: SHAKE-128 of the nonce."""
        return hashlib.shake_128(nonce.to_bytes(8, "little")).digest(self.block_bytes)


def _round_up(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES
