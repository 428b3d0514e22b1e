"""Chained block hashes: equal hashes mean equal tokens from the start of the prompt to here.

The chain is seeded by a salt made on the server, so that tenants and models never share blocks
by accident (DESIGN 5.8). Partial blocks have no hash.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt
import xxhash

TokenArray = npt.NDArray[np.int32]
HashArray = npt.NDArray[np.uint64]


def make_salt(secret: bytes, *parts: str) -> int:
    """64-bit seed of a chain from a server secret and e.g. (model hash, tenant)."""
    text = "\x00".join(parts).encode()
    return xxhash.xxh3_64_intdigest(secret + b"\x00" + text)


def block_hashes(
    tokens: TokenArray, block_size: int, salt: int, parent: int | None = None
) -> HashArray:
    """Hashes of all full blocks of ``tokens`` (int32, contiguous), chained after ``parent``."""
    whole = tokens[: len(tokens) // block_size * block_size]
    # As bytes objects, all at once: slicing takes as long as hashing.
    blocks = np.ascontiguousarray(whole, dtype=np.int32).view(f"V{4 * block_size}").tolist()
    hashed, previous = xxhash.xxh3_64_intdigest, salt if parent is None else parent
    chain = array("Q", [previous := hashed(block, previous) for block in blocks])
    return np.frombuffer(chain, dtype=np.uint64)
