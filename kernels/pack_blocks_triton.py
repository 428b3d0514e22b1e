"""The Triton kernel of ``kernels.pack_blocks``. Loaded on GPUs only, and by tests."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.block_region import WordRuns

# Words that one program moves: 8 KiB of 8-byte words.
_TILE = 1024


@triton.jit
def pack_kernel(
    pool,
    block_ids,
    staging,
    block_words,
    first,
    stride,
    length,
    row_words,
    SCATTER: tl.constexpr,
    TILE: tl.constexpr,
):
    """Program (t, i) moves words t × TILE … of row i. Offsets are 64-bit: pools exceed 2³¹."""
    row = tl.program_id(1).to(tl.int64)
    word = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = word < row_words
    block = tl.load(block_ids + row)
    run = word // length
    in_pool = pool + block * block_words + first + run.to(tl.int64) * stride + (word - run * length)
    in_staging = staging + row * row_words + word
    if SCATTER:
        tl.store(in_pool, tl.load(in_staging, mask=inside), mask=inside)
    else:
        tl.store(in_staging, tl.load(in_pool, mask=inside), mask=inside)


def launch_pack(
    pool: torch.Tensor,
    block_ids: torch.Tensor,
    runs: WordRuns,
    staging: torch.Tensor,
    scatter: bool,
) -> None:
    """``pool`` and ``staging`` as flat words of one size; ``block_ids`` int64 [n], n ≤ 65,535."""
    grid = (triton.cdiv(runs.row, _TILE), len(block_ids))
    pack_kernel[grid](
        pool,
        block_ids,
        staging,
        runs.block,
        runs.first,
        runs.stride,
        runs.length,
        runs.row,
        SCATTER=scatter,
        TILE=_TILE,
    )
