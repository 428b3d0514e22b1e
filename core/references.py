"""Invariants over owners and pool: every reference on a block is held by somebody we know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core.block_pool import BlockIds, BlockPool
from core.errors import InternalError


def check_references(pool: BlockPool, held: Sequence[BlockIds]) -> None:
    """Raises `InternalError` unless the pool counts exactly the references in ``held``."""
    expected = _held_counts(pool, held)
    wrong = np.flatnonzero(expected != pool.references)
    if len(wrong):
        block = int(wrong[0])
        raise InternalError(
            f"{len(wrong)} blocks leak or are overused; block {block}: {pool.references[block]} "
            f"references, {expected[block]} known holders",
            reason="INVARIANT",
        )


def count_orphans(pool: BlockPool, held: Sequence[BlockIds]) -> int:
    """Blocks with references that nobody in ``held`` has: they would never come back."""
    return int(np.count_nonzero(pool.references > _held_counts(pool, held)))


def _held_counts(pool: BlockPool, held: Sequence[BlockIds]) -> npt.NDArray[np.int64]:
    """int64 [num_blocks]"""
    ids = np.concatenate([np.empty(0, dtype=np.int32), *held])
    return np.bincount(ids, minlength=pool.num_blocks)
