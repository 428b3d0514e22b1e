"""Which workers are in a run, and what the run may take from what the router knows of them.

The router may have a thousand workers to choose from, and hardly ever a run that matters to it:
these arrays, an entry for each worker, tell which ones it has to look at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from router.prefix_index.held_blocks import HeldBlocks
from router.routing.worker_load import LoadTable, context_grain

Counts = npt.NDArray[np.int64]


class RunBoard:
    """Workers by number. ``num_blocks``: of the KV pool of each."""

    def __init__(self, num_blocks: Sequence[int]) -> None:
        self._pools: Counts = np.array(num_blocks, dtype=np.int64)
        self._grains: Counts = np.array([context_grain(n) for n in num_blocks], dtype=np.int64)
        self._blocks: Counts = np.zeros(len(num_blocks), dtype=np.int64)
        self._evicts = np.zeros(len(num_blocks), dtype=np.bool_)

    def begun(self, number: int, blocks: int, evicts: bool) -> None:
        """A run takes at most so many ``blocks``, maybe from the cache."""
        self._blocks[number] = blocks
        self._evicts[number] = evicts

    def ended(self, number: int) -> None:
        self._blocks[number] = 0
        self._evicts[number] = False

    def that_may_matter(self, held: HeldBlocks, loads: LoadTable, needed: int) -> list[int]:
        """Workers whose run may change a cost: they may have too few blocks for ``needed`` more,
        evict what they hold of the prompt, or have the context of another grain."""
        left = loads.free_blocks - self._blocks
        grown = self._pools - left - loads.context_blocks >= self._grains
        matters = (left < needed) | grown | (self._evicts & (held.level_of > 0))
        found: list[int] = np.flatnonzero(matters & (self._blocks > 0)).tolist()
        return found
