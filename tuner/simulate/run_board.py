"""Which workers are in a run, and what the run may take from what the router knows of them.

The router may have a thousand workers to choose from, and hardly ever a run that matters to it:
these arrays, an entry for each worker, tell which ones it has to look at.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


class RunBoard:
    """Workers by number."""

    def __init__(self, count: int) -> None:
        self._blocks: Counts = np.zeros(count, dtype=np.int64)
        self._evicts = np.zeros(count, dtype=np.bool_)

    def begun(self, number: int, blocks: int, evicts: bool) -> None:
        """A run takes at most so many ``blocks``, maybe from the cache."""
        self._blocks[number] = blocks
        self._evicts[number] = evicts

    def ended(self, number: int) -> None:
        self._blocks[number] = 0
        self._evicts[number] = False

    def that_may_matter(self, held: Counts, free_blocks: Counts, needed: int) -> list[int]:
        """Workers whose run may change a cost: they may have too few blocks for ``needed`` more,
        or evict what they hold of the prompt."""
        short = (self._blocks > 0) & (free_blocks - self._blocks < needed)
        found: list[int] = np.flatnonzero(short | (self._evicts & (held > 0))).tolist()
        return found
