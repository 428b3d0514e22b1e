"""Gathers a region of given blocks of a paged pool into staging memory, and scatters it back.

Staging is [n, row bytes] as uint8, one row a block in the order of the ids: the region's bytes in
the order in which they lie in a block. On a GPU a Triton kernel does it, on a CPU one indexed copy.
Does not cover: events and streams (the kernel runs on torch's current one).
"""

from __future__ import annotations

import torch

from kernels.block_region import BlockRegion, as_words, check_region, widest_word, word_runs


def pack_blocks(
    pool: torch.Tensor, block_ids: torch.Tensor, region: BlockRegion, staging: torch.Tensor
) -> None:
    """``staging[i] = region of pool[block_ids[i]]``.

    ``pool`` [blocks, layers, 2, heads, tokens, dim] of any dtype, contiguous; ``block_ids`` int64
    [n] on the pool's device, within it; ``staging`` uint8 [n, row bytes], contiguous. Raises
    ``ValueError`` if a shape does not fit.
    """
    _check(pool, block_ids, region, staging)
    if pool.device.type == "cpu":
        _rows(staging, pool, region).copy_(region.of(_bytes(pool))[block_ids])
    elif len(block_ids):
        _launch(pool, block_ids, region, staging, scatter=False)


def unpack_blocks(
    staging: torch.Tensor, pool: torch.Tensor, block_ids: torch.Tensor, region: BlockRegion
) -> None:
    """``region of pool[block_ids[i]] = staging[i]``; no id may come twice. As `pack_blocks`."""
    _check(pool, block_ids, region, staging)
    if pool.device.type == "cpu":
        region.of(_bytes(pool))[block_ids] = _rows(staging, pool, region)
    elif len(block_ids):
        _launch(pool, block_ids, region, staging, scatter=True)


def pack_reference(
    pool: torch.Tensor, block_ids: torch.Tensor, region: BlockRegion
) -> torch.Tensor:
    """The same, written out: uint8 [n, row bytes]."""
    (first_layer, last_layer), (first_head, last_head) = region.layers, region.heads
    rows = [
        torch.cat(
            [
                pool[block, layer, side, head].contiguous().view(torch.uint8).reshape(-1)
                for layer in range(first_layer, last_layer)
                for side in (0, 1)
                for head in range(first_head, last_head)
            ]
        )
        for block in block_ids.tolist()
    ]
    return torch.stack(rows) if rows else torch.empty(0, region.row_bytes(pool), dtype=torch.uint8)


def _check(
    pool: torch.Tensor, block_ids: torch.Tensor, region: BlockRegion, staging: torch.Tensor
) -> None:
    check_region(pool, region)
    wanted = (len(block_ids), region.row_bytes(pool))
    if staging.shape != wanted or staging.dtype != torch.uint8 or not staging.is_contiguous():
        raise ValueError(f"staging is {tuple(staging.shape)} {staging.dtype}, must be {wanted}")


def _bytes(pool: torch.Tensor) -> torch.Tensor:
    """The pool with its last axis as bytes: torch can't index every 8-bit float."""
    return pool.view(torch.uint8)


def _rows(staging: torch.Tensor, pool: torch.Tensor, region: BlockRegion) -> torch.Tensor:
    return staging.view(len(staging), *region.of(_bytes(pool)).shape[1:])


def _launch(
    pool: torch.Tensor,
    block_ids: torch.Tensor,
    region: BlockRegion,
    staging: torch.Tensor,
    scatter: bool,
) -> None:
    # Here, so that a machine without a GPU never loads Triton.
    from kernels.pack_blocks_triton import launch_pack

    word = widest_word(pool)
    runs = word_runs(pool, region, word)
    launch_pack(as_words(pool, word), block_ids, runs, as_words(staging, word), scatter)
