"""What every KV transport offers to the handoff, whatever moves the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from core.handoff import Piece
from core.lease_events import PieceCopy
from core.transfer_plan import EdgePlan
from kv_transfer.regions import PoolBytes as PoolBytes

Generations = npt.NDArray[np.uint64]

CUDA_IPC = "cuda_ipc"
NCCL = "nccl"
SHM = "shm"
TCP = "tcp"
# Between pools in host memory, and between pools on GPUs; the fastest first.
TRANSPORTS = (SHM, TCP)
DEVICE_TRANSPORTS = (CUDA_IPC, NCCL)


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


@dataclass(frozen=True, slots=True, eq=False)
class EdgeTarget:
    """D's end of one edge.

    ``blocks``: uint8 [num_blocks, destination block bytes], the pool of D's rank. ``place``: which
    of a piece's checksums is this edge's.
    """

    blocks: PoolBytes
    plan: EdgePlan
    place: int

    def matches(self, piece: Piece, checksum: int) -> bool:
        """Whether P announced this checksum for this edge's part."""
        return self.place < len(piece.checksums) and piece.checksums[self.place] == checksum


@dataclass(frozen=True, slots=True)
class CopyResult:
    """Prompt block indices that landed and were verified, and those that did not match."""

    good: tuple[int, ...]
    bad: tuple[int, ...]


class PieceSource(Protocol):
    """D's way to the blocks of one rank of P: one edge.

    Used by one thread at a time, but for `abort`.
    """

    @property
    def transport(self) -> str:
        """Name as shown in `status`."""

    def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        """Copies this edge's part of each piece into D's own pool and verifies what landed.

        Blocks the calling thread. Writes only while it runs. Raises `Incompatible` once the way is
        lost for good.
        """

    def abort(self) -> None:
        """Makes a running copy end at once, and later ones copy nothing. From any thread."""

    def close(self) -> None:
        """Gives up the way; nothing is written into D's pool after it returns."""


def allowed_transports(setting: str, on_device: bool = False) -> tuple[str, ...]:
    """What ``kv.transport`` allows, the fastest first: "auto" is all for the memory of the pool."""
    fitting = DEVICE_TRANSPORTS if on_device else TRANSPORTS
    return fitting if setting == "auto" else (setting,)
