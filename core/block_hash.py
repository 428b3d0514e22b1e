"""Chained block hashes: equal hashes mean equal tokens from the start of the prompt to here.

The chain is seeded by a salt made on the server, so that tenants and models never share blocks
by accident. Partial blocks have no hash.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from array import array
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import xxhash

from native import library

TokenArray = npt.NDArray[np.int32]
HashArray = npt.NDArray[np.uint64]

# A compiled call takes as long by itself as so many of xxhash's.
_FEW_BLOCKS = 16

# From the tokens of whole blocks (int32, contiguous), the size of a block and the seed.
_Chain = Callable[[TokenArray, int, int], HashArray]


def make_salt(secret: bytes, *parts: str) -> int:
    """64-bit seed of a chain from a server secret and e.g. (model hash, tenant)."""
    text = "\x00".join(parts).encode()
    return xxhash.xxh3_64_intdigest(secret + b"\x00" + text)


def block_hashes(
    tokens: TokenArray, block_size: int, salt: int, parent: int | None = None
) -> HashArray:
    """Hashes of all full blocks of ``tokens`` (int32, contiguous), chained after ``parent``."""
    count = len(tokens) // block_size
    whole = np.ascontiguousarray(tokens[: count * block_size], dtype=np.int32)
    chain = _chain_by_calls if count < _FEW_BLOCKS else _long_chain()
    return chain(whole, block_size, salt if parent is None else parent)


def are_hashes_compiled() -> bool:
    """Whether a long prompt takes one call, and not one for each block."""
    return _long_chain() is not _chain_by_calls


@functools.cache
def _long_chain() -> _Chain:
    """What is fastest here; the hashes are the same."""
    return _compiled_chain() or _chain_by_calls


def _chain_by_calls(whole: TokenArray, block_size: int, seed: int) -> HashArray:
    # As bytes objects, all at once: slicing takes as long as hashing.
    blocks = whole.view(f"V{4 * block_size}").tolist()
    hashed, previous = xxhash.xxh3_64_intdigest, seed
    chain = array("Q", [previous := hashed(block, previous) for block in blocks])
    return np.frombuffer(chain, dtype=np.uint64)


def _compiled_chain() -> _Chain | None:
    """Has the compiled loop call the same function of xxhash's own library."""
    found = library.choice().brief
    function = _xxh3_64()
    if found is None or function is None:
        return None
    hash_chain = found.crossdock_hash_chain

    def chain(whole: TokenArray, block_size: int, seed: int) -> HashArray:
        hashes: HashArray = np.empty(len(whole) // block_size, dtype=np.uint64)
        # To ask an array for its address takes longer than to hash a prompt.
        told = ctypes.addressof(ctypes.c_char.from_buffer(hashes.data))
        hash_chain(function, whole.tobytes(), 4 * block_size, len(hashes), seed, told)
        return hashes

    return chain


def _xxh3_64() -> int | None:
    """The address of XXH3_64bits_withSeed, where Python's package shows it."""
    try:
        loaded = ctypes.CDLL(importlib.import_module("xxhash._xxhash").__file__)
        return ctypes.cast(loaded.XXH3_64bits_withSeed, ctypes.c_void_p).value
    except (ImportError, OSError, AttributeError):
        return None
