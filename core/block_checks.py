"""Errors of who misuses blocks, and of books that don't add up.

Does not cover: what is checked (``core.block_pool``, ``core.prefix_cache``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.errors import InternalError


def all_of(mask: npt.NDArray[np.bool_]) -> bool:
    """The same as ``mask.all()``, which takes a microsecond longer."""
    return int(np.count_nonzero(mask)) == mask.size


def misuse(message: str, block_id: int) -> InternalError:
    return InternalError(message, reason="BLOCK_MISUSE", metadata={"block": str(block_id)})


def require(invariant: str, holds: bool | np.bool_) -> None:
    """Raises ``InternalError`` naming the invariant unless it ``holds``."""
    if not holds:
        raise InternalError(
            f"block pool: broken invariant: {invariant}",
            reason="INVARIANT_VIOLATION",
            metadata={"invariant": invariant},
        )


def check_names(action: str, block_ids: npt.NDArray[np.int32], num_blocks: int) -> None:
    """Raises ``InternalError`` unless these are blocks of the pool, each named once."""
    if len(block_ids) == 0:
        return
    ordered = block_ids.copy()
    ordered.sort()
    lowest, highest = ordered.item(0), ordered.item(-1)
    if lowest < 0 or highest >= num_blocks:
        bad = lowest if lowest < 0 else highest
        raise misuse(f"{action} of block {bad}: ids go from 0 to {num_blocks - 1}", bad)
    again = ordered[1:] == ordered[:-1]
    if np.count_nonzero(again):
        twice = int(ordered[int(again.argmax())])
        raise misuse(f"{action} names block {twice} twice in one call", twice)
