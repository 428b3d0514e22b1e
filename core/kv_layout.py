"""How one KV block lies in memory. Two sides hand blocks over only if their layouts are equal.

A block is contiguous over everything that a rank holds: [layer][k/v][head][token][dim],
so with equal sharding one block is one copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROTOCOL_VERSION = 2


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape of one block: ``block_size`` tokens of K and V over ``num_layers`` layers."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """(layers, 2, KV heads, tokens, head_dim); index 0 of the second axis is K, 1 is V."""
        return (self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)

    @property
    def block_bytes(self) -> int:
        layers, two, heads, tokens, dim = self.block_shape
        return layers * two * heads * tokens * dim * DTYPE_BYTES[self.dtype]

    @property
    def layout_hash(self) -> int:
        """64-bit fingerprint, compared at the handshake of two workers."""
        text = f"v{PROTOCOL_VERSION}:{self.block_shape}:{self.dtype}"
        return xxhash.xxh3_64_intdigest(text.encode())

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
