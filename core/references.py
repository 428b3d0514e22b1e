"""An invariant over owners and pool: every reference on a block is held by somebody we know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.block_pool import BlockIds, BlockPool
from core.errors import InternalError


def check_references(pool: BlockPool, held: Sequence[BlockIds]) -> None:
    """Raises `InternalError` unless the pool counts exactly the references in ``held``."""
    expected = np.zeros(pool.num_blocks, dtype=np.int32)
    for block_ids in held:
        np.add.at(expected, block_ids, 1)
    wrong = np.flatnonzero(expected != pool.references)
    if len(wrong):
        block = int(wrong[0])
        raise InternalError(
            f"{len(wrong)} blocks leak or are overused; block {block}: {pool.references[block]} "
            f"references, {expected[block]} known holders",
            reason="INVARIANT",
        )
