"""Which cached block goes first: the least recently used one that no cached block builds on.

A heap of (last use, block id) with lazy deletion. An entry may be out of date; the pool says
which are not (it knows references and children, this file does not).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

Entry = tuple[int, int]


class LeafQueue:
    """Candidates for eviction, oldest use first; equal uses by block id."""

    def __init__(self, is_current: Callable[[int, int], bool], limit: int) -> None:
        """``is_current(last_used, block_id)`` says if an entry still names an evictable leaf.

        Beyond ``limit`` entries the outdated ones are thrown out, so memory stays bounded.
        """
        self._is_current = is_current
        self._limit = limit
        self._heap: list[Entry] = []

    def __len__(self) -> int:
        """Number of entries, outdated ones included."""
        return len(self._heap)

    @property
    def oldest_use(self) -> int | None:
        """Of the entries, outdated ones included; None without any."""
        return self._heap[0][0] if self._heap else None

    def push(self, last_used: int, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            heapq.heappush(self._heap, (last_used, block_id))
        if len(self._heap) > self._limit:
            self._compact()

    def pop(self, leaf: Entry | None = None) -> int | None:
        """Take out the block to evict next, None if there is none. ``leaf`` is queued before."""
        if leaf is not None:
            # Mostly it is the oldest itself: the parent of what was evicted before it.
            entry = heapq.heappushpop(self._heap, leaf)
            if entry is leaf or self._is_current(*entry):
                return entry[1]
        while self._heap:
            last_used, block_id = heapq.heappop(self._heap)
            if self._is_current(last_used, block_id):
                return block_id
        return None

    def entries(self) -> frozenset[Entry]:
        """All entries (last use, block id), outdated ones included. For validation."""
        return frozenset(self._heap)

    def _compact(self) -> None:
        self._heap = [entry for entry in set(self._heap) if self._is_current(*entry)]
        heapq.heapify(self._heap)
