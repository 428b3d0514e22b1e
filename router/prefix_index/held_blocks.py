"""How many leading blocks of one prompt each worker holds.

Among hundreds of workers there are few different numbers: most hold nothing of a prompt. So what
follows from the number is computed once for each of them, in plain Python, and then spread.
Does not cover: finding out (``router.prefix_index.prefix_index``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from core.values import value

Counts = npt.NDArray[np.int64]
# Places in a column.
Numbers = npt.NDArray[np.intp]


@value(eq=False)
class HeldBlocks:
    """``levels``: the different numbers of blocks, 0 first, rising. ``level_of``: which of them
    each worker holds (intp, by the workers' numbers)."""

    levels: list[int]
    level_of: Numbers

    def of(self, number: int) -> int:
        """Blocks that this worker holds."""
        return self.levels[self.level_of.item(number)]

    @property
    def blocks(self) -> Counts:
        """A column: blocks that each worker holds, int64."""
        return np.array(self.levels, dtype=np.int64).take(self.level_of)

    def spread(self, values: list[Any]) -> npt.NDArray[Any]:
        """A column: for each worker the value of its level."""
        return np.array(values)[self.level_of]
