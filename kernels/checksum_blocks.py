"""A 64-bit checksum of a region of blocks, computed where the blocks are.

For the 32-bit words w₀ … wₙ₋₁ of a row (little-endian, in the order of ``kernels.pack_blocks``;
bytes missing from the last word are 0) the checksum is, modulo 2⁶⁴,

    mix(n + Σᵢ mix(wᵢ + (i + 1) · 0x9E3779B97F4A7C15))

where mix is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014; David Stafford's variant 13):
each is a bijection of 64 bits. A sum can be taken in any order, so by thousands of threads; the
index in each term makes it depend on the order of the words, and n on their number. It finds every
change of a single word, and any other change but for chance (about 2⁻⁶⁴). It is no defence against
one who forges blocks. xxh3, which the transports between hosts use, must be read in order.
Does not cover: comparing it with what P announced (``kv_transfer``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from kernels.block_region import BlockRegion, as_words, check_region, widest_word, word_runs
from kernels.pack_blocks import pack_blocks

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def checksum_blocks(
    pool: torch.Tensor, block_ids: torch.Tensor, region: BlockRegion
) -> torch.Tensor:
    """int64 [n] on the pool's device: the bits of the checksum of each block's region.

    Arguments as in `pack_blocks`. On a GPU it only enqueues work on torch's current stream.
    """
    check_region(pool, region)
    if pool.device.type != "cpu":
        return _launch(pool, block_ids, region)
    rows = torch.empty(len(block_ids), region.row_bytes(pool), dtype=torch.uint8)
    pack_blocks(pool, block_ids, region, rows)
    return torch.from_numpy(checksum_rows(rows.numpy()).view(np.int64))


def checksum_rows(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """uint64 [n]: the checksum of each row of uint8 [n, row bytes]."""
    words = _padded(rows).view("<u4").astype(np.uint64)
    keys = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    terms = _mix(words + keys)
    return _mix(terms.sum(axis=1, dtype=np.uint64) + np.uint64(words.shape[1]))


def checksum_reference(row: bytes) -> int:
    """The formula above for one row, written out."""
    padded = row + bytes(-len(row) % 4)
    words = [int.from_bytes(padded[at : at + 4], "little") for at in range(0, len(padded), 4)]
    total = sum(_mix_one(word + (i + 1) * GOLDEN) for i, word in enumerate(words))
    return _mix_one(total + len(words))


def _mix_one(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * MIX_2) & _MASK
    return x ^ (x >> 31)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_2)
    return x ^ (x >> np.uint64(31))


def _padded(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    missing = -rows.shape[1] % 4
    return np.pad(rows, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(rows)


def _launch(pool: torch.Tensor, block_ids: torch.Tensor, region: BlockRegion) -> torch.Tensor:
    # Here, so that a machine without a GPU never loads Triton.
    from kernels.checksum_blocks_triton import launch_checksum

    if widest_word(pool) < 4:
        raise ValueError("on a GPU one head's part of a block must be a multiple of 4 bytes")
    return launch_checksum(as_words(pool, 4), block_ids, word_runs(pool, region, 4))
