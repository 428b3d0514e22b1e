"""The simplest edge, between two workers that are not split, and the pieces that P announces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.handoff import Piece
from core.kv_layout import KVLayout
from core.shards import ONE_RANK
from core.transfer_plan import EdgePlan, make_plan
from kv_transfer.regions import checksum_parts
from kv_transfer.transport import EdgeTarget


def layout_of(block_bytes: int) -> KVLayout:
    """A model whose blocks have this size: a multiple of 8 bytes."""
    layout = KVLayout(1, 1, head_dim=block_bytes // 8, block_size=1, dtype="float32")
    assert layout.block_bytes == block_bytes
    return layout


def whole_blocks(block_bytes: int) -> EdgePlan:
    (plan,) = make_plan(layout_of(block_bytes), ONE_RANK, ONE_RANK)
    return plan


def whole_target(blocks: np.ndarray) -> EdgeTarget:
    return EdgeTarget(blocks, whole_blocks(blocks.shape[1]), place=0)


def announced(
    pool: np.ndarray, block_ids: Sequence[int], generations: Sequence[int]
) -> tuple[Piece, ...]:
    """What P says about these blocks of its pool."""
    parts = [whole_blocks(pool.shape[1]).source_runs]
    checksums = checksum_parts(pool, block_ids, parts)
    return tuple(
        Piece(*piece[:2], tuple(piece[2]))
        for piece in zip(block_ids, generations, checksums, strict=True)
    )
