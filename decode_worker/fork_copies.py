"""Block copies that forked sequences wait for, and the blocks that must stay until they are made.

A fork shares the full blocks of its prompt for ever: nobody writes into those. It writes into the
last, partly filled block at once, so that one is copied with the fork's first step. Until then its
source is held: the sequence it belongs to may be gone by then.
Does not cover: when to fork (``decode_worker.sequence_table``), moving bytes (``engine.runner``).
"""

from __future__ import annotations

import numpy as np

from core.block_pool import BlockIds, BlockPool
from core.sequence import Sequence
from core.step import BlockCopy, StepPlan


class ForkCopies:
    """Copies to make, by fork, and those of the steps under way."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._waiting: dict[int, BlockCopy] = {}
        self._under_way: list[BlockCopy] = []

    def __bool__(self) -> bool:
        """Whether some fork waits for its copy."""
        return bool(self._waiting)

    @property
    def sources(self) -> BlockIds:
        """Blocks that are held as sources, with one entry for each reference."""
        copies = [*self._waiting.values(), *self._under_way]
        return np.array([copy.source for copy in copies], dtype=np.int32)

    def plan(self, fork: Sequence, copy: BlockCopy) -> None:
        """``fork`` needs this copy before its first step."""
        self._pool.acquire(np.array([copy.source], dtype=np.int32))
        self._waiting[fork.sequence_id] = copy

    def take(self, sequence: Sequence) -> list[BlockCopy]:
        """The copy to make in the step that computes ``sequence``; none if it waits for none."""
        copy = self._waiting.pop(sequence.sequence_id, None)
        if copy is None:
            return []
        self._under_way.append(copy)
        return [copy]

    def drop(self, sequence: Sequence) -> None:
        """The sequence gives its blocks up before the copy was made."""
        copy = self._waiting.pop(sequence.sequence_id, None)
        if copy is not None:
            self._release_source(copy)

    def done(self, plan: StepPlan) -> None:
        """The step that makes the copies of ``plan`` is over."""
        for copy in plan.copies:
            self._under_way.remove(copy)
            self._release_source(copy)

    def _release_source(self, copy: BlockCopy) -> None:
        self._pool.release(np.array([copy.source], dtype=np.int32))
