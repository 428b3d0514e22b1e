"""The Triton kernel of ``kernels.checksum_blocks``. Loaded on GPUs only, and by tests."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.block_region import WordRuns
from kernels.checksum_blocks import GOLDEN, MIX_1, MIX_2

_TILE = 1024


@triton.jit
def _mix(x, MIX_1: tl.constexpr, MIX_2: tl.constexpr):
    x = (x ^ (x >> 30)) * MIX_1
    x = (x ^ (x >> 27)) * MIX_2
    return x ^ (x >> 31)


@triton.jit
def checksum_kernel(
    pool,
    block_ids,
    sums,
    block_words,
    first,
    stride,
    length,
    row_words,
    GOLDEN: tl.constexpr,
    MIX_1: tl.constexpr,
    MIX_2: tl.constexpr,
    TILE: tl.constexpr,
):
    """Program i sums up the whole row i, tile by tile: one writer, so no atomics."""
    row = tl.program_id(0)
    start = pool + tl.load(block_ids + row) * block_words + first
    total = tl.zeros([TILE], dtype=tl.uint64)
    for at in range(0, row_words, TILE):
        word = at + tl.arange(0, TILE)
        run = word // length
        inside = word < row_words
        value = tl.load(start + run.to(tl.int64) * stride + (word - run * length), mask=inside)
        value = value.to(tl.uint32, bitcast=True).to(tl.uint64)
        term = _mix(value + (word + 1).to(tl.uint64) * GOLDEN, MIX_1, MIX_2)
        total += tl.where(inside, term, 0)
    whole = tl.sum(total, axis=0) + row_words.to(tl.uint64)
    tl.store(sums + row, _mix(whole, MIX_1, MIX_2).to(tl.int64, bitcast=True))


def launch_checksum(pool: torch.Tensor, block_ids: torch.Tensor, runs: WordRuns) -> torch.Tensor:
    """``pool``: flat int32; ``block_ids``: int64 [n]. Returns int64 [n] on the same device."""
    sums = torch.empty(len(block_ids), dtype=torch.int64, device=pool.device)
    if len(block_ids):
        checksum_kernel[(len(block_ids),)](
            pool,
            block_ids,
            sums,
            runs.block,
            runs.first,
            runs.stride,
            runs.length,
            runs.row,
            GOLDEN=GOLDEN,
            MIX_1=MIX_1,
            MIX_2=MIX_2,
            TILE=_TILE,
        )
    return sums
