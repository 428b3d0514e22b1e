"""Philox4x32-10 for many draws at once, as ``core.random`` defines it for one.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; key = seed, counter =
(position, sequence index, 0). native/sampling.cpp and kernels/sampling_triton.py do the
same per row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS = 10


def uniforms(
    seeds: npt.NDArray[np.int64],
    sequence_indices: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """float64 [D] in [0, 1), of 53 random bits each, for int64 [D] arrays of values >= 0."""
    position, seed = positions.astype(np.uint64), seeds.astype(np.uint64)
    sequence = sequence_indices.astype(np.uint64) & _MASK
    counter = (position & _MASK, position >> _HALF, sequence, np.zeros_like(seed))
    high, low = _first_two_words(counter, seed & _MASK, seed >> _HALF)
    bits = (high << np.uint64(21)) | (low >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53


def _first_two_words(
    counter: tuple[Words, Words, Words, Words], k0: Words, k1: Words
) -> tuple[Words, Words]:
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _MASK
        c2, c3 = (p0 >> _HALF) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1
