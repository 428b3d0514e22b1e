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

SHM = "shm"
TCP = "tcp"
# All of them, the fastest first.
TRANSPORTS = (SHM, TCP)


@dataclass(frozen=True, slots=True)
class HostPool:
    """P's pool in host memory, as its transports need it.

    ``fd``: descriptor of its memory, laid out by ``core.kv_pool_layout``. ``nonce``: 64 random
    bits in that memory. ``blocks``: uint8 [num_blocks, block_bytes]. ``generations``: uint64
    [num_blocks], raised each time that a block is given to somebody else.
    """

    fd: int
    nonce: int
    blocks: PoolBytes
    generations: Generations


@dataclass(frozen=True, slots=True)
class CopyResult:
    """Prompt block indices that landed and were verified, and those that did not match."""

    good: tuple[int, ...]
    bad: tuple[int, ...]


class PieceSource(Protocol):
    """D's way to one prefill worker's blocks. Used by one thread at a time, but for `abort`."""

    @property
    def transport(self) -> str:
        """Name as shown in `status`."""

    def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        """Copies into D's own pool and verifies what landed. Blocks the calling thread.

        Writes only while it runs. Raises `Incompatible` once the way is lost for good.
        """

    def abort(self) -> None:
        """Makes a running copy end at once, and later ones copy nothing. From any thread."""

    def close(self) -> None:
        """Gives up the way; nothing is written into D's pool after it returns."""


def allowed_transports(setting: str) -> tuple[str, ...]:
    """What ``kv.transport`` allows, the fastest first: "auto" is all of them."""
    return TRANSPORTS if setting == "auto" else (setting,)


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
