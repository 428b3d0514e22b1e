"""What every KV transport offers to the handoff, whatever moves the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from core.handoff import Piece
from core.lease_events import (
    PieceCopy,
)

# uint8 [num_blocks, block_bytes]: a pool as bytes.
PoolBytes = npt.NDArray[np.uint8]
Generations = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class CopyResult:
    """Prompt block indices that landed and were verified, and those that did not match."""

    good: tuple[int, ...]
    bad: tuple[int, ...]


class PieceSource(Protocol):
    """D's way to one prefill worker's blocks. Used by one thread at a time."""

    @property
    def transport(self) -> str:
        """Name as shown in `status`."""

    def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        """Copies into D's own pool and verifies what landed. Blocks the calling thread."""

    def close(self) -> None:
        """Gives up the way; nothing is written into D's pool after it returns."""


def checksum(block: npt.NDArray[np.uint8]) -> int:
    """xxh3-64 over the bytes of one block."""
    return xxhash.xxh3_64_intdigest(block.data)


def describe_pieces(
    pool: PoolBytes, block_ids: Sequence[int], generations: Sequence[int]
) -> tuple[Piece, ...]:
    """What P announces about blocks of its pool that were finished at these generations."""
    return tuple(
        Piece(block_id, generation, checksum(pool[block_id]))
        for block_id, generation in zip(block_ids, generations, strict=True)
    )
