"""What a worker tells of its prefix cache: numbered changes, and a bounded log of the latest ones.

Pure. Covers: the nouns, and which changes can still be told again to a router that missed them.
Does not cover: what is cached (``core.block_pool``), what routers make of it
(``router.prefix_index.cache_view``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core.block_hash import HashArray

Starts = npt.NDArray[np.uint32]

# Stands for the block before the first one of a prompt.
NO_PARENT = 0

NO_HASHES: HashArray = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class StoredBlocks:
    """Chains of blocks, parents before children: ``hashes`` uint64 [n].

    ``starts`` (uint32 [chains]): the place of each chain's first block among them; ``parents``
    (uint64 [chains]): the hash of the block before it, or ``NO_PARENT``.
    """

    hashes: HashArray
    starts: Starts
    parents: HashArray

    @classmethod
    def of(cls, hashes: HashArray, parents: HashArray) -> StoredBlocks:
        """From the parent of each block (uint64 [n])."""
        begins = np.ones(len(hashes), dtype=np.bool_)
        begins[1:] = parents[1:] != hashes[:-1]
        return cls(hashes, np.flatnonzero(begins).astype(np.uint32), parents[begins])

    def __len__(self) -> int:
        return len(self.hashes)

    def chains(self) -> Iterator[tuple[int, list[int]]]:
        """(parent, hashes) of each."""
        hashes, starts = self.hashes.tolist(), self.starts.tolist()
        ends = [*starts, len(hashes)][1:]
        for parent, start, end in zip(self.parents.tolist(), starts, ends, strict=True):
            yield parent, hashes[start:end]


NOTHING_STORED = StoredBlocks.of(NO_HASHES, NO_HASHES)


@dataclass(frozen=True, slots=True, eq=False)
class CacheChange:
    """One change. No hash is both in ``stored`` and in ``removed`` (uint64).

    ``cleared``: what was known before is void, and ``stored`` is all there is.
    """

    sequence: int
    stored: StoredBlocks = NOTHING_STORED
    removed: HashArray = field(default_factory=lambda: NO_HASHES)
    cleared: bool = False

    def __len__(self) -> int:
        """Blocks that it names."""
        return len(self.stored) + len(self.removed)


class CacheLog:
    """The changes of one life of a worker; the latest ones are kept, ``most_blocks`` in all."""

    def __init__(self, most_blocks: int = 1 << 16, most_changes: int = 1 << 12) -> None:
        self._most_blocks = most_blocks
        self._most_changes = most_changes
        self._kept: deque[CacheChange] = deque()
        self._blocks = 0
        self.sequence = 0

    def add(self, stored: StoredBlocks, removed: HashArray) -> CacheChange:
        """Gives the change its number."""
        self.sequence += 1
        change = CacheChange(self.sequence, stored, removed)
        self._kept.append(change)
        self._blocks += len(change)
        while self._blocks > self._most_blocks or len(self._kept) > self._most_changes:
            self._blocks -= len(self._kept.popleft())
        return change

    def since(self, sequence: int) -> list[CacheChange] | None:
        """All changes after this one; None if some of them are not kept any more."""
        missing = self.sequence - sequence
        if not 0 <= missing <= len(self._kept):
            return None
        return list(self._kept)[len(self._kept) - missing :]
