"""One part of a block, a rectangle of layers × heads: its bytes, their copy, their checksum.

A part lies in a block as runs of equal length at equal distances (``core.transfer_plan``). Its
bytes in the order of the runs are the same on both sides of an edge, whatever else the two blocks
hold. Does not cover: which part goes where (``core.transfer_plan``), when (``core.lease``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from core.transfer_plan import EdgePlan, Runs

# uint8 [num_blocks, block_bytes]: a pool as bytes, contiguous.
PoolBytes = npt.NDArray[np.uint8]
BlockBytes = npt.NDArray[np.uint8]
# [num_blocks, runs]: one part of every block of a pool. An element is a whole run: numpy moves such
# elements two to three times as fast as it moves their bytes.
PartView = npt.NDArray[np.void]


def part_view(blocks: PoolBytes, runs: Runs) -> PartView:
    """The same part of each block, without a copy; writable if ``blocks`` is.

    Raises ``ValueError`` if the runs are not of one length and distance, or leave the block.
    """
    starts, lengths = runs[:, 0], runs[:, 1]
    step = int(starts[1] - starts[0]) if len(runs) > 1 else 0
    length = int(lengths[0])
    if (np.diff(starts) != step).any() or (lengths != length).any():
        raise ValueError("runs of a part must be equally long and equally far from each other")
    if starts[0] < 0 or starts[-1] + length > blocks.shape[1]:
        raise ValueError(f"runs leave the block of {blocks.shape[1]} bytes")
    return np.ndarray(
        (len(blocks), len(runs)),
        np.dtype((np.void, length)),
        buffer=blocks,
        offset=int(starts[0]),
        strides=(blocks.shape[1], step),
    )


def checksum_part(block: BlockBytes, runs: Runs) -> int:
    """xxh3-64 over the bytes of these runs of a block, uint8 [block_bytes], in their order.

    Runs as `part_view` takes them.
    """
    return digest(part_view(block.reshape(1, -1), runs)[0])


def checksum_parts(
    blocks: PoolBytes, block_ids: Sequence[int], parts: Sequence[Runs]
) -> list[list[int]]:
    """Checksums [block][part] of these blocks of a pool."""
    views = [part_view(blocks, runs) for runs in parts]
    return [[digest(view[block_id]) for view in views] for block_id in block_ids]


def digest(part: npt.NDArray[np.void]) -> int:
    """The checksum of one row of a `PartView`.

    Scattered runs are gathered first: hashing one by one costs more than that copy.
    """
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(part).view(np.uint8).data)


class PartCopier:
    """Copies the part of an edge out of blocks of P's rank into blocks of D's rank."""

    def __init__(self, source: PoolBytes, destination: PoolBytes, plan: EdgePlan) -> None:
        theirs, ours = plan.source_runs, plan.destination_runs
        # One side may hold in one stretch what is many runs on the other.
        count = max(len(theirs), len(ours))
        # While numpy copies bytes, other threads run; not so while it copies one large element.
        view = _one_stretch if count == 1 else part_view
        self._source = view(source, _split(theirs, count))
        self._destination = view(destination, _split(ours, count))
        self._landed = part_view(destination, ours)

    def copy(self, source_id: int, destination_id: int) -> None:
        self._destination[destination_id] = self._source[source_id]

    def checksum(self, destination_id: int) -> int:
        """Of what lies in D's block now; right after `copy` it is still in the cache."""
        return digest(self._landed[destination_id])


def _one_stretch(blocks: PoolBytes, runs: Runs) -> PoolBytes:
    """uint8 [num_blocks, run bytes]: a part that is one run."""
    ((start, size),) = runs.tolist()
    return blocks[:, start : start + size]


def _split(runs: Runs, count: int) -> Runs:
    """The same bytes in ``count`` runs, if they are in one."""
    if len(runs) == count:
        return runs
    ((start, size),) = runs.tolist()
    length = size // count
    starts = start + length * np.arange(count, dtype=np.int64)
    return np.stack([starts, np.full_like(starts, length)], axis=1)
