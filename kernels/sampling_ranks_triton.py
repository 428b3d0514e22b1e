"""A token's place in the order (-logit, id) as one 64-bit number, its rank, for Triton kernels.

The logit's bits made to compare as integers, above the id's complement: the larger the earlier.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Ranks below that of -inf and above that of +inf; the bits of the ids.
BELOW = tl.constexpr(-0x7FFFFFFF00000000)
NOT_FINITE = tl.constexpr(0x7FFFFFFF00000000)
IDS = tl.constexpr(0xFFFFFFFF)


@triton.jit
def rank_of(x, ids):
    x = tl.where(x == 0.0, 0.0, x)  # -0 is 0
    bits = x.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (~ids.to(tl.int64) & IDS)


@triton.jit
def logit_of(rank):
    ordered = (rank >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def token_of(rank):
    return ~rank & IDS


@triton.jit
def middle_of(low, high):
    """Between two ranks without overflow."""
    return (low >> 1) + (high >> 1) + (low & high & 1)
