"""Chained block hashes: equal hashes mean equal tokens from the start of the prompt to here.

The chain is seeded by a salt made on the server, so that tenants and models never share blocks
by accident (DESIGN 5.8). Partial blocks have no hash.
"""

from __future__ import annotations

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
    count = len(tokens) // block_size
    raw = np.ascontiguousarray(tokens[: count * block_size], dtype=np.int32).tobytes()
    step = block_size * 4
    previous = salt if parent is None else parent
    hashes: list[int] = []
    for start in range(0, count * step, step):
        previous = xxhash.xxh3_64_intdigest(raw[start : start + step], previous)
        hashes.append(previous)
    return np.array(hashes, dtype=np.uint64)
